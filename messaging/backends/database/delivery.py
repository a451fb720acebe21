"""A message that was taken from a queue, and what a feed remembers of those it handed over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from messaging.backends.base import Delivery
from messaging.backends.database import letters
from messaging.models import EmbeddedMessage

if TYPE_CHECKING:
    from messaging.backends.database.feed import Feed


@dataclass(eq=False, slots=True)
class Subscription:
    """One consumer's life: its queue, and the rows that were delivered to it and are not settled."""

    queue: str
    queue_id: int
    prefetch: int
    is_active: bool = True
    held: set[int] = field(default_factory=set)

    @property
    def room(self) -> int:
        """How many more may be delivered."""
        return max(0, self.prefetch - len(self.held))

    @property
    def is_low(self) -> bool:
        """Whether so little is left that its workers may soon have nothing to do."""
        return 2 * len(self.held) <= self.prefetch


class Settled:
    """What is to be written about rows: done, or going back. The feed's lock guards it."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._back: list[int] = []
        self.since = 0.0

    @property
    def count(self) -> int:
        """How many rows wait."""
        return len(self._done) + len(self._back)

    def add(self, row_id: int, *, done: bool) -> None:
        """Note one."""
        if not self.count:
            self.since = time.monotonic()
        (self._done if done else self._back).append(row_id)

    def is_due(self, after: float, many: int) -> bool:
        """Whether the first has waited for `after` seconds, or `many` wait."""
        return self.count >= many or bool(self.count and time.monotonic() - self.since >= after)

    def take(self) -> tuple[list[int], list[int]]:
        """All of them: done, and going back."""
        taken = self._done, self._back
        self._done, self._back = [], []
        return taken

    def put_back(self, done: list[int], back: list[int]) -> None:
        """They could not be written."""
        self._done += done
        self._back += back


class DatabaseDelivery(Delivery):
    """A message from the embedded broker, tied to the lease under which it was taken."""

    __slots__ = (
        "_feed", "body", "exchange", "properties", "queue", "received_at", "redelivered", "routing_key", "row_id",
        "subscription",
    )  # fmt: skip

    def __init__(self, feed: Feed, subscription: Subscription, row: EmbeddedMessage) -> None:
        self._feed = feed
        self.subscription = subscription
        self.row_id = int(row.pk)
        self.queue = subscription.queue
        letter = letters.delivered(bytes(row.wire), row.deliveries)
        self.exchange, self.routing_key, self.properties = letter
        self.body = bytes(row.body)
        self.redelivered = row.deliveries > 1
        self.received_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<delivery {self.row_id} of queue {self.queue!r}>"

    def ack(self) -> bool:
        """Have the row deleted; from any thread."""
        return self._feed.settle(self, done=True)

    def requeue(self) -> bool:
        """Give it back unprocessed; from any thread."""
        return self._feed.settle(self, done=False)

    @property
    def is_live(self) -> bool:
        """Whether the lease stands under which it was taken."""
        return self._feed.is_open
