"""One connection to the broker, in an I/O thread of its own.

An `Endpoint` is what a sender and a receiver share: a connection that is replaced after a loss, and the words for its
trouble.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import pika
from pika.adapters.select_connection import IOLoop

from messaging.backends.rabbitmq import parameters
from messaging.backends.rabbitmq.errors import Loss
from messaging.backends.rabbitmq.frames import LosslessConnection, text
from messaging.backends.rabbitmq.logs import hush_this_thread, logger
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0


class Connection:
    """A connection and its I/O thread.

    Args:
        settings: the alias's.
        role: what it is for, such as "publisher".
        on_lost: called once, in the I/O thread, when the open connection ends for whatever reason.
    """

    def __init__(self, settings: AliasSettings, role: str, on_lost: Callable[[Loss], None] | None = None) -> None:
        self._settings = settings
        self._role = role
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._loss: Loss | None = None
        self._thread: threading.Thread | None = None
        self._candidate: pika.ConnectionParameters | None = None
        self.io: LosslessConnection
        self.is_blocked = False
        self.blocked_why = ""

    def open(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect to the first host that answers, `timeout` seconds each. Raises BrokerUnavailable."""
        failures = []
        for candidate in parameters.for_hosts(self._settings, self._role, timeout):
            self._candidate = candidate
            loss = self._try(candidate, timeout)
            if loss is None:
                return
            failures.append(f"{self.peer}: {loss.reason}")
        raise BrokerUnavailable(
            f'Cannot connect to RabbitMQ, virtual host "{self._settings.vhost}", as user '
            f'"{self._settings.username}" ({"; ".join(failures)}).'
        )

    @property
    def peer(self) -> str:
        """The host that it is connected to, or tried last."""
        return f"{self._candidate.host}:{self._candidate.port}" if self._candidate is not None else ""

    @property
    def is_open(self) -> bool:
        """Whether it was opened and has not ended."""
        return self._thread is not None and self._loss is None

    @property
    def lost_by(self) -> int | None:
        """The code with which the broker ended it."""
        return self._loss.code if self._loss is not None else None

    @property
    def in_io_thread(self) -> bool:
        """Whether the caller runs in the I/O thread, where nothing may wait."""
        return threading.current_thread() is self._thread

    def run(self, callback: Callable[[], None]) -> None:
        """Run a callback in the I/O thread soon. Raises BrokerUnavailable when the connection has ended."""
        with self._lock:
            if self._thread is None or self._loss is not None:
                raise self._unavailable()
            self.io.ioloop.add_callback_threadsafe(callback)

    def call(self, start: Callable[[Future[T]], None], timeout: float) -> T:
        """Run `start` in the I/O thread and wait up to `timeout` seconds for the future that it must complete.

        Raises BrokerUnavailable when the connection ends first or the answer does not come, else what the future got.
        """
        if self.in_io_thread:
            raise RuntimeError("A backend's callback must not call a method that waits for the broker.")
        future: Future[T] = Future()
        self._waiting.add(future)
        try:
            self.run(lambda: self._start(start, future))
            return future.result(timeout)
        except TimeoutError:
            self.blame()
            raise BrokerUnavailable(f"RabbitMQ at {self.peer} did not answer within {timeout:g} seconds.") from None
        finally:
            self._waiting.discard(future)

    def blame(self) -> None:
        """Have the next connections try other hosts first."""
        if self._candidate is not None:
            parameters.failed(self._candidate.host, self._candidate.port)

    def close(self, timeout: float = 5.0) -> bool:
        """Disconnect after what was handed over; a peer that does not answer is left after `timeout` seconds.

        Returns whether the I/O thread has ended, so that no more is heard of this connection.
        """
        thread = self._thread
        if thread is None:
            return True
        for attempt, seconds in ((self._close, timeout), (self._drop, 2.0)):
            with contextlib.suppress(BrokerUnavailable):
                self.run(attempt)
            if not self.in_io_thread:
                thread.join(seconds)
            if not thread.is_alive():
                return True
        return False

    def _try(self, candidate: pika.ConnectionParameters, timeout: float) -> Loss | None:
        opened: Future[Loss | None] = Future()
        thread = threading.Thread(
            target=self._main, args=(candidate, opened), name=f"messaging-rabbitmq-{self._role}", daemon=True
        )
        self._loss, self._thread = None, thread
        thread.start()
        try:
            loss = opened.result(timeout + 5)  # pika's own timeout comes first unless name resolution hangs
        except TimeoutError:
            loss = self._loss = Loss("it did not answer in time")
            self._thread = None  # so whatever becomes of that one is not heard of
            self.io.ioloop.add_callback_threadsafe(partial(self._close_late, self.io))
        if loss is not None:
            self._thread = None
        return loss

    def _main(self, candidate: pika.ConnectionParameters, opened: Future[Loss | None]) -> None:
        """The I/O thread."""
        hush_this_thread()
        try:
            loop = IOLoop()
        except OSError as error:  # no file may be opened any more, which is no host's fault
            self._loss = Loss(f"this process can open no connection: {error.strerror}")
            opened.set_result(self._loss)
            return
        loss: list[Loss] = []

        def end(_: Any, error: BaseException) -> None:
            loss.append(Loss.of(error))
            loop.stop()

        try:
            self.io = LosslessConnection(
                candidate,
                on_open_callback=lambda _: opened.set_result(None),
                on_open_error_callback=end,
                on_close_callback=end,
                custom_ioloop=loop,
            )
            self.io.add_on_connection_blocked_callback(self._on_blocked)
            self.io.add_on_connection_unblocked_callback(self._on_unblocked)
            loop.start()
        except Exception as error:  # noqa: BLE001 - a defect must end this connection visibly, not hang its users
            logger.exception("The I/O thread of the connection to %s failed.", self.peer)
            loss.append(Loss(f"internal error: {error!r}"))
        self._end(loss[0] if loss else Loss("the connection was abandoned"), opened)
        loop.close()

    def _end(self, loss: Loss, opened: Future[Loss | None]) -> None:
        if not self.in_io_thread:  # it was given up, and another host may have been tried since
            return
        with self._lock:
            self._loss = self._loss or loss
        if not loss.ours:
            self.blame()
        if not opened.done():
            opened.set_result(loss)
            return
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(self._unavailable())
        if self._on_lost is not None:
            self._on_lost(loss)

    def _start(self, start: Callable[[Future[T]], None], future: Future[T]) -> None:
        try:
            start(future)
        except pika.exceptions.AMQPConnectionError:  # it was lost before its end was announced here
            if not future.done():
                future.set_exception(self._unavailable())
        except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
            if not future.done():
                future.set_exception(error)

    def _close(self) -> None:
        if self.io.is_open:
            for channel in self.io._channels.values():
                channel._consumers.clear()  # else pika cancels each and rejects what arrives meanwhile
            self.io.close()

    def _close_late(self, io: LosslessConnection) -> None:
        if not (io.is_closing or io.is_closed):
            io.close()

    def _drop(self) -> None:
        if not self.io.is_closed:
            self.io.abort(pika.exceptions.ConnectionClosedByClient(200, "dropped"))

    def _on_blocked(self, _connection: Any, method_frame: Any) -> None:
        self.is_blocked = True
        self.blocked_why = text(method_frame.method.reason)
        logger.debug("%s takes no messages for now (%s).", self.peer, self.blocked_why)

    def _on_unblocked(self, _connection: Any, _method_frame: Any) -> None:
        self.is_blocked = False
        logger.debug("%s takes messages again.", self.peer)

    def _unavailable(self) -> BrokerUnavailable:
        reason = self._loss.reason if self._loss else "it is not open"
        return BrokerUnavailable(f"There is no connection to RabbitMQ at {self.peer}: {reason}.")


