"""A message as it travels: all that it is, to the byte, without the journey it makes."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeGuard

from messaging.bodies import pack_body
from messaging.exceptions import WireError
from messaging.fields import MAX_SHORT
from messaging.texts import storable
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

_MARK = 5 << 76 | 0x8 << 60  # a UUID's version and variant, and the bits that are neither
_UNMARKED = ~(0xF << 76 | 0xC << 60)


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
        if exchange != "" or not properties.raw_headers:
            return cls(exchange, routing_key, properties, body)
        headers = properties.headers
        if QUEUE not in headers:
            return cls(exchange, address(headers.get(ROUTING_KEY), routing_key), properties, body)
        round_, key = headers.get(ROUND), _uuid(headers.get(KEY))
        if header_text(headers[QUEUE], "") != queue or key is None or not _is_later_round(round_):
            return cls(exchange, routing_key, properties, body)
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

    def keeps_body_in(self, pieces: Iterable[bytes]) -> None:
        """Note that the body is elsewhere, in these pieces, and will be stored from there."""
        self.__dict__["digest"] = digest = self._digest(pieces)
        self.__dict__["columns"] = {**self.columns, "digest": digest, "body_encoding": "base64"}

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
            **{name: storable(text, 255) if text else "" for name, text in texts.items()},
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
        return self._digest([self.body])

    def _digest(self, body: Iterable[bytes]) -> uuid.UUID:
        pieces = []
        for part in (self.exchange, self.routing_key, self.properties.type or "", self.properties.content_type or ""):
            raw = part.encode("utf-8", "surrogateescape")
            pieces += [struct.pack(">I", len(raw)), raw]
        return hashed_all(chain(pieces, body))

    @cached_property
    def key(self) -> uuid.UUID | None:
        """Identity within a queue: a hash of the raw id, because collations equate ids; None without an id."""
        if self.row_key is not None:
            return self.row_key
        if not self.message_id:
            return None
        return key_of(self.message_id)

    def belongs_to(self, key: uuid.UUID) -> None:
        """Note that a row was made for this delivery: without an id nothing else leads back to it."""
        self.__dict__["key"] = key

    @cached_property
    def reused_key(self) -> uuid.UUID:
        """Identity of a message whose id another message took: a hash of id and digest, the same at each delivery."""
        raw = self.message_id.encode("utf-8", "surrogateescape")
        return hashed(raw, self.digest.bytes, person=b"reused-id")


def key_of(message_id: str) -> uuid.UUID:
    """The key of a message with this id, in whichever queue."""
    return hashed(message_id.encode("utf-8", "surrogateescape"))


def hashed(*pieces: bytes, person: bytes = b"") -> uuid.UUID:
    """A hash of bytes; see `hashed_all()`."""
    return hashed_all(pieces, person)


def hashed_all(pieces: Iterable[bytes], person: bytes = b"") -> uuid.UUID:
    """A hash of bytes, as a UUID that every database takes: MariaDB's type refuses those without RFC 9562's variant."""
    state = blake2b(digest_size=16, person=person)
    for piece in pieces:
        state.update(piece)
    return uuid.UUID(int=int.from_bytes(state.digest()) & _UNMARKED | _MARK)


def address(value: Any, default: str) -> str:
    """An exchange or routing key found in a header; `default` for what cannot be one."""
    name = header_text(value, default)
    return name if len(name.encode("utf-8", "surrogateescape")) <= MAX_SHORT else default


def header_text(value: Any, default: str) -> str:
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
