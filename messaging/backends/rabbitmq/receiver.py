"""Consuming: one channel per queue, so that a channel error over one queue leaves the others alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from weakref import WeakSet

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery, Receiver
from messaging.backends.rabbitmq.connection import Connection, Endpoint, complete
from messaging.backends.rabbitmq.errors import ChannelRefused, Loss, NoChannelLeft
from messaging.backends.rabbitmq.frames import Deliver
from messaging.backends.rabbitmq.logs import logger
from messaging.backends.rabbitmq.session import Session
from messaging.backends.rabbitmq.subscription import ChannelSubscription, Settlements
from messaging.backends.rabbitmq.topology.declare import capital
from messaging.backends.rabbitmq.topology.differences import stream
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable, TopologyError, UnusableQueue
from messaging.models.spools import Spool
from messaging.supervising.log_records import about

NO_CHANNEL = (
    'Queue "{}" cannot be consumed from: RabbitMQ allows {} channels on a connection, and each queue takes one, its '
    "dead-letter queue another. Raise channel_max at the broker, or have each `consume` name fewer queues."
)
_ANSWER_TIMEOUT = 30.0  # a queue that has just lost its leader takes its time


class RabbitReceiver(Endpoint, Receiver):
    """One consuming connection and its subscriptions."""

    def __init__(
        self,
        settings: AliasSettings,
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> None:
        super().__init__(settings, "consumer")
        self._on_delivery = on_delivery
        self._on_change = on_change
        self._is_limited = allowance is not None
        self._allowance = allowance or Allowance()
        self._allowance.on_room = self._on_room
        self._waiting_for_answers = 0  # in the I/O thread
        self._is_closing = False
        self._lock = threading.Lock()
        self._subscriptions: dict[str, ChannelSubscription] = {}
        self._alive: WeakSet[ChannelSubscription] = WeakSet()  # cancelled ones too, while deliveries are out
        self._troubles: dict[str, str] = {}  # by queue
        self._suspects: dict[str, bool] = {}  # queues that seem to be streams; False of those that are none
        self.settlements = Settlements()

    def consume(self, queue: str, prefetch: int) -> None:
        """Start a consumer; see the contract."""
        connection = self._connection
        if connection is None or not connection.is_open:
            raise self._unavailable()
        if queue in self.consuming:
            return
        self._refuse_stream(queue)
        subscription = ChannelSubscription(queue, prefetch, self, connection, is_narrow=self._is_limited)
        try:
            self._call(connection, subscription.start, _ANSWER_TIMEOUT)
        except ChannelRefused as refusal:
            words = f'Queue "{queue}" cannot be consumed from: {refusal.code} {refusal.reason}.'
            self._set_trouble(queue, words)
            raise TopologyError(words + _way_out(refusal.code, queue)) from None
        except NoChannelLeft:
            consuming = len(self.consuming)  # besides these, some may be about to close
            kind = UnusableQueue if consuming >= len(self._alive) else TopologyError
            raise kind(NO_CHANNEL.format(queue, consuming)) from None
        except BrokerUnavailable:
            subscription.abandon()
            raise
        with self._lock:
            if subscription.is_live:
                self._subscriptions[queue] = subscription
                self._alive.add(subscription)
        if self._troubles.pop(queue, ""):
            logger.debug('Queue "%s" is consumed again.', queue)

    def suspects(self, queue: str) -> bool:
        """Note that a delivery looks like a stream's; False where that was looked into before. In the I/O thread."""
        return self._suspects.setdefault(queue, True)

    def widen(self, queues: Collection[str]) -> None:
        """Let consumers that began with one delivery have more."""
        with self._lock:
            narrow = [one for one in self._subscriptions.values() if one.is_narrow and one.queue in queues]
        for subscription in narrow:
            with contextlib.suppress(BrokerUnavailable):
                subscription.connection.run(subscription.widen)

    def hurry(self) -> None:
        """Write acknowledgements without waiting for more."""
        self.settlements.hurry()

    def cancel(self, queue: str) -> None:
        """Stop the consumer on `queue`; what was delivered can still be settled."""
        with self._lock:
            subscription = self._subscriptions.pop(queue, None)
        self._troubles.pop(queue, None)
        if subscription is not None:
            with contextlib.suppress(BrokerUnavailable, ChannelRefused):  # then it has stopped all the more
                self._call(subscription.connection, subscription.stop, _ANSWER_TIMEOUT)

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a live consumer."""
        with self._lock:
            return frozenset(name for name, one in self._subscriptions.items() if one.is_live)

    @property
    def trouble(self) -> str:
        """Why the connection or a consumer was last lost, in words."""
        return self._connection_trouble or " ".join(list(self._troubles.values()))

    def close(self, timeout: float = 5.0) -> None:
        """Send the acknowledgements handed over so far, then disconnect."""
        deadline = time.monotonic() + timeout
        connection = self._connection
        if connection is None:
            return
        with self._lock:
            subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        with contextlib.suppress(BrokerUnavailable, ChannelRefused):
            self._is_closing = True
            connection.run(lambda: self._read_or_not(connection))
            for subscription in subscriptions:
                connection.call(subscription.stop, max(0.1, deadline - time.monotonic()))
            connection.call(self._write_settled, max(0.1, deadline - time.monotonic()))
        settling = max((one.settling for one in list(self._alive)), default=0.0)
        time.sleep(max(0.0, min(settling, deadline - time.monotonic())))
        connection.close(max(0.5, deadline - time.monotonic()))

    def deliver(self, delivery: Delivery) -> None:
        """Pass a delivery on; called in the I/O thread."""
        try:
            self._on_delivery(delivery)
        except Exception:  # noqa: BLE001 - it promised not to raise; the message must not hang for that
            text = 'A delivery from queue "%s" was not taken and goes back.'
            logger.exception(text, delivery.queue, extra=about(delivery))
            delivery.requeue()

    def fits(self, size: float) -> int:
        """How many messages of that size may be held."""
        return self._allowance.fits(size)

    def gone(self, subscription: ChannelSubscription, words: str) -> None:
        """A consumer ended without being asked to; called in the I/O thread."""
        with self._lock:
            if self._subscriptions.get(subscription.queue) is subscription:
                del self._subscriptions[subscription.queue]
        self._set_trouble(subscription.queue, words)
        self._on_change()

    def _prepare(self, connection: Connection) -> None:
        self._waiting_for_answers, self._is_closing = 0, False
        if self._is_limited:
            connection.io.on_content = lambda message: self._weigh(connection, message)

    def _call(self, connection: Connection, start: Callable[[Future[None]], None], timeout: float) -> None:
        """Ask the broker for something, and read what comes before its answer, however much is held."""
        connection.run(lambda: self._expect_answer(connection, 1))
        try:
            connection.call(start, timeout)
        finally:
            with contextlib.suppress(BrokerUnavailable):
                connection.run(lambda: self._expect_answer(connection, -1))

    def _expect_answer(self, connection: Connection, change: int) -> None:
        self._waiting_for_answers += change
        self._read_or_not(connection)

    def _weigh(self, connection: Connection, message: Deliver) -> None:
        """What is to become of a body whose size is known, and of what comes after it."""
        limit = self._allowance.limit
        if limit is not None and message.size > limit:
            message.spool = Spool(message.size, limit)
        self._read_or_not(connection)

    def _read_or_not(self, connection: Connection) -> None:
        """Read on where there is room, or it must be; in the I/O thread."""
        io, allowance = connection.io, self._allowance
        if allowance.has_room(io.arriving) or self._waiting_for_answers or self._is_closing:
            allowance.is_waited_for = False
            io.resume()
            return
        allowance.is_waited_for = True
        if allowance.has_room(io.arriving):  # since
            allowance.is_waited_for = False
        else:
            io.pause()

    def _on_room(self) -> None:
        """Something was let go of; from any thread."""
        connection = self._connection
        if connection is not None:
            self._allowance.is_waited_for = False
            with contextlib.suppress(BrokerUnavailable):
                connection.run(lambda: self._read_or_not(connection))

    def _refuse_stream(self, queue: str) -> None:
        """Look into a suspicion: whoever may publish can write the header of a stream."""
        if self._suspects.get(queue):
            with Session(self._settings, "stream check") as session:
                self._suspects[queue] = session.refuses_get(queue)
            if self._suspects[queue]:
                difference = stream(queue)
                raise UnusableQueue(f"{capital(difference.subject)}: {difference.problem} {difference.way_out}")

    def _write_settled(self, written: Future[None]) -> None:
        self.settlements.write()
        complete(written, None)

    def _lost(self, _connection: Connection, loss: Loss) -> None:
        with self._lock:
            self._subscriptions.clear()
        self.settlements.forget()
        self._troubles.clear()
        if not loss.ours:
            self._on_change()

    def _set_trouble(self, queue: str, words: str) -> None:
        if queue not in self._troubles:
            logger.debug("%s", words)
        self._troubles[queue] = words


def _way_out(code: int | None, queue: str) -> str:
    if code == 404:
        return f' Create it: `manage.py topology` declares "{queue}" unless its settings say "declare": False.'
    if code == 403:
        return " Give the broker's user the permission to read it, or end its exclusive consumer."
    if code == 405:
        return " It is exclusive to another connection; use another queue name."
    return ""