def complete(future: Future[T], result: T) -> None:
    """Complete a future that nobody may be waiting for any more."""
    if not future.done():
        future.set_result(result)


class Endpoint:
    """One connection at a time, opened again on request; subclasses say what to do with it.

    Args:
        settings: the alias's.
        role: "publisher" or "consumer", for the log and for the broker's list of connections.
    """

    def __init__(self, settings: AliasSettings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._opening = threading.Lock()
        self._connection: Connection | None = None
        self._last: Connection | None = None  # the one above, or one that did not get so far
        self._connection_trouble = ""

    def open(self) -> None:
        """Connect, or reconnect after a loss. Raises BrokerUnavailable. Does nothing when already open."""
        with self._opening:
            if self.is_open:
                return
            connection = Connection(self._settings, self._role, lambda loss: self._on_lost(connection, loss))
            try:
                self._await_end()
                self._last = connection
                connection.open()
                self._prepare(connection)
            except BrokerUnavailable as error:
                connection.close(0)
                self._begin_trouble(str(error))
                raise
            self._connection = connection
            self._end_trouble(connection)

    def _await_end(self) -> None:
        """Wait until the messages of the last connection are settled, which else would end what the next one began."""
        if self._last is not None and not self._last.close():
            raise BrokerUnavailable(f"The {self._role}'s last connection to {self._last.peer} has not ended yet.")

    @property
    def is_open(self) -> bool:
        """Whether the connection stands, as far as this side can tell."""
        return self._connection is not None and self._connection.is_open

    def _prepare(self, connection: Connection) -> None:
        """Make a new connection ready for use. Raises BrokerUnavailable."""

    def _lost(self, _connection: Connection, loss: Loss) -> None:
        """Settle what depended on a connection that ended; called in its I/O thread."""

    def _on_lost(self, connection: Connection, loss: Loss) -> None:
        if not loss.ours:
            code = f"{loss.code} " if loss.code else ""
            self._begin_trouble(f"The {self._role}'s connection to {connection.peer} was lost: {code}{loss.reason}.")
        self._lost(connection, loss)

    def _begin_trouble(self, words: str) -> None:
        if not self._connection_trouble:
            logger.debug("%s", words)
        self._connection_trouble = words

    def _end_trouble(self, connection: Connection) -> None:
        if self._connection_trouble:
            logger.debug("The %s is connected to %s again.", self._role, connection.peer)
        self._connection_trouble = ""

    def _unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(self._connection_trouble or f"The {self._role}'s connection is not open.")
