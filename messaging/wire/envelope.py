"""A message as it travels: all that it is, to the byte, without the journey it makes; and ids for new ones."""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeGuard

from django.utils.functional import cached_property

from messaging.exceptions import WireError
from messaging.wire import nonces
from messaging.wire.bodies import pack_body, storable
from messaging.wire.fields import MAX_SHORT, to_json
from messaging.wire.properties import Properties

_RANDOM_BITS = 80
_VERSION, _VARIANT = 7 << 76, 2 << 62
_FREE = ~(0xF << 76 | 3 << 62)  # all bits but those of version and variant
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
DIED = "x-messaging-died"  # for the release before: this one asks the row
NONCE = "x-messaging-nonce"
CAUSATION = "x-messaging-causation-id"
VERSION = "x-messaging-version"  # of the payload: what its publisher says, as its content type is
LATEST_VERSION = 2**31 - 1  # which any client can write
# What CloudEvents have: one of the first two in the names of their headers, or the third as their content type.
CLOUD_EVENTS = (b"cloudEvents", b"ce-specversion", "application/cloudevents")
OURS = frozenset({ROUND, QUEUE, EXCHANGE, ROUTING_KEY, KEY, ROW, DIED, NONCE})

# What a retry must not carry: the first two would route copies to other queues, the others describe another journey.
NOT_RETRIED = OURS | {"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-opt-rk"}
NOT_RETRIED_PREFIXES = ("x-first-death-", "x-last-death-")

# Headers that are no part of what a message says: brokers, tracers and ourselves change them from copy to copy.
NOT_SAID = frozenset({"traceparent", "tracestate", "baggage", "CC", "BCC", "timestamp_in_ms"})
NOT_SAID_PREFIXES = ("x-", "X-")

_MARK = 5 << 76 | 0x8 << 60  # a UUID's version and variant, and the bits that are neither
_UNMARKED = ~(0xF << 76 | 0xC << 60)


def new_id(ahead: float = 0.0) -> str:
    """The text of a random UUID that begins with the time in milliseconds (RFC 9562, version 7).

    Ids of about the same time lie together in an index, so however large that is, few of its pages are touched.

    Args:
        ahead: seconds from now until the message is to be sent, which is the time that the id has.
    """
    milliseconds = time.time_ns() // 1_000_000 + int(ahead * 1000)
    value = milliseconds << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    digits = f"{value & _FREE | _VERSION | _VARIANT:032x}"  # as uuid.UUID does it, in less than half the time
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def made_at(message_id: str) -> float | None:
    """The time that an id begins with, in seconds since 1970 by its publisher's clock; None for an id without one."""
    if len(message_id) != 36 or message_id[14] != "7":
        return None
    try:
        return int(message_id[:8] + message_id[9:13], 16) / 1000
    except ValueError:
        return None


def new_epoch() -> int:
    """Where the epochs of an outbox row begin whose message id other rows may have: hardly where theirs do."""
    return int.from_bytes(os.urandom(3))


