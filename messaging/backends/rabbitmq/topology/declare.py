"""Creating what is missing at the broker. Nothing is ever deleted or changed."""

from __future__ import annotations

import time

from messaging.backends import missing
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.rabbitmq.errors import ChannelRefused
from messaging.backends.rabbitmq.session import Session
from messaging.backends.rabbitmq.topology import arguments, differences
from messaging.backends.rabbitmq.topology.probes import (
    declare_exchange,
    exchange_exists,
    exists,
    foreign_exchanges,
    is_builtin,
    is_stream,
    look_at_exchange_of_others,
    look_at_foreign,
)
from messaging.exceptions import QueueUnavailable, TopologyError

# The name of a new quorum queue's member is written to disk within two times half a second (`auto_save` in Ra's
# `ra_directory.erl`, and Erlang's `dets.erl`). A broker that is killed before that has lost every confirmed message in
# the queue, and RabbitMQ 3.10 leaves it without a leader for ever. The rest is for timers that are late.
SETTLE_SECONDS = 1.75


class Declarer:
    """Declares one topology over one session and collects what differs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: list[Difference] = []
        self._new_quorum_queue = False
        self._unreached: set[str] = set()

    def declare(self, topology: Topology) -> list[Difference]:
        """Create what is missing: dead-letter queues first, then exchanges, queues, bindings.

        Returns what differs but can be used. Raises QueueUnavailable where messages may not reach a queue now,
        TopologyError for what can never be used, both after doing all the rest.
        """
        ours = [queue for queue in topology.queues if queue.declare]
        for queue in ours:
            if queue.dead_letter:
                self._queue(queue.dead, arguments.for_dead_letters(queue))
        self._exchanges(topology)
        for queue in ours:
            if self._queue(queue.name, arguments.for_queue(queue)) and self._bindings(queue):
                self._unreached.discard(queue.name)
        for queue in topology.queues:
            if not queue.declare:
                found = look_at_foreign(self._session, queue.name)
                self._found += found
                if differences.unavailable(queue.name) in found:
                    self._unreached.add(queue.name)
        if self._new_quorum_queue:
            time.sleep(SETTLE_SECONDS)
        return self._verdict()

    def _verdict(self) -> list[Difference]:
        errors = " ".join(
            f"{capital(error.subject)}: {error.problem} {error.way_out}"
            for error in self._found
            if error.severity == "error"
        )
        if self._unreached:  # the worse of the two: what is sent now goes past them
            names = ", ".join(f'"{name}"' for name in sorted(self._unreached))
            text = f"These queues cannot be used now, and messages may not reach them: {names}. {errors}".strip()
            raise QueueUnavailable(text, tuple(sorted(self._unreached)), errors)
        if errors:
            raise TopologyError(errors)
        return self._found

    def _queue(self, name: str, wanted: dict[str, object]) -> bool:
        """Create a queue or look at the one that exists; returns whether it can be used."""
        before, is_known = len(self._found), False
        try:
            is_known = exists(self._session, name)
            self._session.declare_queue(name, wanted)
            self._new_quorum_queue |= not is_known and wanted.get("x-queue-type") == "quorum"
        except ChannelRefused as refusal:
            difference = differences.of_queue(name, refusal)
            if refusal.code == 403 and is_known:
                difference = differences.forbidden(difference.subject)
            is_unfit = difference.severity != "error" and refusal.code == 406 and is_stream(self._session, name)
            self._found.append(differences.stream(name) if is_unfit else difference)
        except QueueUnavailable:
            self._found.append(differences.unavailable(name))
            self._unreached.add(name)
        return all(found.severity != "error" for found in self._found[before:])

    def _exchanges(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            if not exchange.declare:
                self._found += look_at_exchange_of_others(self._session, exchange.name)
            elif not is_builtin(exchange.name):
                self._found += declare_exchange(self._session, exchange.name, exchange.type)
        for name in foreign_exchanges(topology):
            if not exchange_exists(self._session, name):
                self._found += declare_exchange(self._session, name, "topic")

    def _bindings(self, queue: QueueSpec) -> bool:
        """Make the bindings of a queue; returns whether the broker routes to it."""
        is_bound = False
        for exchange, routing_key in queue.bindings:
            if exchange == "":
                if routing_key != queue.name:
                    self._found.append(missing.default_binding(queue.name, routing_key))
                continue
            try:
                self._session.bind_queue(queue.name, exchange, routing_key)
            except ChannelRefused as refusal:
                subject = f'binding of queue "{queue.name}" to exchange "{exchange}" with routing key "{routing_key}"'
                forbidden = refusal.code == 403  # it may well exist
                self._found.append(
                    differences.forbidden(subject) if forbidden else differences.refused(subject, refusal)
                )
            except QueueUnavailable:
                return False
            else:
                is_bound = True
        return is_bound


def capital(words: str) -> str:
    """The words with a capital letter."""
    return words[:1].upper() + words[1:]
