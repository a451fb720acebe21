"""Publishing: thousands of messages under way on a channel in confirm mode, each with its own proven outcome."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from pika import exceptions

from messaging.backends.base import Fate, Outgoing, Sender, SendOutcome
from messaging.backends.rabbitmq.connection import CONNECT_TIMEOUT, Connection, Endpoint, complete
from messaging.backends.rabbitmq.errors import HARD_ERRORS, NO_EXCHANGE, Loss
from messaging.backends.rabbitmq.frames import Confirm, LosslessConnection, RawProperties, publish_frames, text
from messaging.backends.rabbitmq.logs import logger
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable, WireError
from messaging.supervising.log_records import about
from messaging.wire.envelope import ROW
from messaging.wire.fields import printable
from messaging.wire.properties import Properties, prepend_header

_CHUNK = 256 * 1024  # bytes per write: one system call for many small messages
_WATCH_INTERVAL = 1.0
_RENEW_PAUSE = 1.0  # seconds between two channels, while a queue refuses messages
_PATIENCE = 5.0  # seconds for what is under way on a channel that is to be replaced


class Lane:
    """One channel's life. All methods run in the I/O thread.

    Args:
        io: the open connection.
        on_ready: called when messages may be written.
        on_refused: called with the outcomes of what was under way when the broker closed the channel.
        report: takes outcomes as they become known.
        on_stale: called when the lane is stale and nothing is under way on it any more.

    Attributes:
        is_ready: whether messages may be written.
        stale_since: when the broker first refused a message, if it did.
        confirmed: how many messages were answered.
    """

    def __init__(
        self,
        io: LosslessConnection,
        on_ready: Callable[[], None],
        on_refused: Callable[[list[SendOutcome]], None],
        report: Callable[[list[SendOutcome]], None],
        on_stale: Callable[[], None],
    ) -> None:
        self._io = io
        self._on_ready = on_ready
        self._on_refused = on_refused
        self._report = report
        self._on_stale = on_stale
        self._last_tag = 0
        self._pending: dict[int, Outgoing] = {}  # by delivery tag, so in order
        self._returned: dict[str, str] = {}
        self.is_ready = False
        self.stale_since: float | None = None
        self.confirmed = 0
        self._channel = io.channel(on_open_callback=self._opened)
        self._channel.add_on_close_callback(self._closed)

    @property
    def busy(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._pending) or not self.is_ready

    def write(self, messages: Iterable[Outgoing]) -> None:
        """Write messages; one that cannot be encoded is refused alone."""
        pieces: list[bytes] = []
        size = 0
        number, frame_max = self._channel.channel_number, int(self._io.params.frame_max)
        for message in messages:
            try:
                properties = prepend_header(message.properties, ROW, message.token)
                pieces += publish_frames(
                    number,
                    message.exchange,
                    message.routing_key,
                    properties,
                    message.body,
                    message.mandatory,
                    frame_max,
                )
            except WireError as error:
                self._report([SendOutcome(message.token, Fate.REFUSED, str(error))])
                continue
            self._last_tag += 1
            self._pending[self._last_tag] = message
            size += len(message.body) + len(properties)
            if size >= _CHUNK:
                self._io.write(b"".join(pieces))
                pieces, size = [], 0
        self._io.write(b"".join(pieces))

    def close(self) -> list[SendOutcome]:
        """Close the channel; nobody will know what became of messages that are under way. Returns their fates."""
        self.is_ready = False
        self._io.confirms.pop(self._channel.channel_number, None)
        self._channel.close()
        return [self._known(message, Fate.UNANSWERED, "Its channel was given up.") for message in self._take()]

    def end(self, loss: Loss) -> list[SendOutcome]:
        """The fates of what is under way when the connection is lost."""
        if loss.code in HARD_ERRORS:
            return self._give_up(f"The broker closed the connection: {loss.code} {loss.reason}")
        fate = Fate.UNANSWERED if loss.unanswered else Fate.UNKNOWN
        return [self._known(message, fate, f"The connection was lost: {loss.reason}") for message in self._take()]

    def _opened(self, channel: Any) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(lambda _: None, callback=self._selected)

    def _selected(self, _: Any) -> None:
        self._io.confirms[self._channel.channel_number] = self._on_confirm
        self.is_ready = True
        self._on_ready()

    def _closed(self, channel: Any, error: Exception) -> None:
        self.is_ready = False
        self._io.confirms.pop(channel.channel_number, None)
        if isinstance(error, exceptions.ChannelClosedByBroker):  # else the connection's own end says more
            self._on_refused(self._refused(Loss.of(error)))

    def _refused(self, loss: Loss) -> list[SendOutcome]:
        reason = f"The broker refused it: {loss.code} {loss.reason}"
        if loss.code != 404:
            return self._give_up(reason)
        match = NO_EXCHANGE.search(loss.reason)
        missing = match["name"] if match else None
        if len(self._pending) == 1:
            return [self._known(message, Fate.UNROUTABLE, reason) for message in self._take()]
        return [
            self._known(message, Fate.UNROUTABLE if printable(message.exchange) == missing else Fate.SUSPECT, reason)
            for message in self._take()
        ]

    def _give_up(self, reason: str) -> list[SendOutcome]:
        """Only one under way: it is the culprit. Several: any of them may be."""
        fate = Fate.REFUSED if len(self._pending) == 1 else Fate.SUSPECT
        return [self._known(message, fate, reason) for message in self._take()]

    def _take(self) -> list[Outgoing]:
        messages = list(self._pending.values())
        self._pending.clear()
        return messages

    def _known(self, message: Outgoing, fate: Fate, reason: str) -> SendOutcome:
        """The outcome, unless the broker had returned the message before: then that is what became of it."""
        returned = self._returned.pop(message.token, None)
        if returned is not None:
            return SendOutcome(message.token, Fate.UNROUTABLE, returned)
        return SendOutcome(message.token, fate, reason)

    def _on_confirm(self, confirm: Confirm) -> None:
        pending = self._pending
        if confirm.multiple:
            last = confirm.tag or self._last_tag
            tags = []
            for tag in pending:
                if tag > last:
                    break
                tags.append(tag)
            messages = [pending.pop(tag) for tag in tags]
        else:
            message = pending.pop(confirm.tag, None)
            messages = [message] if message is not None else []
        self.confirmed += len(messages)
        if not confirm.acked:
            self.stale_since = self.stale_since or time.monotonic()
            reason = "The broker did not take it for now (a full or unavailable queue)."
            outcomes = [SendOutcome(message.token, Fate.NACKED, reason) for message in messages]
        elif self._returned:
            outcomes = [self._known(message, Fate.CONFIRMED, "") for message in messages]
        else:
            outcomes = [SendOutcome(message.token, Fate.CONFIRMED) for message in messages]
        self._report(outcomes)
        if self.stale_since is not None and not pending:
            self._on_stale()

    def _on_return(self, _channel: Any, method: Any, properties: RawProperties, _body: bytes) -> None:
        found = Properties.decode(properties.raw)
        token = found.headers.get(ROW)
        address = f'exchange "{printable(text(method.exchange))}", routing key "{printable(text(method.routing_key))}"'
        if isinstance(token, str):
            self._returned[token] = f"No queue takes it ({method.reply_code} {text(method.reply_text)}): {address}."
        else:
            extra = about(message_id=found.message_id, routing_key=text(method.routing_key))
            logger.error("The broker returned a message without its %s header: %s.", ROW, address, extra=extra)


class RabbitSender(Endpoint, Sender):
    """One publishing connection. `_lane` and what it holds belong to the I/O thread, the rest to `_condition`."""

    def __init__(self, settings: AliasSettings) -> None:
        super().__init__(settings, "publisher")
        self._condition = threading.Condition()
        self._news: list[SendOutcome] = []
        self._inbox: deque[Sequence[Outgoing]] = deque()
        self._under_way = 0
        self._woken = False
        self._lane: Lane | None = None
        self._next_renewal = 0.0
        self._stall_after = 2.0 * (settings.heartbeat or 60)
        self._progress: tuple[object, ...] = ()
        self._progress_at = 0.0

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Hand over messages; see the contract."""
        with self._condition:
            connection = self._connection
            if connection is None or not connection.is_open:
                raise self._unavailable()
            connection.run(lambda: self._pump(connection))  # raises before anything is handed over
            self._inbox.append(messages)
            self._under_way += len(messages)

    def outcomes(self, timeout: float) -> list[SendOutcome]:
        """Wait up to `timeout` seconds for news and return all there is."""
        with self._condition:
            self._condition.wait_for(lambda: self._news or self._woken, timeout)
            self._woken = False
            news, self._news = self._news, []
            self._under_way -= len(news)
            return news

    def wake(self) -> None:
        """Make a waiting `outcomes()` return now, or the next one if none waits."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    @property
    def under_way(self) -> int:
        """How many messages were handed over whose outcome has not been returned by `outcomes()`."""
        return self._under_way

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has stopped reading from publishers."""
        connection = self._connection
        return connection is not None and connection.is_open and connection.is_blocked

    @property
    def trouble(self) -> str:
        """Why the connection was last lost, or is blocked, in words."""
        connection = self._connection
        return connection.blocked_why if connection is not None and self.is_blocked else self._connection_trouble

    def close(self, timeout: float = 5.0) -> None:
        """Wait up to `timeout` seconds for what is under way, then disconnect."""
        deadline = time.monotonic() + timeout
        connection = self._connection
        if connection is None:
            return
        with self._condition:
            self._condition.wait_for(lambda: len(self._news) >= self._under_way, timeout)
        connection.close(max(1.0, deadline - time.monotonic()))

    def _prepare(self, connection: Connection) -> None:
        def start(future: Future[None]) -> None:
            connection.io.later(_WATCH_INTERVAL, lambda: self._watch(connection))
            self._open_lane(connection, lambda: complete(future, None))

        connection.call(start, CONNECT_TIMEOUT)

    def _open_lane(self, connection: Connection, on_ready: Callable[[], None]) -> None:
        def refused(outcomes: list[SendOutcome]) -> None:
            self._report(outcomes)
            self._open_lane(connection, lambda: self._pump(connection))

        self._lane = Lane(connection.io, on_ready, refused, self._report, lambda: self._pump(connection))

    def _pump(self, connection: Connection) -> None:
        """Write what was handed over. What a blocked broker would not read stays here."""
        lane = self._lane
        if lane is None or not lane.is_ready or connection.is_blocked:
            return
        if lane.stale_since is not None and time.monotonic() >= self._next_renewal:
            self._renew(lane, lane.stale_since, connection)
            return
        while not connection.is_blocked:
            with self._condition:
                if not self._inbox:
                    return
                messages = self._inbox.popleft()
            lane.write(messages)

    def _renew(self, lane: Lane, stale_since: float, connection: Connection) -> None:
        """Replace a channel on which a queue refused a message, once all on it is answered, or after a while.

        RabbitMQ may go on refusing on a channel that knew a quorum queue's leader before it died, each message after
        seconds. A new channel finds the leader that was elected.
        """
        now = time.monotonic()
        if lane.busy and now - stale_since < _PATIENCE:
            return
        self._next_renewal = now + _RENEW_PAUSE
        self._report(lane.close())
        self._open_lane(connection, lambda: self._pump(connection))

    def _report(self, outcomes: list[SendOutcome]) -> None:
        if outcomes:
            with self._condition:
                self._news += outcomes
                self._condition.notify_all()

    def _lost(self, _connection: Connection, loss: Loss) -> None:
        lane, self._lane = self._lane, None
        outcomes = lane.end(loss) if lane is not None else []
        with self._condition:
            reason = f"The connection was lost: {loss.reason}"
            for messages in self._inbox:
                outcomes += [SendOutcome(message.token, Fate.UNKNOWN, reason) for message in messages]
            self._inbox.clear()
            self._news += outcomes
            self._condition.notify_all()

    def _watch(self, connection: Connection) -> None:
        """Drop a connection that answers heartbeats but neither takes nor confirms messages."""
        if not connection.is_open or self._lane is None:
            return
        self._pump(connection)
        now = time.monotonic()
        progress = (self._lane, self._lane.confirmed, connection.io.unsent)
        if progress != self._progress or connection.is_blocked or not self._lane.busy:
            self._progress, self._progress_at = progress, now
        elif now - self._progress_at > self._stall_after:
            connection.io.abort(BrokerUnavailable(f"no confirm for {self._stall_after:g} seconds"))
            return
        connection.io.later(_WATCH_INTERVAL, lambda: self._watch(connection))
