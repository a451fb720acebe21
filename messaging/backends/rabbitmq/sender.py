"""Publishing: thousands of messages under way, each with its own proven outcome."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from messaging.backends.base import Fate, Outcome, Outgoing, Sender
from messaging.backends.rabbitmq.connection import CONNECT_TIMEOUT, Connection, complete
from messaging.backends.rabbitmq.endpoint import Endpoint
from messaging.backends.rabbitmq.errors import Loss
from messaging.backends.rabbitmq.lane import Lane
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable

_WATCH_INTERVAL = 1.0
_RENEW_PAUSE = 1.0  # seconds between two channels, while a queue refuses messages
_PATIENCE = 5.0  # seconds for what is under way on a channel that is to be replaced


class RabbitSender(Endpoint, Sender):
    """One publishing connection. `_lane` and what it holds belong to the I/O thread, the rest to `_condition`."""

    def __init__(self, settings: AliasSettings) -> None:
        super().__init__(settings, "publisher")
        self._condition = threading.Condition()
        self._news: list[Outcome] = []
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

    def outcomes(self, timeout: float) -> list[Outcome]:
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
        def refused(outcomes: list[Outcome]) -> None:
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

    def _report(self, outcomes: list[Outcome]) -> None:
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
                outcomes += [Outcome(message.token, Fate.UNKNOWN, reason) for message in messages]
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
