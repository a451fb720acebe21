"""A message that was taken from a queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from messaging.backends.base import Delivery
from messaging.backends.database import letters
from messaging.backends.database.holdings import EmbeddedSubscription
from messaging.models import EmbeddedMessage
from messaging.models.spools import Spool

if TYPE_CHECKING:
    from messaging.backends.database.feed import Feed


class DatabaseDelivery(Delivery):
    """A message from the embedded broker, tied to the lease under which it was taken."""

    def __init__(
        self, feed: Feed, subscription: EmbeddedSubscription, row: EmbeddedMessage, spool: Spool | None = None
    ) -> None:
        self._feed = feed
        self.subscription = subscription
        self.row_id = int(row.pk)
        self.queue = subscription.queue
        letter = letters.delivered(bytes(row.wire), row.deliveries)
        self.exchange, self.routing_key, self.properties = letter
        self.body = b"" if spool is not None else bytes(row.body)
        self.spool = spool
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