@dataclass(frozen=True)
class Envelope:
    """All that a message is, to the byte, without the journey it makes.

    Attributes:
        exchange, routing_key: where it was first published, whatever way a retry took.
        properties: its properties, headers included.
        body: its payload.
        round: 1 for the first life in a queue, then one more per retry or requeue.
        target: the queue for which headers of ours were written; "" where there are none.
        row_key: the key of the inbox row that a retry belongs to; None for a message on its first round.
        nonce: what it shows so that its headers of ours are believed; see `nonces`.
        arrived_by: exchange and routing key without those headers; None where it has none that say anything.
    """

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    round: int = 1
    target: str = ""
    row_key: uuid.UUID | None = None
    nonce: str = ""
    arrived_by: tuple[str, str] | None = None

    @classmethod
    def received(cls, exchange: str, routing_key: str, properties: Properties, body: bytes, queue: str) -> Envelope:
        """Restore the original addresses from the headers of a delivery that `queue` got, if they are there.

        Headers of ours count only where we put them: on what was sent straight to this queue. On anything else they
        are forwarded, or a stranger's, who could reach another handler or another message's row by them. Even there a
        stranger may have put them: where `arrived_by` is set, somebody has to look whether `nonce` is right.
        """
        if exchange != "" or not properties.raw_headers:
            return cls(exchange, routing_key, properties, body)
        headers = properties.headers
        nonce, arrived_by = header_text(headers.get(NONCE), ""), (exchange, routing_key)
        if QUEUE not in headers:
            said = address(headers.get(ROUTING_KEY), routing_key)
            if said == routing_key:
                return cls(exchange, routing_key, properties, body)
            return cls(exchange, said, properties, body, target=queue, nonce=nonce, arrived_by=arrived_by)
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
            nonce=nonce,
            arrived_by=arrived_by,
        )

    def as_a_strangers(self) -> Envelope:
        """The same message, for whom its headers of ours say nothing."""
        if self.arrived_by is None:
            return self
        return Envelope(*self.arrived_by, self.properties, self.body)

    @cached_property
    def is_proven(self) -> bool:
        """Whether what its headers of ours say, if anything, is shown to be ours by itself, without a look at a row."""
        if self.arrived_by is None:
            return True
        if self.row_key is not None:
            return False
        return nonces.proves_address(self.nonce, self.target, self.routing_key, self.message_id)

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

    def for_round(self, queue: str, round_: int, key: uuid.UUID, nonce: uuid.UUID, *, died: bool = False) -> Envelope:
        """The same message addressed straight to `queue` for another round of the inbox row with this key and nonce.

        With `died` it says that the last process that ran it died, for a consumer of the release before.
        """
        shown = nonces.of_round(nonce, round_)
        headers = self.properties.headers
        dropped = {name for name in headers if name in NOT_RETRIED or name.startswith(NOT_RETRIED_PREFIXES)}
        properties = self.properties.edited(
            drop_headers=dropped | NOT_RETRIED,
            add_headers={
                QUEUE: wire_text(queue),
                ROUND: round_,
                KEY: str(key),
                NONCE: shown,
                EXCHANGE: wire_text(self.exchange),
                ROUTING_KEY: wire_text(self.routing_key),
                **({DIED: True} if died else {}),
            },
            expiration=None,
            user_id=None,
            delivery_mode=2,
        )
        return Envelope(self.exchange, self.routing_key, properties, self.body, round_, queue, key, shown)

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
            "headers_digest": self.headers_digest,
            **{name: storable(text, 255) if text else "" for name, text in texts.items()},
            "headers": to_json(headers),
            "body": body,
            "body_encoding": body_encoding,
            "wire": wire,
        }

    @cached_property
    def message_id(self) -> str:
        """The id its publisher gave it; "" for none. A CloudEvent's is made of its source and id, whatever that is."""
        given = self.properties.message_id or ""
        if self.may_be_cloud_event:
            from messaging.wire.cloudevents import identity_of

            return identity_of(self.properties, self.body) or given
        return given

    @property
    def may_be_cloud_event(self) -> bool:
        """Whether it is worth a look if this is a CloudEvent."""
        raw, content_type = self.properties.raw_headers, self.properties.content_type
        name, other, media_type = CLOUD_EVENTS
        if raw is not None and (name in raw or other in raw):
            return True
        return content_type is not None and media_type in content_type.lower()

    # For one release: delete these two and their uses with the next.
    @property
    def former_key(self) -> uuid.UUID | None:
        """Under which the release before recorded this CloudEvent, which it knew by `message_id`; None for others."""
        given = self.properties.message_id
        return key_of(given) if given and given != self.message_id and self.row_key is None else None

    @property
    def was_without_id(self) -> bool:
        """Whether to the release before this CloudEvent was a message without an id."""
        return not self.properties.message_id and bool(self.message_id) and self.row_key is None

    @cached_property
    def digest(self) -> uuid.UUID:
        """Tells two messages of the same id apart: exchange, routing key, type, content type and body.

        This is version 1, which every row has, so that the release before can read it.
        """
        return self._digest([self.body])

    def _digest(self, body: Iterable[bytes]) -> uuid.UUID:
        pieces = []
        for part in (self.exchange, self.routing_key, self.properties.type or "", self.properties.content_type or ""):
            raw = part.encode("utf-8", "surrogateescape")
            pieces += [struct.pack(">I", len(raw)), raw]
        return hashed_all(chain(pieces, body))

    @cached_property
    def headers_digest(self) -> uuid.UUID:
        """What version 2 of the digest has beside that: the application's headers, in whatever order they came."""
        raw = self.properties.raw_headers
        if not raw:
            return _NO_HEADERS
        said = [
            raw[start:end]
            for name, _, start, end in self.properties.entries
            if name not in NOT_SAID and not name.startswith(NOT_SAID_PREFIXES)
        ]
        return hashed(*sorted(said), person=b"headers") if said else _NO_HEADERS

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

    def reused_key(self, version: int) -> uuid.UUID:
        """Identity of a message whose id another message took: a hash of id and digest, the same at each delivery.

        Args:
            version: of the digest by which the two were compared.
        """
        raw = self.message_id.encode("utf-8", "surrogateescape")
        more = (self.headers_digest.bytes,) if version > 1 else ()
        return hashed(raw, self.digest.bytes, *more, person=b"reused-id")


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


_NO_HEADERS = hashed(person=b"headers")


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
