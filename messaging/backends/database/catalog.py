"""The exchanges, queues and bindings that were declared, and the way of a message through them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.db import connections, transaction

from messaging.backends import missing
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.missing import named_queues
from messaging.db.connections import transaction_mode
from messaging.handlers import topic_matches
from messaging.models import EmbeddedBinding, EmbeddedExchange, EmbeddedQueue
from messaging.models.embedded import key_of
from messaging.wire.bodies import storable

BUILT_IN = {"amq.topic": "topic", "amq.direct": "direct", "amq.fanout": "fanout"}
TYPES = ("topic", "direct", "fanout")


@dataclass(frozen=True, slots=True)
class Routes:
    """Who gets what, as it is declared now."""

    queues: dict[str, int]
    types: dict[str, str]
    bindings: dict[str, list[tuple[str, int]]]

    @classmethod
    def read(cls, database: str) -> Routes:
        """Read all of it: there are few queues, and many messages go the same way."""
        exchanges = {row.pk: row for row in EmbeddedExchange.objects.using(database).order_by()}
        bindings = defaultdict(list)
        for row in EmbeddedBinding.objects.using(database).order_by():
            if row.exchange_id in exchanges:
                bindings[exchanges[row.exchange_id].name].append((row.routing_key, row.queue_id))
        queues = EmbeddedQueue.objects.using(database).order_by()
        return cls(
            queues=dict(queues.values_list("name", "pk")),
            types=BUILT_IN | {row.name: row.type for row in exchanges.values()},
            bindings=dict(bindings),
        )

    def find(self, exchange: str, routing_key: str) -> list[int] | None:
        """The queues that a message goes to; None when there is no such exchange."""
        if exchange == "":
            return [self.queues[routing_key]] if routing_key in self.queues else []
        type_ = self.types.get(exchange)
        if type_ is None:
            return None
        bindings = self.bindings.get(exchange, ())
        return list(dict.fromkeys(queue for pattern, queue in bindings if _takes(type_, pattern, routing_key)))


def declare(database: str, topology: Topology) -> list[Difference]:
    """Create what is missing, and return what the embedded broker cannot do or does not find."""
    found = list(_remarks(topology))
    if not list(_missing(database, topology)):
        return found + list(_foreign(database, topology))
    with transaction_mode(connections[database], "IMMEDIATE"), transaction.atomic(using=database):
        for name, type_ in _exchanges(topology).items():
            EmbeddedExchange.objects.using(database).get_or_create(
                key=key_of(name), defaults={"name": storable(name, 255), "type": type_}
            )
        for queue in topology.queues:
            if queue.declare:
                _declare_queue(database, queue)
    return found + list(_foreign(database, topology))


def compare(database: str, topology: Topology) -> list[Difference]:
    """Everything that differs; changes nothing."""
    found = [*_missing(database, topology), *_remarks(topology), *_foreign(database, topology)]
    return [*found, *_needless(database, topology)]


def unbind(database: str, queue: str, exchange: str, routing_key: str) -> None:
    """Remove one binding; one that does not exist is no error."""
    EmbeddedBinding.objects.using(database).filter(key=key_of(exchange, queue, routing_key)).delete()


def _declare_queue(database: str, spec: QueueSpec) -> None:
    queues = EmbeddedQueue.objects.using(database)
    dead_id = None  # numbers, not instances: a router may forbid relations between these
    if spec.dead_letter:
        dead, _ = queues.get_or_create(key=key_of(spec.dead), defaults={"name": spec.dead})
        dead_id = dead.pk
    queue, _ = queues.get_or_create(key=key_of(spec.name), defaults={"name": spec.name, "dead_id": dead_id})
    if queue.dead_id != dead_id:
        queues.filter(pk=queue.pk).update(dead_id=dead_id)
    for exchange, routing_key in _bindings(spec):
        EmbeddedBinding.objects.using(database).get_or_create(
            key=key_of(exchange, spec.name, routing_key),
            defaults={
                "exchange_id": EmbeddedExchange.objects.using(database).get(key=key_of(exchange)).pk,
                "queue_id": queue.pk,
                "routing_key": routing_key,
            },
        )


def _missing(database: str, topology: Topology) -> Iterator[Difference]:
    """What `declare()` would create."""
    known = set(EmbeddedExchange.objects.using(database).values_list("key", flat=True))
    yield from (missing.exchange(name) for name in _exchanges(topology) if key_of(name) not in known)
    queues = dict(EmbeddedQueue.objects.using(database).values_list("key", "dead__key"))
    bindings = set(EmbeddedBinding.objects.using(database).values_list("key", flat=True))
    for spec in topology.queues:
        if not spec.declare:
            continue
        dead = key_of(spec.dead) if spec.dead_letter else None
        if dead is not None and dead not in queues:
            yield missing.queue(spec.dead, ours=True)
        if key_of(spec.name) not in queues:
            yield missing.queue(spec.name, ours=True)
            continue
        if queues[key_of(spec.name)] != dead:
            yield _other_dead_letters(spec)
        for exchange, routing_key in _bindings(spec):
            if key_of(exchange, spec.name, routing_key) not in bindings:
                yield missing.binding(spec.name, exchange, routing_key)


def _other_dead_letters(spec: QueueSpec) -> Difference:
    wanted = f'"{spec.dead}"' if spec.dead_letter else "nowhere"
    problem = f"what expires in it does not go to {wanted}, as the topology says."
    return Difference(f'queue "{spec.name}"', problem, missing.DECLARE, "loss" if spec.dead_letter else "warning")


def _foreign(database: str, topology: Topology) -> Iterator[Difference]:
    known = set(EmbeddedQueue.objects.using(database).values_list("key", flat=True))
    for spec in topology.queues:
        if not spec.declare and key_of(spec.name) not in known:
            yield missing.queue(spec.name, ours=False)


def _needless(database: str, topology: Topology) -> Iterator[Difference]:
    """Bindings of our exchanges to queues that this site does not name."""
    ours = {key_of(one.name): one.name for one in topology.exchanges if one.declare}
    named = {key_of(name) for name in named_queues(topology)}
    bindings = EmbeddedBinding.objects.using(database).filter(exchange__key__in=ours).exclude(queue__key__in=named)
    for key, queue, routing_key in bindings.order_by("id").values_list("exchange__key", "queue__name", "routing_key"):
        yield missing.needless_binding(queue, ours[key], routing_key)


def _remarks(topology: Topology) -> Iterator[Difference]:
    """What is asked for and cannot be done by a table."""
    for exchange in topology.exchanges:
        if exchange.type not in TYPES:
            yield Difference(
                f'exchange "{exchange.name}"',
                f"the embedded broker has no exchanges of type {exchange.type}; it routes like a topic exchange.",
                "Use RabbitMQ for it.",
            )
    for queue in topology.queues:
        names = ", ".join(sorted(name for name, value in queue.arguments.items() if value is not None))
        if queue.declare and names:
            yield Difference(
                f'queue "{queue.name}"',
                f"the embedded broker does not know queue arguments: {names} has no effect.",
                f'Use RabbitMQ, or remove "arguments" from QUEUES["{queue.name}"].',
            )
        if queue.declare:
            yield from _default_bindings(queue)


def _default_bindings(queue: QueueSpec) -> Iterator[Difference]:
    for exchange, routing_key in queue.bindings:
        if exchange == "" and routing_key != queue.name:
            yield missing.default_binding(queue.name, routing_key)


def _bindings(queue: QueueSpec) -> Sequence[tuple[str, str]]:
    return [(exchange, key) for exchange, key in queue.bindings if exchange]


def _exchanges(topology: Topology) -> dict[str, str]:
    """Every exchange that is declared or bound to, with its type."""
    named = [exchange for queue in topology.queues if queue.declare for exchange, _ in _bindings(queue)]
    declared = {one.name: one.type if one.type in TYPES else "topic" for one in topology.exchanges if one.name}
    return {name: BUILT_IN.get(name, "topic") for name in named} | declared


def _takes(type_: str, pattern: str, routing_key: str) -> bool:
    if type_ == "fanout":
        return True
    return pattern == routing_key if type_ == "direct" else topic_matches(pattern, routing_key)
