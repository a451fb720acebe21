"""Publishing with pika alone as fast as it goes with confirms: many messages under way, none forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pika

from benchmarks.measuring import Broken

Publication = tuple[str, str, bytes, pika.BasicProperties]  # exchange, routing key, body, properties


class Pipeline:
    """A channel in confirm mode on a connection of its own. Raises Broken for what the broker does not take.

    Args:
        url: the broker.
        window: messages under way at most.
    """

    def __init__(self, url: str, window: int = 1000) -> None:
        self._window = window
        self._unconfirmed: dict[int, None] = {}
        self._source: Iterator[Publication] = iter(())
        self._tag = 0
        self._trouble = ""
        self._channel: Any = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=lambda _, error: self._fail(f"no connection: {error}"),
            on_close_callback=lambda _, error: self._fail(f"connection closed: {error}"),
        )
        self._loop()

    def send(self, messages: Iterable[Publication]) -> None:
        """Publish persistent and mandatory, and return when all are confirmed."""
        self._source = iter(messages)
        self._fill()
        if self._unconfirmed:
            self._loop()

    def close(self) -> None:
        """Close the connection."""
        if self._connection.is_open:
            self._connection.close()
            self._connection.ioloop.start()

    def _loop(self) -> None:
        self._connection.ioloop.start()
        if self._trouble:
            raise Broken(self._trouble)

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_return_callback(lambda _channel, method, *_: self._fail(f"returned: {method.reply_text}"))
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._connection.ioloop.stop())

    def _fill(self) -> None:
        while len(self._unconfirmed) < self._window:
            message = next(self._source, None)
            if message is None:
                return
            exchange, routing_key, body, properties = message
            self._tag += 1
            self._unconfirmed[self._tag] = None
            self._channel.basic_publish(exchange, routing_key, body, properties, mandatory=True)

    def _confirmed(self, frame: Any) -> None:
        tag, name = frame.method.delivery_tag, frame.method.NAME
        if name != "Basic.Ack":
            return self._fail(f"{name} for message {tag}")
        if frame.method.multiple:
            for earlier in [one for one in self._unconfirmed if one <= tag]:
                del self._unconfirmed[earlier]
        else:
            self._unconfirmed.pop(tag, None)
        if len(self._unconfirmed) <= self._window // 2:
            self._fill()
        if not self._unconfirmed:
            self._connection.ioloop.stop()
        return None

    def _fail(self, reason: str) -> None:
        """Let `send()` raise. A connection that `close()` closed ends here too."""
        self._trouble = reason
        self._connection.ioloop.stop()
