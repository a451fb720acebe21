"""A message: as users publish it, as it travels, and as a handler receives it."""

from __future__ import annotations

import base64
import json
import struct
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeGuard

from django.core.serializers.json import DjangoJSONEncoder

from messaging.exceptions import PayloadError, WireError
from messaging.fields import MAX_SHORT
from messaging.logs import one_line
from messaging.wire import Properties, to_json

# Headers of ours. RabbitMQ's headers exchange ignores names that begin with "x-" unless told otherwise.
ROUND = "x-messaging-round"
QUEUE = "x-messaging-queue"
EXCHANGE = "x-messaging-exchange"
ROUTING_KEY = "x-messaging-routing-key"
MAX_ROUND = 10**9  # that a message can begin with: beyond are the rounds that it may still go
LAST_ROUND = 2**31 - 1  # what a column holds
OUR_PREFIX = "x-messaging-"
KEY = "x-messaging-key"
ROW = "x-messaging-row"
DIED = "x-messaging-died"
CAUSATION = "x-messaging-causation-id"
OURS = frozenset({ROUND, QUEUE, EXCHANGE, ROUTING_KEY, KEY, ROW, DIED})

# What a retry must not carry: the first two would route copies to other queues, the others describe another journey.
NOT_RETRIED = OURS | {"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-opt-rk"}
NOT_RETRIED_PREFIXES = ("x-first-death-", "x-last-death-")

