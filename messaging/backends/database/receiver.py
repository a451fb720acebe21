"""Consuming: one connection at a time, opened again on request. The work is done by its `Feed`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery, Receiver
from messaging.backends.database.errors import broker_errors
from messaging.backends.database.feed import Feed
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable, TopologyError
from messaging.models import EmbeddedQueue
from messaging.models.embedded import key_of

logger = logging.getLogger("messaging.database")


class DatabaseReceiver(Receiver):
    """Takes messages out of queues, for as long as it renews its lease.

    Args:
        settings: the alias's.
        on_delivery, on_change: see `Backend.receiver()`; called in the feed's thread.
        allowance: see there.
    """

    def __init__(
        self,
        settings: AliasSettings,
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> None:
        self._settings = settings
        self._on_delivery = on_delivery
        self._on_change = on_change
        self._allowance = allowance
        self._feed: Feed | None = None
        self._trouble = ""

    def open(self) -> None:
        """Connect, or reconnect after a loss; consumers are not restored. Raises BrokerUnavailable."""
        if self.is_open:
            return
        feed = Feed(self._settings, self._on_delivery, self._gone, self._allowance)
        feed.open()
        self._feed, self._trouble = feed, ""

    def consume(self, queue: str, prefetch: int) -> None:
        """Start a consumer; see the contract."""
        feed = self._feed
        if feed is None or not feed.is_open:
            raise BrokerUnavailable(self._trouble or "The consumer's connection is not open.")
        if queue in feed.consuming:
            return
        database = self._settings.broker_database
        with broker_errors(database):
            found = EmbeddedQueue.objects.using(database).filter(key=key_of(queue)).first()
        if found is None:
            self._trouble = f'Queue "{queue}" cannot be consumed from: it does not exist.'
            raise TopologyError(
                f'{self._trouble} Create it: `manage.py topology` declares "{queue}" unless its settings say '
                '"declare": False.'
            )
        feed.subscribe(queue, found.pk, prefetch)
        self._trouble = ""

    def widen(self, queues: Collection[str]) -> None:
        """Let consumers that began with one message have more."""
        if self._feed is not None:
            self._feed.widen(queues)

    def hurry(self) -> None:
        """Make room for more messages."""
        if self._feed is not None:
            self._feed.hurry()

    def cancel(self, queue: str) -> None:
        """Stop the consumer on `queue`; what was delivered can still be settled."""
        if self._feed is not None:
            self._feed.unsubscribe(queue)

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a live consumer."""
        return self._feed.consuming if self._feed is not None else frozenset()

    @property
    def is_open(self) -> bool:
        """Whether the lease has not been lost, as far as this side can tell."""
        return self._feed is not None and self._feed.is_open

    @property
    def trouble(self) -> str:
        """Why the connection or a consumer was last lost, in words."""
        return self._trouble

    def close(self, timeout: float = 5.0) -> None:
        """Write the acknowledgements handed over so far, give back the rest, end the thread."""
        if self._feed is not None:
            self._feed.close(timeout)

    def _gone(self, words: str) -> None:
        self._trouble = words
        logger.debug("%s", words)
        self._on_change()
