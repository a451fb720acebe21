"""Comparing with what the management API tells, which is everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from messaging.backends import missing
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.missing import named_queues
from messaging.backends.rabbitmq.management import Management
from messaging.backends.rabbitmq.topology import differences, probes
from messaging.backends.rabbitmq.topology.comparison import compare_queue, wishes
from messaging.backends.rabbitmq.topology.found import FoundQueue
from messaging.backends.rabbitmq.topology.losses import Wish
from messaging.handlers import topic_matches

_AE = "alternate-exchange"


class Survey:
    """One comparison; every method raises BrokerUnavailable when the management API does not answer."""

    def __init__(self, management: Management) -> None:
        self._management = management

    def compare(self, topology: Topology) -> Iterator[Difference]:
        """Every difference between the topology and the broker."""
        for exchange in topology.exchanges:
            if not exchange.declare and self._management.exchange(exchange.name) is None:
                yield missing.exchange_of_others(exchange.name)
            elif not probes.is_builtin(exchange.name):
                yield from self._compare_exchange(exchange.name, exchange.type if exchange.declare else None)
        for name in probes.foreign_exchanges(topology):
            yield from self._compare_exchange(name, None)
        for queue in topology.queues:
            yield from self._compare_queue(queue)
        for exchange in topology.exchanges:
            if exchange.declare and not probes.is_builtin(exchange.name):
                yield from self._needless_bindings(exchange.name, named_queues(topology))

    def _needless_bindings(self, exchange: str, named: frozenset[str]) -> Iterator[Difference]:
        for binding in self._management.bindings_from(exchange):
            queue = str(binding.get("destination"))
            if binding.get("destination_type") == "queue" and queue not in named:
                yield missing.needless_binding(queue, exchange, str(binding.get("routing_key")))

    def _compare_exchange(self, name: str, type_: str | None) -> Iterator[Difference]:
        """The differences of an exchange; of one that others publish to, `type_` is None."""
        found, is_ours = self._management.exchange(name), type_ is not None
        if found is None:
            yield missing.exchange(name)
            return
        wanted: dict[str, Any] = {"durable": True, "auto_delete": False}
        wanted |= {"internal": False, "type": type_} if is_ours else {}
        for what, value in wanted.items():
            if found.get(what, value) != value:
                current, ours = (str(one).lower() for one in (found[what], value))
                yield differences.of_exchange_property(name, what, current, ours, ours=is_ours)
        if is_ours and (alternate := self._alternate(found)) is not None:
            yield differences.of_exchange_property(name, _AE, alternate, None)

    def _alternate(self, exchange: dict[str, Any]) -> Any:
        """The alternate exchange, whether an argument or a policy says so."""
        argument = (exchange.get("arguments") or {}).get(_AE)
        policy = exchange.get("policy")
        return self._management.policy(policy).get(_AE) if argument is None and policy else argument

    def _compare_queue(self, spec: QueueSpec) -> Iterator[Difference]:
        for name, wish in wishes(spec):
            told = self._management.queue(name)
            if told is None:
                yield missing.queue(name, ours=spec.declare)
                continue
            yield from self._compare_found(FoundQueue.from_api(told), spec, wish)
            if spec.declare and name == spec.name:
                yield from self._compare_bindings(spec)

    def _compare_found(self, queue: FoundQueue, spec: QueueSpec, wish: Wish) -> Iterator[Difference]:
        yield from compare_queue(queue, wish, lambda exchange, key: self._dead_end(spec, exchange, key))
        target = queue.value("dead-letter-routing-key")
        if wish.is_last or queue.value("dead-letter-exchange") != "" or target in (None, spec.dead, queue.name):
            return
        told = self._management.queue(str(target))
        if told is not None:  # of others, and what it loses is lost all the same
            yield from compare_queue(FoundQueue.from_api(told), Wish(is_ours=False, is_last=True), lambda *_: "")

    def _dead_end(self, spec: QueueSpec, exchange: str, key: str | None) -> str:
        """Where dead letters end if they get nowhere."""
        if exchange == "" and key is None:
            return "the default exchange under their own routing keys, which need not be the name of a queue"
        if exchange == "":
            is_there = (key == spec.dead and spec.declare) or self._management.queue(key or "") is not None
            return "" if is_there else f'the queue "{key}", which does not exist'
        found = self._management.exchange(exchange)
        if found is None:
            return f'the exchange "{exchange}", which does not exist'
        if self._alternate(found) is not None or self._is_bound(exchange, str(found.get("type")), key):
            return ""
        return f'the exchange "{exchange}", which has no binding ' + ("at all" if key is None else f'for "{key}"')

    def _type(self, exchange: str) -> str:
        return str((self._management.exchange(exchange) or {}).get("type"))

    def _is_bound(self, exchange: str, type_: str, key: str | None) -> bool:
        keys = [str(binding.get("routing_key")) for binding in self._management.bindings_from(exchange)]
        if key is None or type_ not in ("direct", "topic"):
            return bool(keys)
        return any(topic_matches(one, key) if type_ == "topic" else one == key for one in keys)

    def _compare_bindings(self, spec: QueueSpec) -> Iterator[Difference]:
        found = self._management.bindings_of(spec.name)
        current = {(binding["source"], binding["routing_key"]) for binding in found if binding["source"]}
        wanted = {binding for binding in spec.bindings if binding[0]}
        for exchange, routing_key in sorted(wanted - current):
            yield missing.binding(spec.name, exchange, routing_key)
        for exchange, routing_key in sorted(wanted):
            if set(routing_key) & set("*#") and self._type(exchange) == "direct":
                problem = f'its binding to the direct exchange "{exchange}" takes "{routing_key}" literally.'
                way_out = f'Name the keys one by one in QUEUES["{spec.name}"]["bindings"].'
                yield Difference(f'queue "{spec.name}"', problem, way_out, "loss")
        for exchange, routing_key in sorted(current - wanted):
            yield Difference(
                f'queue "{spec.name}"',
                f'it is also bound to exchange "{exchange}" with routing key "{routing_key}", which the topology does '
                "not say.",
                "If no handler wants these messages any more, remove the binding at the broker.",
            )
