"""pika's connection, with incoming frames read by us, and frames of ours written as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika

from messaging.backends.rabbitmq.frames import Confirm, Deliver, take_frames
from messaging.db.forks import keep

_READ_SIZE = 65536
_STAY = 1.0  # seconds between two signs of life that stand for a peer to which nobody listens


class LosslessConnection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection with frames read by us: headers stay bytes, and confirms and deliveries take a short cut.

    Overriding the reading here leaves pika as it is for everybody else in the process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inbound = bytearray()
        self._arriving: dict[int, Deliver] = {}
        self.confirms: dict[int, Callable[[Confirm], None]] = {}
        self.consumers: dict[int, Callable[[Deliver], None]] = {}
        self.on_content: Callable[[Deliver], None] = _nothing  # called with a delivery whose size has become known
        self._is_paused = False
        super().__init__(*args, **kwargs)

    def _on_data_available(self, data_in: bytes) -> None:
        self._inbound += data_in
        for frame, size in take_frames(self._inbound):
            self.bytes_received += size
            if isinstance(frame, Confirm):
                handler = self.confirms.get(frame.channel_number)
                if handler is not None:
                    handler(frame)
            elif not self._take_delivery(frame):
                self._process_frame(frame)

    def _take_delivery(self, frame: Any) -> bool:
        """Whether a frame belongs to a delivery, which goes to its channel's consumer once it is complete."""
        number = frame.channel_number
        # Never in place of one that is incomplete: a later acknowledgement of all before would cover it.
        if isinstance(frame, Deliver) and number not in self._arriving:
            self._arriving[number] = frame
            return True
        delivery = self._arriving.get(number)
        if delivery is None:
            return False
        is_first = not delivery.properties
        delivery.add(frame)
        if is_first:
            self.on_content(delivery)
        if delivery.is_complete:
            del self._arriving[number]
            consumer = self.consumers.get(number)
            if consumer is not None:
                consumer(delivery)
        return True

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = _READ_SIZE  # pika reads 4 KB at a time
        keep(transport._sock)
        self._listen(transport)
        super()._proto_connection_made(transport)

    def _listen(self, transport: Any) -> None:
        """Have the transport read by way of us: one with TLS goes on with what it has read ahead, whoever stops it."""
        read = transport._on_socket_readable

        def read_unless_paused() -> None:
            if not self._is_paused:
                read()
            elif transport._state == transport._STATE_ACTIVE:
                transport._nbio.remove_reader(transport._sock.fileno())

        transport._on_socket_readable = read_unless_paused
        transport._nbio.set_reader(transport._sock.fileno(), read_unless_paused)

    @property
    def is_paused(self) -> bool:
        """Whether nothing is read."""
        return self._is_paused

    @property
    def arriving(self) -> int:
        """Bytes of the bodies that are being read, and will be held."""
        return sum(delivery.size for delivery in self._arriving.values() if delivery.spool is None)

    def pause(self) -> None:
        """Read no more, but for about 100 KB; heartbeats are sent, and the peer's are taken to have come."""
        if not self._is_paused:
            self._is_paused = True
            self._stay()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            transport = self._transport
            if transport is not None and transport._state == transport._STATE_ACTIVE:
                transport._nbio.set_reader(transport._sock.fileno(), transport._on_socket_readable)
                transport._nbio.add_callback_threadsafe(transport._on_socket_readable)  # for what TLS has read ahead

    def _stay(self) -> None:
        """Nobody can tell whether a peer lives to which nobody listens."""
        if self._is_paused and self.is_open:
            self.bytes_received += 1
            self.later(_STAY, self._stay)

    def write(self, data: bytes) -> None:
        """Send frames that are already encoded, in one piece."""
        if data and self.is_open:
            self.bytes_sent += len(data)
            self._adapter_emit_data(data)

    @property
    def unsent(self) -> int:
        """Bytes that the operating system has not taken yet."""
        return self._get_write_buffer_size() if self._transport is not None else 0

    def abort(self, error: Exception) -> None:
        """Drop the connection without the handshake that a dead peer would never answer."""
        if self._transport is not None:
            self._terminate_stream(error)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back in the I/O thread after `delay` seconds."""
        self._adapter_call_later(delay, callback)


def _nothing(_: Deliver) -> None:
    """For a connection that reads all that comes."""
