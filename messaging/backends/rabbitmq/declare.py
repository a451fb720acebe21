"""Creating what is missing at the broker, and comparing what is there. Nothing is ever deleted or changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from messaging.backends import missing
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.rabbitmq import arguments, differences
from messaging.backends.rabbitmq.errors import INEQUIVALENT, ChannelRefused
from messaging.backends.rabbitmq.session import Session
from messaging.exceptions import TopologyError

# A quorum queue's members are written to disk half a second after its creation; a broker killed before that has lost
# every confirmed message in it.
SETTLE_SECONDS = 1.0

# Arguments that no broker accepts: an existing queue answers with what differs, a missing one is not created.
_PROBE = {"x-expires": -1}


class Declarer:
    """Declares one topology over one session and collects what differs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: list[Difference] = []
        self._new_quorum_queue = False

    def declare(self, topology: Topology) -> list[Difference]:
        """Create what is missing: dead-letter queues first, then exchanges, queues, bindings.

        Returns what differs but can be used. Raises TopologyError for what cannot, after doing all the rest.
        """
        ours = [queue for queue in topology.queues if queue.declare]
        for queue in ours:
            if queue.dead_letter:
                self._queue(queue.dead, arguments.for_dead_letters(queue))
        self._exchanges(topology)
        for queue in ours:
            if self._queue(queue.name, arguments.for_queue(queue)):
                self._bindings(queue)
        for queue in topology.queues:
            if not queue.declare:
                self._found += look_at_foreign(self._session, queue.name)
        if self._new_quorum_queue:
            time.sleep(SETTLE_SECONDS)
        return self._verdict()

    def _verdict(self) -> list[Difference]:
        errors = [found for found in self._found if found.severity == "error"]
        if errors:
            raise TopologyError(
                " ".join(f"{capital(error.subject)}: {error.problem} {error.way_out}" for error in errors)
            )
        return self._found

    def _queue(self, name: str, wanted: dict[str, object]) -> bool:
        """Create a queue or look at the one that exists; returns whether it can be used."""
        before = len(self._found)
        try:
            is_new = not exists(self._session, name)
            self._session.declare_queue(name, wanted)
            self._new_quorum_queue |= is_new and wanted.get("x-queue-type") == "quorum"
        except ChannelRefused as refusal:
            self._found.append(differences.of_queue(name, refusal))
        return all(found.severity != "error" for found in self._found[before:])

    def _exchanges(self, topology: Topology) -> None:
        known = {exchange.name for exchange in topology.exchanges}
        for exchange in topology.exchanges:
            if not is_builtin(exchange.name):
                self._found += declare_exchange(self._session, exchange.name, exchange.type)
        for name in foreign_exchanges(topology):
            if name not in known and not exchange_exists(self._session, name):
                self._found += declare_exchange(self._session, name, "topic")

    def _bindings(self, queue: QueueSpec) -> None:
        for exchange, routing_key in queue.bindings:
            if exchange == "":
                self._found += default_binding(queue.name, routing_key)
                continue
            try:
                self._session.bind_queue(queue.name, exchange, routing_key)
            except ChannelRefused as refusal:
                subject = f'binding of queue "{queue.name}" to exchange "{exchange}" with routing key "{routing_key}"'
                self._found.append(differences.refused(subject, refusal))


def compare(session: Session, topology: Topology) -> Iterator[Difference]:
    """The differences that the broker itself tells, without creating anything. Bindings cannot be seen this way."""
    for exchange in topology.exchanges:
        if is_builtin(exchange.name):
            continue
        if exchange_exists(session, exchange.name):
            yield from declare_exchange(session, exchange.name, exchange.type)
        else:
            yield missing.exchange(exchange.name)
    known = {exchange.name for exchange in topology.exchanges}
    for name in foreign_exchanges(topology):
        if name not in known and not exchange_exists(session, name):
            yield missing.exchange(name)
    for queue in topology.queues:
        yield from compare_queue(session, queue)


def compare_queue(session: Session, queue: QueueSpec) -> Iterator[Difference]:
    """The differences of one queue and its dead-letter queue."""
    if not queue.declare:
        yield from look_at_foreign(session, queue.name)
        return
    wanted = [(queue.name, arguments.for_queue(queue))]
    if queue.dead_letter:
        wanted.insert(0, (queue.dead, arguments.for_dead_letters(queue)))
    for name, table in wanted:
        try:
            if exists(session, name):
                session.declare_queue(name, table)
            else:
                yield missing.queue(name, ours=True)
        except ChannelRefused as refusal:
            yield differences.of_queue(name, refusal)


def look_at_foreign(session: Session, name: str) -> list[Difference]:
    """What is wrong with a queue that someone else owns: missing, exclusive, or not durable."""
    try:
        if not exists(session, name):
            return [missing.queue(name, ours=False)]
        session.declare_queue(name, _PROBE)
    except ChannelRefused as refusal:
        match = INEQUIVALENT.search(refusal.reason)
        if refusal.code == 405:
            return [differences.exclusive(name)]
        if match is not None and match["name"] == "durable":
            return [differences.not_durable(name)]
        if match is not None and match["name"] == "auto_delete":
            return [differences.auto_deleted(name)]
    return []


def exists(session: Session, name: str) -> bool:
    """Whether a queue exists. Raises ChannelRefused when the broker does not tell."""
    try:
        session.look_at_queue(name)
    except ChannelRefused as refusal:
        if refusal.code == 404:
            return False
        raise
    return True


def exchange_exists(session: Session, name: str) -> bool:
    """Whether an exchange exists; one that may not be looked at is taken to."""
    try:
        session.look_at_exchange(name)
    except ChannelRefused as refusal:
        return refusal.code != 404
    return True


def declare_exchange(session: Session, name: str, type_: str) -> list[Difference]:
    """Create an exchange or look at the one that exists."""
    try:
        session.declare_exchange(name, type_)
    except ChannelRefused as refusal:
        found = [differences.of_exchange(name, refusal)]
        match = INEQUIVALENT.search(refusal.reason)
        current = match["current"].strip("'") if match is not None and match["name"] == "type" else type_
        if current != type_:  # the broker names the first difference only; whether it is durable matters more
            found += declare_exchange(session, name, current)
        return found
    return []


def default_binding(queue: str, routing_key: str) -> list[Difference]:
    """The default exchange cannot be bound to; it delivers by queue name anyway."""
    if routing_key == queue:
        return []
    return [
        Difference(
            f'queue "{queue}"',
            f'it cannot be bound to the default exchange (routing key "{routing_key}"), which delivers by queue name.',
            f'Remove the binding from QUEUES["{queue}"].',
        )
    ]


def foreign_exchanges(topology: Topology) -> list[str]:
    """The exchanges that bindings of our queues name, except the broker's own."""
    named = [exchange for queue in topology.queues if queue.declare for exchange, _ in queue.bindings]
    return [name for name in dict.fromkeys(named) if not is_builtin(name)]


def is_builtin(exchange: str) -> bool:
    """Whether an exchange is the broker's own, which nobody may declare."""
    return exchange == "" or exchange.startswith("amq.")


def capital(words: str) -> str:
    """The words with a capital letter."""
    return words[:1].upper() + words[1:]
