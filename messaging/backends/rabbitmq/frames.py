"""AMQP frames: the ones written often, built here, and the incoming ones, decoded without losing a byte of headers.

`LosslessConnection` is pika's, which reads and writes them so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions, frame, spec

from messaging.db.forks import keep
from messaging.exceptions import WireError
from messaging.wire.fields import decode_short, encode_short

if TYPE_CHECKING:
    from messaging.models.spools import Spool

Frame = Any  # pika's frame classes share no useful base

_HEAD = Struct(">BHI")
_END = b"\xce"
_PUBLISH_HEAD, _CONTENT_HEAD = Struct(">BHIIH"), Struct(">BHIHHQ")
_SETTLE = Struct(">BHIIQBc")
_CONFIRM = Struct(">QB")
_DELIVER = Struct(">QB")
_METHOD = Struct(">I")
_OVERHEAD = _HEAD.size + len(_END)
_BASIC = spec.BasicProperties.INDEX
ACK, NACK, DELIVER = spec.Basic.Ack.INDEX, spec.Basic.Nack.INDEX, spec.Basic.Deliver.INDEX
_READ_SIZE = 65536
_STAY = 1.0  # seconds between two signs of life that stand for a peer to which nobody listens


class RawProperties(spec.BasicProperties):  # type: ignore[misc]
    """The properties of an incoming message, left encoded: pika's own decoding loses values and drops connections."""

    def __init__(self, raw: bytes) -> None:  # the base would set fourteen attributes that nobody reads
        self.raw = raw


class Confirm:
    """A basic.ack or basic.nack: by far the most frequent frames for a publisher, so they bypass pika's callbacks."""

    __slots__ = ("acked", "channel_number", "multiple", "tag")

    def __init__(self, channel_number: int, payload: bytes, acked: bool) -> None:
        self.channel_number = channel_number
        self.tag, bits = _CONFIRM.unpack_from(payload, _METHOD.size)
        self.multiple = bool(bits & 1)
        self.acked = acked


class Deliver:
    """A basic.deliver, with the content that follows it: what a consumer gets most, so it bypasses pika as well.

    Attributes:
        properties: its header's flags and property list, still encoded.
        size: bytes of the whole body; 0 until the header has come.
        spool: what takes the body instead, where it is too large to be held.
        body: complete once `is_complete`.
    """

    __slots__ = (
        "_missing", "_pieces", "channel_number", "exchange", "properties", "redelivered", "routing_key", "size",
        "spool", "tag",
    )  # fmt: skip

    def __init__(self, channel_number: int, payload: bytes) -> None:
        self.channel_number = channel_number
        offset = _METHOD.size + 1 + payload[_METHOD.size]  # behind the consumer's tag: a channel has one consumer
        self.tag, bits = _DELIVER.unpack_from(payload, offset)
        self.redelivered = bool(bits & 1)
        self.exchange, offset = decode_short(payload, offset + _DELIVER.size)
        self.routing_key, _ = decode_short(payload, offset)
        self.properties = b""
        self.size = 0
        self.spool: Spool | None = None
        self._missing = -1  # bytes of the body; -1 until the header has come
        self._pieces: list[bytes] = []

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return self._missing == 0

    @property
    def body(self) -> bytes:
        """The payload."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def add(self, content: Frame) -> None:
        """Take in the next frame of its content. Raises pika's errors for one that does not belong there."""
        if self._missing < 0 and isinstance(content, frame.Header):
            self.properties, self._missing = content.properties.raw, content.body_size
            self.size = content.body_size
        elif isinstance(content, frame.Body) and len(content.fragment) <= self._missing:
            (self._pieces.append if self.spool is None else self.spool.write)(content.fragment)
            self._missing -= len(content.fragment)
        else:
            raise exceptions.UnexpectedFrameError(content)


def take_frames(buffer: bytearray) -> Iterator[tuple[Frame, int]]:
    """Decode and remove the complete frames of `buffer`, one at a time; yields each with its size in bytes."""
    while len(buffer) >= _HEAD.size:
        kind, channel, length = _HEAD.unpack_from(buffer)
        size = _HEAD.size + length + len(_END)
        if buffer[:4] == b"AMQP":
            yield frame.ProtocolHeader(*buffer[5:8]), 8
            return
        if len(buffer) < size:
            return
        payload = bytes(memoryview(buffer)[_HEAD.size : size - 1])
        if buffer[size - 1] != _END[0]:
            raise exceptions.InvalidFrameError("A frame does not end where its length says.")
        del buffer[:size]
        yield _decode(kind, channel, payload), size


def publish_frames(
    channel: int, exchange: str, routing_key: str, properties: bytes, body: bytes, mandatory: bool, frame_max: int
) -> list[bytes]:
    """The frames of a basic.publish. Raises WireError for what does not fit a frame or a short string."""
    address = encode_short(exchange, "The exchange name") + encode_short(routing_key, "The routing key")
    most = frame_max - _OVERHEAD
    if len(properties) + 12 > most:
        raise WireError(f"The properties have {len(properties)} bytes; this connection carries {most - 12} at most.")
    size = len(body)
    frames = [
        _PUBLISH_HEAD.pack(1, channel, 7 + len(address), spec.Basic.Publish.INDEX, 0),
        address,
        b"\x01\xce" if mandatory else b"\x00\xce",
        _CONTENT_HEAD.pack(2, channel, 12 + len(properties), _BASIC, 0, size),
        properties,
        _END,
    ]
    for start in range(0, size, most):
        chunk = body if size <= most else body[start : start + most]
        frames += (_HEAD.pack(3, channel, len(chunk)), chunk, _END)
    return frames


def ack_frame(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """A basic.ack of one delivery, or of all up to it."""
    return _SETTLE.pack(1, channel, 13, ACK, tag, multiple, _END)


def requeue_frame(channel: int, tag: int) -> bytes:
    """A basic.nack with requeue of one delivery; not a reject, which newer brokers count against a message."""
    return _SETTLE.pack(1, channel, 13, NACK, tag, 2, _END)


def text(value: str | bytes | None) -> str:
    """A short string of a pika method, which is bytes where it is not UTF-8."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value or ""


def _decode(kind: int, channel: int, payload: bytes) -> Frame:
    if kind == spec.FRAME_METHOD:
        (index,) = _METHOD.unpack_from(payload)
        if index in (ACK, NACK):
            return Confirm(channel, payload, index == ACK)
        if index == DELIVER:
            return Deliver(channel, payload)
        method = spec.methods[index]()
        method.decode(payload, _METHOD.size)
        return frame.Method(channel, method)
    if kind == spec.FRAME_HEADER:
        return frame.Header(channel, int.from_bytes(payload[4:12]), RawProperties(payload[12:]))
    if kind == spec.FRAME_BODY:
        return frame.Body(channel, payload)
    if kind == spec.FRAME_HEARTBEAT:
        return frame.Heartbeat()
    raise exceptions.InvalidFrameError(f"Frame type {kind} is unknown.")


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
        for incoming, size in take_frames(self._inbound):
            self.bytes_received += size
            if isinstance(incoming, Confirm):
                handler = self.confirms.get(incoming.channel_number)
                if handler is not None:
                    handler(incoming)
            elif not self._take_delivery(incoming):
                self._process_frame(incoming)

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
