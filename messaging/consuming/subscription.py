"""The consumer's side of the broker: connected, declared and consuming what is wanted, or trying to be."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping

from messaging.backends.allowance import Allowance
from messaging.backends.base import Backend, Delivery, Topology
from messaging.exceptions import BrokerUnavailable, MessagingError, TopologyError, UnusableQueue
from messaging.topology import warn_once

logger = logging.getLogger("messaging.consumer")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries to reach the broker


class Subscription:
    """Keeps consumers on queues, through losses of the broker and deletions of queues. One thread calls it.

    Args:
        backend: the broker.
        topology: what to declare at each connection.
        prefetch: unacknowledged deliveries at most, by queue.
        optional: queues that may be missing, such as dead-letter queues beside a queue that someone else owns.
        on_delivery, on_change, allowance: see `Backend.receiver()`.
    """

    def __init__(
        self,
        backend: Backend,
        topology: Topology,
        prefetch: Mapping[str, int],
        optional: frozenset[str],
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> None:
        self._backend = backend
        self._topology = topology
        self._prefetch = prefetch
        self._optional = optional
        self._receiver = backend.receiver(on_delivery, on_change, allowance)
        self._missing: set[str] = set()  # of the optional ones
        self._pause = FIRST_PAUSE
        self._next_try = 0.0
        self._in_trouble = self._was_well = False

    def follow(self, wanted: frozenset[str], wide: frozenset[str]) -> None:
        """Bring the consumers in line with `wanted`, connecting where necessary. `is_well` says whether that worked.

        Args:
            wanted: the queues to consume from.
            wide: the queues that may deliver more than one message at once.

        Raises TopologyError when the broker holds something unusable at the first connection; later on that is
        logged, and tried again, but for what can never be consumed from.
        """
        if time.monotonic() < self._next_try:
            return
        if self._was_well and not self._in_trouble and self._receiver.trouble:
            self._complain(self._receiver.trouble)
        try:
            if not self._receiver.is_open:
                self._connect()
            self._reconcile(wanted)
        except BrokerUnavailable as error:
            self._back_off(error)
        except TopologyError as error:
            if not self._was_well or isinstance(error, UnusableQueue):
                raise
            self._back_off(error)
        else:
            self._receiver.widen(wide)
            self._report(wanted)

    def cancel_all(self) -> None:
        """Take nothing more; what was delivered can still be acknowledged."""
        for queue in self._receiver.consuming:
            self._cancel(queue)

    def hurry(self) -> None:
        """Have the broker deliver more, if what was settled is what it waits for; from any thread."""
        self._receiver.hurry()

    def close(self) -> None:
        """Send what is to be acknowledged and disconnect."""
        self._receiver.close()

    @property
    def is_well(self) -> bool:
        """Whether the connection stands and nothing was lost."""
        return self._was_well and not self._in_trouble

    def _connect(self) -> None:
        self._declare()
        self._receiver.open()
        depths = self._backend.depths(self._optional) if self._optional else []
        self._missing = {depth.queue for depth in depths if not depth.exists}

    def _declare(self) -> None:
        warn_once(self._backend.alias, self._backend.declare(self._topology))

    def _reconcile(self, wanted: frozenset[str]) -> None:
        consuming = self._receiver.consuming
        for queue in consuming - wanted:
            self._cancel(queue)
        for queue in sorted(wanted - consuming - self._missing):
            self._consume(queue)

    def _consume(self, queue: str) -> None:
        try:
            self._receiver.consume(queue, self._prefetch[queue])
        except UnusableQueue:
            raise
        except TopologyError:
            if self._was_well:
                self._consume_anew(queue)
            elif queue in self._optional:
                self._missing.add(queue)
            else:
                raise

    def _consume_anew(self, queue: str) -> None:
        """Declare what someone deleted, the dead-letter queue included, and consume from it."""
        self._declare()
        if not self._receiver.is_open:
            self._receiver.open()
        try:
            self._receiver.consume(queue, self._prefetch[queue])
        except TopologyError:
            if queue not in self._optional:
                raise
            self._missing.add(queue)

    def _cancel(self, queue: str) -> None:
        try:
            self._receiver.cancel(queue)
        except MessagingError:  # with the connection went its consumers
            logger.debug("The consumer on %s was gone already.", queue)

    def _report(self, wanted: frozenset[str]) -> None:
        if self._in_trouble or not self._was_well:
            again = " again" if self._was_well else ""
            names = ", ".join(sorted(wanted - self._optional - self._missing)) or "no queue (all are paused)"
            level = logging.WARNING if again else logging.INFO  # who heard of the loss hears of its end
            logger.log(level, "Connected to %s%s; consuming %s.", self._backend.settings.safe_url, again, names)
        self._in_trouble, self._was_well = False, True
        self._pause, self._next_try = FIRST_PAUSE, 0.0

    def _back_off(self, error: MessagingError) -> None:
        if not self._in_trouble:
            self._complain(str(error))
        self._next_try = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

    def _complain(self, why: str) -> None:
        self._in_trouble = True
        kept = "" if self._receiver.is_open else "; nothing is lost"  # with a deleted queue, what it held is gone
        logger.warning("%s: %s Trying again until it works%s.", self._backend.settings.safe_url, why, kept)
