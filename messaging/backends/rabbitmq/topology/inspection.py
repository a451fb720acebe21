"""Comparing with what AMQP itself tells. Bindings, policies, and the arguments of others' queues stay unseen."""

from __future__ import annotations

from collections.abc import Iterator

from messaging.backends import missing
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.rabbitmq.errors import ChannelRefused
from messaging.backends.rabbitmq.session import Session
from messaging.backends.rabbitmq.topology import differences, probes
from messaging.backends.rabbitmq.topology.comparison import compare_queue, wishes
from messaging.exceptions import QueueUnavailable

UNSEEN = (
    "bindings (to queues that this site no longer names, too), policies (one may add dead lettering), and the "
    "arguments of queues that others declare"
)


def compare(session: Session, topology: Topology) -> Iterator[Difference]:
    """The differences that the broker itself tells, without creating anything."""
    for exchange in topology.exchanges:
        if probes.is_builtin(exchange.name):
            continue
        if not exchange.declare:
            yield from probes.look_at_exchange_of_others(session, exchange.name)
            continue
        if probes.exchange_exists(session, exchange.name):
            yield from probes.declare_exchange(session, exchange.name, exchange.type)
        else:
            yield missing.exchange(exchange.name)
    for name in probes.foreign_exchanges(topology):
        if probes.exchange_exists(session, name):
            yield from probes.look_at_foreign_exchange(session, name)
        else:
            yield missing.exchange(name)
    for queue in topology.queues:
        yield from _compare_queue(session, queue)


def _compare_queue(session: Session, spec: QueueSpec) -> Iterator[Difference]:
    if not spec.declare:
        yield from probes.look_at_foreign(session, spec.name)
        return
    for name, wish in wishes(spec):
        try:
            found = probes.find_queue(session, name, wish.arguments)
        except ChannelRefused as refusal:
            is_forbidden = refusal.code == 403  # it exists, or is taken to
            yield differences.forbidden(f'queue "{name}"') if is_forbidden else differences.of_queue(name, refusal)
            continue
        except QueueUnavailable:
            yield differences.unavailable(name)
            continue
        if found is None:
            yield missing.queue(name, ours=True)
        else:
            yield from compare_queue(found, wish, lambda exchange, key: _dead_end(session, spec, exchange, key))


def _dead_end(session: Session, spec: QueueSpec, exchange: str, key: str | None) -> str:
    """Where dead letters end if they get nowhere, as far as can be seen."""
    if exchange:
        is_there = probes.is_builtin(exchange) or probes.exchange_exists(session, exchange)
        return "" if is_there else f'the exchange "{exchange}", which does not exist'
    if key is None:
        return "the default exchange under their own routing keys, which need not be the name of a queue"
    if key == spec.dead:
        return ""  # if it is missing, that is said of it
    try:
        return "" if probes.exists(session, key) else f'the queue "{key}", which does not exist'
    except (ChannelRefused, QueueUnavailable):
        return ""  # it exists, and cannot be looked at