# Encodings of Python's that no other program calls a charset; decoding the first two takes hours for a few megabytes.
NO_CHARSETS = frozenset({"punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape"})


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish with `publish_many()`; the arguments are those of `publish()`."""

    routing_key: str
    payload: Any
    exchange: str | None = field(default=None, kw_only=True)
    queue: str | None = field(default=None, kw_only=True)
    headers: Mapping[str, Any] | None = field(default=None, kw_only=True)
    message_id: str | uuid.UUID | None = field(default=None, kw_only=True)
    correlation_id: str | uuid.UUID | None = field(default=None, kw_only=True)
    content_type: str | None = field(default=None, kw_only=True)
    type: str | None = field(default=None, kw_only=True)
    reply_to: str | None = field(default=None, kw_only=True)
    priority: int | None = field(default=None, kw_only=True)
    expiration: float | timedelta | None = field(default=None, kw_only=True)
    mandatory: bool = field(default=True, kw_only=True)
    delay: float | timedelta | None = field(default=None, kw_only=True)
    at: datetime | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Envelope:
    """All that a message is, to the byte, without the journey it makes.

    Attributes:
        exchange, routing_key: where it was first published, whatever way a retry took.
        properties: its properties, headers included.
        body: its payload.
        round: 1 for the first life in a queue, then one more per retry or requeue.
        target: the queue that a retry was addressed to; "" otherwise.
        row_key: the key of the inbox row that a retry belongs to; None for a message on its first round.
    """

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    round: int = 1
    target: str = ""
    row_key: uuid.UUID | None = None

    @classmethod
    def received(cls, exchange: str, routing_key: str, properties: Properties, body: bytes, queue: str) -> Envelope:
        """Restore the original addresses from the headers of a delivery that `queue` got, if they are there.

        Headers of ours are believed only where we put them: on what was sent straight to this queue. On anything else
        they are forwarded, or a stranger's, who could reach another handler or another message's row by them.
        """
        plain = cls(exchange, routing_key, properties, body)
        if exchange != "":
            return plain
        headers = properties.headers
        if QUEUE not in headers:
            return replace(plain, routing_key=address(headers.get(ROUTING_KEY), routing_key))
        round_, key = headers.get(ROUND), _uuid(headers.get(KEY))
        if _text(headers[QUEUE], "") != queue or key is None or not _is_later_round(round_):
            return plain
        return cls(
            exchange=address(headers.get(EXCHANGE), exchange),
            routing_key=address(headers.get(ROUTING_KEY), routing_key),
            properties=properties,
            body=body,
            round=round_,
            target=queue,
            row_key=key,
        )

    def to_wire(self) -> bytes:
        """Exchange, routing key and properties as bytes, to be kept beside the body."""
        pieces = []
        for name in (self.exchange, self.routing_key):
            raw = name.encode("utf-8", "surrogateescape")
            pieces.append(struct.pack(">H", len(raw)) + raw)
        return b"".join(pieces) + self.properties.encode()

    @classmethod
    def from_wire(cls, wire: bytes, body: bytes) -> Envelope:
        """Inverse of `to_wire()`. Raises WireError for bytes that it did not write."""
        names, offset = [], 0
        try:
            for _ in range(2):
                (length,) = struct.unpack_from(">H", wire, offset)
                raw = wire[offset + 2 : offset + 2 + length]
                names.append(raw.decode("utf-8", "surrogateescape"))
                offset += 2 + length
        except struct.error as error:
            raise WireError("A stored envelope is cut short.") from error
        properties = Properties.decode(wire[offset:])
        if properties.encode() != wire[offset:]:
            raise WireError("A stored envelope is damaged.")
        return cls(names[0], names[1], properties, body)

    def for_round(self, queue: str, round_: int, key: uuid.UUID, *, died: bool = False) -> Envelope:
        """The same message addressed straight to `queue` for another round of the inbox row with this key.

        With `died` it says that the last process that ran it died, so that the next one runs it alone.
        """
        headers = self.properties.headers
        dropped = {name for name in headers if name in NOT_RETRIED or name.startswith(NOT_RETRIED_PREFIXES)}
        properties = self.properties.edited(
            drop_headers=dropped | NOT_RETRIED,
            add_headers={
                QUEUE: wire_text(queue),
                ROUND: round_,
                KEY: str(key),
                EXCHANGE: wire_text(self.exchange),
                ROUTING_KEY: wire_text(self.routing_key),
                **({DIED: True} if died else {}),
            },
            expiration=None,
            user_id=None,
            delivery_mode=2,
        )
        return Envelope(self.exchange, self.routing_key, properties, self.body, round_, queue, key)

    def read(self) -> None:
        """Read all that the inbox wants to know, which is then kept."""
        _ = self.key, self.columns

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The message itself as a row keeps it, by column: shown as any database takes it, and to the byte."""
        properties = self.properties
        headers = {name: value for name, value in properties.headers.items() if name not in OURS}
        body, body_encoding = pack_body(self.body)
        try:
            wire = self.to_wire()
        except WireError:  # properties so broken that they cannot be written again
            wire = None
        texts = {
            "message_id": self.message_id,
            "exchange": self.exchange,
            "routing_key": self.routing_key,
            "type": properties.type or "",
            "content_type": properties.content_type or "",
            "correlation_id": properties.correlation_id or "",
            "causation_id": str(headers.get(CAUSATION) or ""),
            "reply_to": properties.reply_to or "",
        }
        return {
            "digest": self.digest,
            **{name: storable(text, 255) for name, text in texts.items()},
            "headers": to_json(headers),
            "body": body,
            "body_encoding": body_encoding,
            "wire": wire,
        }

    @cached_property
    def message_id(self) -> str:
        """The id its publisher gave it; "" for none."""
        return self.properties.message_id or ""

    @cached_property
    def digest(self) -> uuid.UUID:
        """Tells two messages of the same id apart: exchange, routing key, type, content type and body."""
        pieces = []
        for part in (self.exchange, self.routing_key, self.properties.type or "", self.properties.content_type or ""):
            raw = part.encode("utf-8", "surrogateescape")
            pieces += [struct.pack(">I", len(raw)), raw]
        return hashed(*pieces, self.body)

    @cached_property
    def key(self) -> uuid.UUID | None:
        """Identity within a queue: a hash of the raw id, because collations equate ids; None without an id."""
        if self.row_key is not None:
            return self.row_key
        if not self.message_id:
            return None
        return hashed(self.message_id.encode("utf-8", "surrogateescape"))

    @cached_property
    def reused_key(self) -> uuid.UUID:
        """Identity of a message whose id another message took: a hash of id and digest, the same at each delivery."""
        raw = self.message_id.encode("utf-8", "surrogateescape")
        return hashed(raw, self.digest.bytes, person=b"reused-id")


