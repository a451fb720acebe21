"""The arguments that queues are declared with. They are frozen at the first declaration, so they are chosen once."""

from __future__ import annotations

from typing import Any

from messaging.backends.base import QueueSpec

# Unset, RabbitMQ 4 drops a message after 20 returns, and a plain disconnect counts for every prefetched one; -1
# dead-letters at the first return on 3.10. Attempts are counted in the inbox, this is only the last net.
DELIVERY_LIMIT = 1_000_000


def for_queue(queue: QueueSpec) -> dict[str, Any]:
    """The arguments of a queue; the user's win, and None leaves one of ours out."""
    arguments: dict[str, Any] = {"x-queue-type": queue_type(queue)}
    if queue.dead_letter:
        arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue.dead}
    if queue_type(queue) == "quorum":
        arguments |= {"x-delivery-limit": DELIVERY_LIMIT, "x-overflow": "reject-publish"}
        if queue.dead_letter:
            arguments["x-dead-letter-strategy"] = "at-least-once"
    arguments |= queue.arguments
    return {name: value for name, value in arguments.items() if value is not None}


def for_dead_letters(queue: QueueSpec) -> dict[str, Any]:
    """The arguments of its dead-letter queue, which is of the same type where that can hold messages for good."""
    if queue_type(queue) == "classic":
        return {"x-queue-type": "classic"}
    return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}


def queue_type(queue: QueueSpec) -> str:
    """Its type; an `x-queue-type` among the user's arguments wins."""
    return str(queue.arguments.get("x-queue-type") or queue.type)
