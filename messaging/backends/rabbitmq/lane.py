"""A channel in confirm mode, and the messages under way on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from pika import exceptions

from messaging.backends.base import Fate, Outcome, Outgoing
from messaging.backends.rabbitmq.errors import HARD_ERRORS, NO_EXCHANGE, Loss
from messaging.backends.rabbitmq.frames import Confirm, RawProperties, publish_frames, text
from messaging.backends.rabbitmq.logs import logger
from messaging.backends.rabbitmq.lossless import LosslessConnection
from messaging.exceptions import WireError
from messaging.wire.envelope import ROW
from messaging.wire.fields import printable
from messaging.wire.properties import Properties, prepend_header

_CHUNK = 256 * 1024  # bytes per write: one system call for many small messages


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
        on_refused: Callable[[list[Outcome]], None],
        report: Callable[[list[Outcome]], None],
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
                self._report([Outcome(message.token, Fate.REFUSED, str(error))])
                continue
            self._last_tag += 1
            self._pending[self._last_tag] = message
            size += len(message.body) + len(properties)
            if size >= _CHUNK:
                self._io.write(b"".join(pieces))
                pieces, size = [], 0
        self._io.write(b"".join(pieces))

    def close(self) -> list[Outcome]:
        """Close the channel; nobody will know what became of messages that are under way. Returns their fates."""
        self.is_ready = False
        self._io.confirms.pop(self._channel.channel_number, None)
        self._channel.close()
        return [self._known(message, Fate.UNANSWERED, "Its channel was given up.") for message in self._take()]

    def end(self, loss: Loss) -> list[Outcome]:
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

    def _refused(self, loss: Loss) -> list[Outcome]:
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

    def _give_up(self, reason: str) -> list[Outcome]:
        """Only one under way: it is the culprit. Several: any of them may be."""
        fate = Fate.REFUSED if len(self._pending) == 1 else Fate.SUSPECT
        return [self._known(message, fate, reason) for message in self._take()]

    def _take(self) -> list[Outgoing]:
        messages = list(self._pending.values())
        self._pending.clear()
        return messages

    def _known(self, message: Outgoing, fate: Fate, reason: str) -> Outcome:
        """The outcome, unless the broker had returned the message before: then that is what became of it."""
        returned = self._returned.pop(message.token, None)
        if returned is not None:
            return Outcome(message.token, Fate.UNROUTABLE, returned)
        return Outcome(message.token, fate, reason)

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
            outcomes = [Outcome(message.token, Fate.NACKED, reason) for message in messages]
        elif self._returned:
            outcomes = [self._known(message, Fate.CONFIRMED, "") for message in messages]
        else:
            outcomes = [Outcome(message.token, Fate.CONFIRMED) for message in messages]
        self._report(outcomes)
        if self.stale_since is not None and not pending:
            self._on_stale()

    def _on_return(self, _channel: Any, method: Any, properties: RawProperties, _body: bytes) -> None:
        token = Properties.decode(properties.raw).headers.get(ROW)
        address = f'exchange "{printable(text(method.exchange))}", routing key "{printable(text(method.routing_key))}"'
        if isinstance(token, str):
            self._returned[token] = f"No queue takes it ({method.reply_code} {text(method.reply_text)}): {address}."
        else:
            logger.error("The broker returned a message without its %s header: %s.", ROW, address)
