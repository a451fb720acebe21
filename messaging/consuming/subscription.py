"""The consumer's side of the broker: connected, declared and consuming what is wanted, or trying to be."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping

from messaging.backends.allowance import Allowance
from messaging.backends.base import Backend, Delivery, Topology
from messaging.exceptions import BrokerUnavailable, MessagingError, QueueUnavailable, TopologyError, UnusableQueue
from messaging.topology import warn_once
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries to reach the broker, or a queue


class Pause:
    """When the next try is due, and how long to wait if that fails: twice as long each time, but for some chance."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE
        self._next_try = 0.0

    @property
    def is_over(self) -> bool:
        """Whether a try is due."""
        return time.monotonic() >= self._next_try

    def begin(self) -> None:
        """A try has failed."""
        self._next_try = time.monotonic() + self._seconds * random.uniform(0.5, 1.0)
        self._seconds = min(LONGEST_PAUSE, self._seconds * 2)


class Subscription:
    """Keeps consumers on queues, through losses of the broker and deletions of queues. One thread calls it.

    A queue that cannot be used now, while the broker can, is tried again and again. The others are consumed meanwhile.

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
        self._away: dict[str, Pause] = {}  # queues that cannot be used now
        self._unreached: Pause | None = None  # while messages may not reach a queue
        self._pause = Pause()
        self._in_trouble = self._was_well = False

    def follow(self, wanted: frozenset[str], wide: frozenset[str]) -> None:
        """Bring the consumers in line with `wanted`, connecting where necessary. `is_well` says whether that worked.

        Args:
            wanted: the queues to consume from.
            wide: the queues that may deliver more than one message at once.

        Raises TopologyError when the broker holds something unusable at the first connection; later on that is
        logged, and tried again, but for what can never be consumed from.
        """
        if not self._pause.is_over:
            return
        if self._was_well and not self._in_trouble and self._receiver.trouble:
            self._complain(self._receiver.trouble)
        try:
            if not self._receiver.is_open:
                self._connect()
            self._reconcile(wanted - self._missing)
            if self._unreached is not None and self._unreached.is_over:
                self._declare_again(self._unreached)
        except BrokerUnavailable as error:
            self._back_off(error)
        except TopologyError as error:
            if not self._was_well or isinstance(error, UnusableQueue):
                raise
            self._back_off(error)
        else:
            self._receiver.widen(wide)
            self._report()

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

    @property
    def consuming(self) -> frozenset[str]:
        """The queues that deliver. From any thread."""
        return self._receiver.consuming

    @property
    def away(self) -> frozenset[str]:
        """The queues that are wanted and cannot be used now. From any thread."""
        return frozenset(list(self._away))

    def _connect(self) -> None:
        self._declare()
        self._receiver.open()
        depths = self._backend.depths(self._optional) if self._optional else []
        self._missing = {depth.queue for depth in depths if not depth.exists}

    def _declare(self) -> None:
        try:
            warn_once(self._backend.alias, self._backend.declare(self._topology))
        except TopologyError:
            self._unreached = None
            raise
        except QueueUnavailable as error:
            if error.unusable and not self._was_well:
                raise TopologyError(error.unusable) from error
            if self._unreached is None:
                logger.warning("%s This is tried again until it works.", error)
            self._unreached = self._unreached or Pause()
            self._unreached.begin()
        else:
            if self._unreached is not None:
                logger.warning("Messages can reach all queues again.")
            self._unreached = None

    def _declare_again(self, pause: Pause) -> None:
        try:
            self._declare()
        except BrokerUnavailable as error:  # what is consumed goes on
            logger.debug("The topology cannot be declared yet: %s", error)
            pause.begin()

    def _reconcile(self, wanted: frozenset[str]) -> None:
        consuming = self._receiver.consuming
        for queue in (consuming | self._away.keys()) - wanted:
            self._cancel(queue)
            self._away.pop(queue, None)
        for queue in sorted(wanted - consuming):
            if queue not in self._away or self._away[queue].is_over:
                self._consume(queue)

    def _consume(self, queue: str) -> None:
        try:
            self._receiver.consume(queue, self._prefetch[queue])
        except QueueUnavailable as error:
            self._leave_for_now(queue, error)
        except UnusableQueue:
            raise
        except TopologyError:
            if self._was_well:
                self._consume_anew(queue)
            elif queue in self._optional:
                self._missing.add(queue)
            else:
                raise
        if queue in self._away and queue in self._receiver.consuming:
            logger.warning("%s: queue %s is back, and is consumed.", self._backend.settings.safe_url, queue)
        if queue in self._missing | self._receiver.consuming:
            self._away.pop(queue, None)

    def _leave_for_now(self, queue: str, error: QueueUnavailable) -> None:
        if queue not in self._away:
            where, why = self._backend.settings.safe_url, one_line(error)
            logger.warning("%s: queue %s is away, the others are consumed. %s", where, queue, why)
        self._cancel(queue)  # whatever it was lost over is said
        self._away.setdefault(queue, Pause()).begin()

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

    def _report(self) -> None:
        if self._in_trouble or not self._was_well:
            again = " again" if self._was_well else ""
            names = ", ".join(sorted(self._receiver.consuming - self._optional)) or "no queue (all are paused, or away)"
            level = logging.WARNING if again else logging.INFO  # who heard of the loss hears of its end
            logger.log(level, "Connected to %s%s; consuming %s.", self._backend.settings.safe_url, again, names)
        self._in_trouble, self._was_well = False, True
        self._pause = Pause()

    def _back_off(self, error: MessagingError) -> None:
        if not self._in_trouble:
            self._complain(str(error))
        self._pause.begin()

    def _complain(self, why: str) -> None:
        self._in_trouble = True
        kept = "" if self._receiver.is_open else "; nothing is lost"  # with a deleted queue, what it held is gone
        logger.warning("%s: %s Trying again until it works%s.", self._backend.settings.safe_url, why, kept)
