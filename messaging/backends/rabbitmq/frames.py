"""AMQP frames: the ones written often, built here, and the incoming ones, decoded without losing a byte of headers."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from pika import exceptions, frame, spec

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
