"""What about a queue can lose messages, and where its dead letters end. Pure: it knows a queue, and asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from messaging.backends.base import Difference
from messaging.backends.rabbitmq.topology.differences import (
    auto_deleted,
    both,
    change,
    exclusive,
    not_durable,
    shown,
    stream,
)
from messaging.backends.rabbitmq.topology.found import FoundQueue

LOW = 1000  # returns; each disconnect is one for every message that was taken ahead
_CAREFUL = {"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}
_UNWELL = frozenset({"down", "crashed", "stopped", "minority"})

# Where a dead letter of an exchange and a routing key ends, in words; "" where it arrives.
DeadEnd = Callable[[str, str | None], str]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the topology says of a queue.

    Attributes:
        arguments: those it should have; of a queue of others, those that the settings tell us of.
        is_ours: whether we declare it.
        dead_letter: whether what it drops should go to a dead-letter queue.
        is_last: whether it is a dead-letter queue itself: what it drops is gone.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_ours: bool = True
    dead_letter: bool = True
    is_last: bool = False

    def wants(self, argument: str, value: Any) -> bool:
        """Whether the topology says the same of an argument."""
        return value is not None and self.arguments.get(argument) == value

    @property
    def is_careful(self) -> bool:
        """Whether dead letters should be handed over rather than thrown at their queue."""
        return all(self.arguments.get(f"x-{key}") == value for key, value in _CAREFUL.items())

    def both(self, argument: str, value: Any) -> str:
        """What an argument is, and what the topology says, if it says anything about this queue."""
        return both(argument, value, self.arguments.get(argument), known=self.is_ours)


def of_queue(queue: FoundQueue, wish: Wish, dead_end: DeadEnd) -> Iterator[tuple[str, Difference]]:
    """What loses messages, or makes the queue unusable; each with the argument that it is about, "" for none."""
    yield from (("", found) for found in _of_nature(queue, wish.is_ours))
    is_caught = not wish.is_last and queue.value("dead-letter-exchange") is not None
    if not wish.is_last:
        for found in _of_dead_letters(queue, wish, dead_end):
            is_caught = False
            yield "x-dead-letter-exchange", found
    for key, words in _limits(queue):
        argument, value = f"x-{key}", queue.value(key)
        if is_caught and wish.wants(argument, value):
            continue  # asked for, and nothing is lost by it
        fate = "dead-lettered, and end as failed" if is_caught else "dropped"
        yield argument, of_value(queue, wish, key, f"{words} {fate}.", "warning" if is_caught else "loss")
    if is_caught and wish.is_careful and queue.type == "quorum" and not _is_careful(queue):
        yield "x-dead-letter-strategy", _of_strategy(queue, wish)
    if queue.value("expires") is not None:
        words = "when nobody has used it for so long, it is deleted with all its messages."
        yield "x-expires", of_value(queue, wish, "expires", words, "loss")


def _of_strategy(queue: FoundQueue, wish: Wish) -> Difference:
    problem = wish.both("x-dead-letter-strategy", queue.value("dead-letter-strategy"))
    problem += ": dead letters are dropped when their queue cannot take them (x-overflow must be 'reject-publish' too)."
    return Difference(f'queue "{queue.name}"', problem, change(queue.name), "loss")


def _is_careful(queue: FoundQueue) -> bool:
    return all(queue.value(key) == value for key, value in _CAREFUL.items())


def _of_nature(queue: FoundQueue, is_ours: bool) -> Iterator[Difference]:
    if queue.exclusive:
        yield exclusive(queue.name)
    elif not queue.durable:
        yield not_durable(queue.name, is_ours)
    elif queue.auto_delete:
        yield auto_deleted(queue.name, is_ours)
    if queue.type == "stream":
        yield stream(queue.name)
    if queue.state in _UNWELL:
        way_out = "See the broker's log and its cluster; `rabbitmq-diagnostics check_if_node_is_quorum_critical` helps."
        yield Difference(f'queue "{queue.name}"', f"its state is {queue.state}.", way_out, "error")


def _of_dead_letters(queue: FoundQueue, wish: Wish, dead_end: DeadEnd) -> Iterator[Difference]:
    exchange, key = queue.value("dead-letter-exchange"), queue.value("dead-letter-routing-key")
    subject = f'queue "{queue.name}"'
    if exchange is None:
        problem = wish.both("x-dead-letter-exchange", None)
        problem += ": a message that expires, is over a limit, or is rejected by another consumer is dropped."
        way_out = (
            "Add dead lettering by a policy (`rabbitmqctl set_policy`, dead-letter-exchange and "
            f'dead-letter-routing-key); or, if it is to be so, write "dead_letter": False in QUEUES["{queue.name}"].'
        )
        if wish.dead_letter:
            yield Difference(subject, problem, way_out, "loss")
    elif end := dead_end(str(exchange), None if key is None else str(key)):
        problem = wish.both("x-dead-letter-exchange", exchange)
        problem += f": its dead letters go to {end}, so they are dropped."
        way_out = "Create what is missing at the broker, or set other dead lettering by a policy."
        yield Difference(subject, problem, way_out, "loss")


def _limits(queue: FoundQueue) -> Iterator[tuple[str, str]]:
    """What removes messages from a queue, and which: to be followed by what becomes of them."""
    if queue.value("message-ttl") is not None:
        yield "message-ttl", "messages that wait longer (in milliseconds) are"
    if not str(queue.value("overflow") or "drop-head").startswith("reject-publish"):
        for key in ("max-length", "max-length-bytes"):
            if queue.value(key) is not None:
                yield key, "when it is full, the oldest messages are"
    limit = queue.value("delivery-limit")
    if queue.type == "quorum" and isinstance(limit, int) and limit < LOW:
        # 3.10 takes a negative limit for none left, RabbitMQ 4 for no limit.
        yield "delivery-limit", "messages that were returned more often (each disconnect counts) are"


def of_value(queue: FoundQueue, wish: Wish, key: str, words: str, severity: str = "warning") -> Difference:
    """What holds for `key`, who said so, what comes of it in `words`, and the way out."""
    argument, value = f"x-{key}", queue.value(key)
    if queue.is_by_policy(key):
        said = shown(wish.arguments.get(argument))
        problem = f'{key} is {value} by the policy "{queue.policy_name}", the topology says {said}: {words}'
    else:
        problem = f"{wish.both(argument, value)}: {words}"
    return Difference(f'queue "{queue.name}"', problem, _way_out(queue, wish, key), severity)


def _way_out(queue: FoundQueue, wish: Wish, key: str) -> str:
    if key == "delivery-limit" and not wish.is_ours:
        told = f'"arguments": {{"x-delivery-limit": {queue.value(key)}}}'
        return (
            f'Write {told} in QUEUES["{queue.name}"]: a message near the limit then goes to the inbox before the '
            "broker gives it up. Or ask its owner for a higher one."
        )
    if queue.is_by_policy(key):
        return f'Change the policy, or say in QUEUES["{queue.name}"] what is meant.'
    return change(queue.name) if wish.is_ours else "Ask its owner whether that is meant; a policy cannot take it away."