def hashed(*pieces: bytes, person: bytes = b"") -> uuid.UUID:
    """A hash of bytes, as a UUID that every database takes: MariaDB's type refuses those without RFC 9562's variant."""
    state = blake2b(digest_size=16, person=person)
    for piece in pieces:
        state.update(piece)
    return uuid.UUID(bytes=state.digest(), version=5)


class ReceivedMessage:
    """What a handler receives.

    Attributes:
        id: the message id; "" when its publisher gave none.
        queue, exchange, routing_key: where it came from; a retry shows the original exchange and routing key.
        headers: dict of plain values, without this app's own.
        body: bytes.
        attempt: 1 for the first, counting every started one since an operator last requeued it.
        round: 1 for the first, one more per retry or requeue.
        redelivered: whether the broker says that it was delivered before.
        properties: every AMQP property.
    """

    def __init__(self, envelope: Envelope, *, queue: str, attempt: int = 1, redelivered: bool = False) -> None:
        self.envelope = envelope
        self.properties = envelope.properties
        self.id = envelope.message_id
        self.queue = queue
        self.exchange = envelope.exchange
        self.routing_key = envelope.routing_key
        self.body = envelope.body
        self.round = envelope.round
        self.attempt = attempt
        self.redelivered = redelivered

    def __repr__(self) -> str:
        name = one_line(self.id) if self.id else "without id"
        return f"<message {name} of queue {self.queue!r}, attempt {self.attempt}>"

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The publisher's headers."""
        return {name: value for name, value in self.properties.headers.items() if name not in OURS}

    @cached_property
    def payload(self) -> Any:
        """The body decoded by its content type. Raises PayloadError, which fails the message."""
        return decode_body(self.body, self.properties.content_type, self.properties.content_encoding)

    @property
    def type(self) -> str:
        """The message type its publisher named, or ""."""
        return self.properties.type or ""

    @property
    def content_type(self) -> str:
        """Its content type, or ""."""
        return self.properties.content_type or ""

    @property
    def reply_to(self) -> str:
        """The queue that expects an answer, or ""."""
        return self.properties.reply_to or ""

    @property
    def correlation_id(self) -> str:
        """The id that ties a conversation together, or ""."""
        return self.properties.correlation_id or ""

    @property
    def causation_id(self) -> str:
        """The id of the message whose handler published this one, or ""."""
        return _text(self.properties.headers.get(CAUSATION), "")


@dataclass
class Running:
    """What `publish()` needs to know of the handler that calls it.

    Attributes:
        message: what it handles; None for a batch.
        database: where its transaction runs, if it is `atomic`.
        cause: what the ids of its messages derive from; None where a transaction takes them back with the rest.
    """

    message: ReceivedMessage | None
    database: str
    atomic: bool
    cause: uuid.UUID | None
    published: dict[str, int] = field(default_factory=dict)

    def next_id(self, destination: str) -> uuid.UUID:
        """An id derived from the cause, so that a rerun of a handler without a transaction does not double."""
        count = self.published[destination] = self.published.get(destination, 0) + 1
        return uuid.uuid5(self.cause, f"{count}:{destination}") if self.cause is not None else uuid.uuid4()


_json = DjangoJSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
running: ContextVar[Running | None] = ContextVar("messaging_running", default=None)


