"""What about a queue takes messages back from a consumer too soon, or hands them out again too late. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from messaging.backends.base import Difference
from messaging.backends.rabbitmq.topology.found import FoundQueue
from messaging.backends.rabbitmq.topology.losses import Wish, of_value

PATIENT = 1_800_000  # milliseconds: what RabbitMQ gives a consumer where nothing is said
DELAYED_RETRY = ("delayed-retry-type", "delayed-retry-min", "delayed-retry-max")
_WHICH = {
    "all": "messages that come back, such as at a consumer's stop or with a lost connection,",
    "returned": "messages that a consumer gives back, such as at its stop,",
    "failed": "messages that come back with a lost connection",
}


def of_handing_out(queue: FoundQueue, wish: Wish) -> Iterator[tuple[str, Difference]]:
    """What disturbs a consumer and loses nothing; each with the argument that it is about."""
    if wish.is_last or queue.type == "stream":
        return
    timeout = queue.value("consumer-timeout")
    if isinstance(timeout, int) and timeout < PATIENT and not wish.wants("x-consumer-timeout", timeout):
        words = (
            "what a consumer holds for so many milliseconds is taken from it and delivered again, though its handler "
            "runs or the database is down."
        )
        yield "x-consumer-timeout", of_value(queue, wish, "consumer-timeout", words)
    if _delays(queue) and not all(wish.wants(f"x-{key}", value) for key, value in _delay(queue).items()):
        longest = queue.value("delayed-retry-max") or queue.value("delayed-retry-min")
        words = (
            f"{_WHICH[queue.value('delayed-retry-type')]} wait for up to {longest} milliseconds, and others overtake "
            "them. How failures wait is said by RETRY."
        )
        yield "x-delayed-retry-type", of_value(queue, wish, "delayed-retry-type", words)


def _delays(queue: FoundQueue) -> bool:
    """Whether a delayed retry is in force: it is of quorum queues, and takes a smallest delay."""
    is_whole = isinstance(queue.value("delayed-retry-min"), int)
    return queue.type == "quorum" and is_whole and queue.value("delayed-retry-type") in _WHICH


def _delay(queue: FoundQueue) -> dict[str, object]:
    return {key: value for key in DELAYED_RETRY if (value := queue.value(key)) is not None}
