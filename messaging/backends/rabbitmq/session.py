"""Requests to the broker, one after another, each with its answer; a refused one costs its channel only."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from pika import exceptions, spec

from messaging.backends.rabbitmq.connection import Connection, complete
from messaging.backends.rabbitmq.errors import NOT_IMPLEMENTED, ChannelRefused, Loss, refusal
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable

_QUEUE: Any = spec.Queue  # pika's method classes are not typed
_EXCHANGE: Any = spec.Exchange
_UNENCODABLE = (exceptions.AMQPError, struct.error, AssertionError, TypeError, ValueError)


class Session:
    """A short-lived connection of its own, as a context manager. Entering raises BrokerUnavailable.

    Args:
        settings: the alias's.
        role: what it is for; shown in the broker's list of connections.
        timeout: seconds for the connection and for each answer.

    Every request raises ChannelRefused when the broker refuses it, BrokerUnavailable when it does not answer.
    """

    def __init__(self, settings: AliasSettings, role: str, timeout: float = 15.0) -> None:
        self._connection = Connection(settings, role)
        self._timeout = timeout
        self._channel: Any = None
        self._answer: Future[Any] | None = None

    def __enter__(self) -> Self:
        self._connection.open(min(self._timeout, 10.0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close(1.0)

    def look_at_queue(self, name: str) -> tuple[int, int]:
        """Ready messages and consumers of an existing queue."""
        method = self._request(_QUEUE.Declare(queue=name, passive=True), _QUEUE.DeclareOk)
        return int(method.message_count), int(method.consumer_count)

    def declare_queue(self, name: str, arguments: Mapping[str, Any], durable: bool = True) -> None:
        """Create a queue, or check that it is like this."""
        declare = _QUEUE.Declare(queue=name, durable=durable, arguments=dict(arguments))
        self._request(declare, _QUEUE.DeclareOk)

    def bind_queue(self, name: str, exchange: str, routing_key: str) -> None:
        """Bind a queue; binding it again does nothing."""
        bind = _QUEUE.Bind(queue=name, exchange=exchange, routing_key=routing_key, arguments={})
        self._request(bind, _QUEUE.BindOk)

    def unbind_queue(self, name: str, exchange: str, routing_key: str) -> None:
        """Remove a binding; one that does not exist is no error."""
        unbind = _QUEUE.Unbind(queue=name, exchange=exchange, routing_key=routing_key, arguments={})
        self._request(unbind, _QUEUE.UnbindOk)

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all that it holds; one that does not exist is no error."""
        self._request(_QUEUE.Delete(queue=name), _QUEUE.DeleteOk)

    def refuses_get(self, name: str) -> bool:
        """Whether a queue cannot be read message by message, which ends this connection: so it is with streams.

        Of another queue the first message goes out and back.
        """
        get: Any = spec.Basic.Get(queue=name, no_ack=False)
        try:
            self.look_at_queue(name)  # which opens the channel
            self._connection.run(lambda: self._channel._send_method(get))
            self.look_at_queue(name)
        except BrokerUnavailable:
            if self._connection.lost_by != NOT_IMPLEMENTED:
                raise
            return True
        return False

    def look_at_exchange(self, name: str) -> None:
        """Check that an exchange exists."""
        self._request(_EXCHANGE.Declare(exchange=name, passive=True), _EXCHANGE.DeclareOk)

    def declare_exchange(self, name: str, type_: str, durable: bool = True) -> None:
        """Create an exchange, or check that it is like this."""
        declare = _EXCHANGE.Declare(exchange=name, type=type_, durable=durable, arguments={})
        self._request(declare, _EXCHANGE.DeclareOk)

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange; one that does not exist is no error."""
        self._request(_EXCHANGE.Delete(exchange=name), _EXCHANGE.DeleteOk)

    def _request(self, method: Any, reply: Any) -> Any:
        return self._connection.call(lambda answer: self._start(method, reply, answer), self._timeout)

    def _start(self, method: Any, reply: Any, answer: Future[Any]) -> None:
        self._answer = answer
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.io.channel(on_open_callback=lambda _: self._send(method, reply, answer))
            self._channel.add_on_close_callback(self._closed)
        else:
            self._send(method, reply, answer)

    def _send(self, method: Any, reply: Any, answer: Future[Any]) -> None:
        try:
            self._channel._rpc(method, lambda frame: complete(answer, frame.method), [reply])
        except _UNENCODABLE as error:
            answer.set_exception(ChannelRefused(None, f"it cannot be encoded: {error or type(error).__name__}"))

    def _closed(self, _channel: Any, error: Exception) -> None:
        loss = Loss.of(error)
        if self._connection.io.is_open and self._answer is not None and not self._answer.done():
            self._answer.set_exception(refusal(loss))