def encode_body(payload: Any, content_type: str | None) -> tuple[bytes, str]:
    """Encode a payload: bytes as they are, str as text unless the content type says JSON, anything else as JSON.

    Returns the body and its content type. Raises PayloadError for what cannot be encoded.
    """
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload), content_type or "application/octet-stream"
    if isinstance(payload, str) and not _is_json(content_type):
        try:
            return payload.encode(_charset(content_type)), content_type or "text/plain; charset=utf-8"
        except (ValueError, LookupError) as error:
            raise PayloadError(f"The text cannot be encoded as {content_type or 'UTF-8'}: {error}.") from error
    if content_type and not _is_json(content_type):
        raise PayloadError(
            f"A payload of type {type(payload).__name__} cannot be sent as {content_type!r}; give bytes or text."
        )
    try:
        return _json.encode(payload).encode(_charset(content_type)), content_type or "application/json"
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise PayloadError(f"The payload cannot be written as JSON: {error}.") from error


def decode_body(body: bytes, content_type: str | None, content_encoding: str | None = None) -> Any:
    """Decode a body by its content type: JSON, text, or bytes; without one, text where it is UTF-8.

    Raises PayloadError when the body is not what its content type says.
    """
    if content_encoding and content_encoding.lower() not in ("utf-8", "utf8", "identity", "binary"):
        return body
    if not content_type:
        try:
            return body.decode()
        except UnicodeDecodeError:
            return body
    if _is_json(content_type):
        try:
            return json.loads(body.decode(_charset(content_type)))
        except (ValueError, LookupError, RecursionError) as error:
            raise PayloadError(f"The body is not valid JSON: {str(error) or 'nested too deeply'}.") from error
    if _media_type(content_type).startswith("text/"):
        try:
            return body.decode(_charset(content_type))
        except (ValueError, LookupError) as error:
            raise PayloadError(f"The body is not {content_type}: {error}.") from error
    return body


def pack_body(body: bytes) -> tuple[str, str]:
    """A body as the database stores it: text where it is UTF-8 without NUL, else base64; and which of both."""
    try:
        if b"\x00" not in body:
            return body.decode(), ""
    except UnicodeDecodeError:
        pass
    return base64.b64encode(body).decode("ascii"), "base64"


def unpack_body(body: str, body_encoding: str) -> bytes:
    """Inverse of `pack_body()`. Raises WireError for what it did not write."""
    if body_encoding not in ("", "base64"):
        raise WireError(f"A stored body has the unknown encoding {body_encoding!r}.")
    try:
        return base64.b64decode(body, validate=True) if body_encoding else body.encode()
    except ValueError as error:
        raise WireError(f"A stored body is damaged: {error}.") from error


def storable(text: str, limit: int | None = None) -> str:
    """Text that every database takes: NUL and bytes that are not UTF-8 are shown as escapes, then cut to `limit`."""
    if "\x00" in text or not text.isprintable():
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # halves of characters, as JSON's \ud800 yields them
            raw = text.encode("utf-8", "backslashreplace")
        text = raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def short(text: str) -> str:
    """Text as `storable()` shows it, cut to the 255 bytes that a property can have."""
    return storable(text, MAX_SHORT).encode()[:MAX_SHORT].decode(errors="ignore")


def address(value: Any, default: str) -> str:
    """An exchange or routing key found in a header; `default` for what cannot be one."""
    name = _text(value, default)
    return name if len(name.encode("utf-8", "surrogateescape")) <= MAX_SHORT else default


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_json(content_type: str | None) -> bool:
    media_type = _media_type(content_type or "")
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def _charset(content_type: str | None) -> str:
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip():
            charset = value.strip().strip('"')
            if charset.lower().replace("-", "_") in NO_CHARSETS:
                raise LookupError(f"unknown encoding: {charset}")
            return charset
    return "utf-8"


def _text(value: Any, default: str) -> str:
    """A header of ours as text; it is bytes on the wire where the original is not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else default


def _is_later_round(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value <= LAST_ROUND


def _uuid(value: Any) -> uuid.UUID | None:
    """A key of ours; None for what we never write, such as the values that MariaDB refuses."""
    try:
        found = uuid.UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and found.variant == uuid.RFC_4122 else None


def wire_text(value: str) -> str | bytes:
    """A header value: text, or bytes where it is not UTF-8."""
    try:
        value.encode()
        return value
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")
