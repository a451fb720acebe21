"""A queue at the broker beside the topology's idea of it: what loses messages first, then what is merely different."""

from __future__ import annotations

from collections.abc import Iterator

from messaging.backends.base import Difference, QueueSpec
from messaging.backends.rabbitmq.topology import arguments, differences
from messaging.backends.rabbitmq.topology.found import FoundQueue
from messaging.backends.rabbitmq.topology.handing import DELAYED_RETRY, of_handing_out
from messaging.backends.rabbitmq.topology.losses import DeadEnd, Wish, of_queue

_QUORUM_ONLY = frozenset({"x-delivery-limit", "x-dead-letter-strategy"})


def wishes(spec: QueueSpec) -> Iterator[tuple[str, Wish]]:
    """The queues that a specification is about, by name: its dead-letter queue first, then itself."""
    if not spec.declare:
        yield spec.name, Wish(spec.arguments, is_ours=False, dead_letter=spec.dead_letter)
        return
    if spec.dead_letter:
        yield spec.dead, Wish(arguments.for_dead_letters(spec), is_last=True)
    yield spec.name, Wish(arguments.for_queue(spec), dead_letter=spec.dead_letter)


def compare_queue(queue: FoundQueue, wish: Wish, dead_end: DeadEnd) -> Iterator[Difference]:
    """Every difference between a queue and what is wished for, each told once."""
    told: set[str] = set()
    for argument, difference in of_queue(queue, wish, dead_end):
        told.add(argument)
        yield difference
    for argument, difference in of_handing_out(queue, wish):
        told.add(argument)
        yield difference
    if "x-delayed-retry-type" in told:
        told.update(f"x-{key}" for key in DELAYED_RETRY)
    if "x-dead-letter-exchange" in told:
        told.update(differences.DEAD_LETTER)
    if queue.type != "quorum":
        told |= _QUORUM_ONLY  # said by its type
    for argument, current, wanted in _arguments(queue, wish):
        if argument not in told:
            yield differences.of_argument(queue.name, argument, current, wanted)


def _arguments(queue: FoundQueue, wish: Wish) -> Iterator[tuple[str, object, object]]:
    """The arguments that differ; a policy may say what an argument does not."""
    if not wish.is_ours:
        return
    found = queue.current()
    for argument in sorted(wish.arguments.keys() | found.keys()):
        current, wanted = found.get(argument), wish.arguments.get(argument)
        is_policy = current is None and queue.policy.get(argument.removeprefix("x-")) == wanted
        if current != wanted and not is_policy:
            yield argument, current, wanted
