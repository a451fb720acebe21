"""What became of the last orders: the steps that the handlers took, and where the other messages stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_noop

from messaging.models import ProcessedMessage
from project.models import Order

# Queue, and what its handler writes down once it is done.
STEPS = {
    "stock": gettext_noop("stock reserved"),
    "parcels": gettext_noop("parcel booked"),
    "invoices": gettext_noop("invoice written"),
}


@dataclass(frozen=True)
class Stage:
    """One of the three queues, as an order sees it.

    Attributes:
        queue: its name.
        step: what is done there.
        state: "done", "waiting" while no handler had the message, or the state of the message in the inbox.
        attempts: how often the handler was started.
        pk: the message in the inbox, None while there is none.
    """

    queue: str
    step: str
    state: str
    attempts: int = 0
    pk: int | None = None


def tell(orders: Iterable[Order]) -> list[tuple[Order, list[Stage]]]:
    """Each order with its three stages."""
    orders = list(orders)
    rows = ProcessedMessage.objects.filter(message_id__in=[order.message_id for order in orders], queue__in=STEPS)
    received = {
        (row["message_id"], row["queue"]): row for row in rows.values("pk", "message_id", "queue", "state", "attempts")
    }
    return [
        (order, [_stage(order, queue, received.get((order.message_id, queue))) for queue in STEPS]) for order in orders
    ]


def _stage(order: Order, queue: str, row: dict[str, Any] | None) -> Stage:
    step = STEPS[queue]
    done = step in {taken.name for taken in order.steps.all()}
    if row is None:
        return Stage(queue, step, "done" if done else "waiting")
    return Stage(queue, step, "done" if done else row["state"], row["attempts"], row["pk"])
