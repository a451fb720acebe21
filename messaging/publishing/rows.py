"""Outbox rows: from a message to its row, and from the row to the wire.

Every argument is checked, so that what is saved can be sent. A row may also send an inbox row's message once more.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.db import models
from django.utils import timezone

from messaging import conf
from messaging.conf.rules import name_of, plain
from messaging.contracts import payloads, upgrades
from messaging.contracts.events import Event
from messaging.db.clock import Now, as_stored, in_utc
from messaging.exceptions import LONGEST_WAIT, PayloadError, PublishError, WireError
from messaging.message import HandlerContext, Message
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.publishing import cloud_events
from messaging.wire import nonces
from messaging.wire.bodies import encode_body, pack_body, short, storable
from messaging.wire.cloudevents import CloudEvent
from messaging.wire.envelope import (
    CAUSATION,
    LATEST_VERSION,
    NONCE,
    OUR_PREFIX,
    ROUTING_KEY,
    VERSION,
    Envelope,
    hashed,
    new_epoch,
    new_id,
)
from messaging.wire.fields import encode_table, to_json
from messaging.wire.properties import Properties, encode_properties

PENDING = PublishedMessage.State.PENDING.value  # plain text, which drivers take as it is
PERSISTENT = 2  # AMQP's delivery mode
MAX_HEADERS = 120 * 1024  # bytes: they have to fit one frame of 128 KiB, beside the other properties
WHOLE_FLOATS = 1e16  # from here on JSON writes a float without its point, as an integer with an exponent
ADDRESS = ("exchange", "queue", "routing_key")
GIVEN = (*ADDRESS, "type", "content_type", "reply_to", "priority", "expiration", "mandatory", "body_encoding")
REPLIES = "amq.rabbitmq.reply-to"  # stands for a consumer on the publisher's own channel; the relay's has none


def address(row: PublishedMessage) -> tuple[str, str]:
    """The exchange and the routing key under which an outbox row is sent, as its columns have them."""
    return ("", row.queue) if row.queue else (row.exchange, row.routing_key)


def seal(row: PublishedMessage) -> tuple[str, str, bytes, bytes]:
    """What an outbox row puts on the wire: exchange, routing key, properties, body. Raises WireError, ValueError."""
    exchange, routing_key = address(row)
    if row.wire is None:
        properties = properties_of(row)
    else:
        envelope = Envelope.from_wire(bytes(row.wire), b"")
        found = envelope.properties
        if not row.queue:
            exchange, routing_key = envelope.exchange, envelope.routing_key
        if row.round == 1 and found.timestamp is None:  # it was not known before the row was in the database
            found = found.edited(timestamp=_epoch(row.created_at))
        properties = found.encode()
    return exchange, routing_key, properties, row.raw_body


def properties_of(row: PublishedMessage) -> bytes:
    """The encoded properties of a row without an envelope of its own. Raises WireError."""
    headers = row.headers
    if row.causation_id:
        headers = {**headers, CAUSATION: row.causation_id}
    if row.queue and row.routing_key != row.queue:
        nonce = nonces.of_address(row.queue, row.routing_key, row.message_id)
        headers = {**headers, ROUTING_KEY: row.routing_key, NONCE: nonce}
    return encode_properties(
        content_type=row.content_type or None,
        raw_headers=encode_table(headers) if headers else None,
        delivery_mode=PERSISTENT,
        priority=row.priority,
        correlation_id=row.correlation_id or None,
        reply_to=row.reply_to or None,
        expiration=None if row.expiration is None else str(row.expiration),
        message_id=row.message_id or None,
        timestamp=_epoch(row.created_at),
        type=row.type or None,
    )


def compose_round(
    row: ProcessedMessage, due: models.expressions.Combinable, *, with_body: bool = True
) -> PublishedMessage:
    """The unsaved outbox row that sends an inbox row's message to its queue for the row's present round.

    Straight to the queue, so that no other service sees it twice. Without its body, that is neither read nor judged.
    Raises WireError without a recorded envelope.
    """
    nonce = row.nonce or nonces.of_row(row.queue, row.key)
    envelope = row.envelope() if with_body else Envelope.from_wire(bytes(row.wire or b""), b"")
    envelope = envelope.for_round(row.queue, row.round, row.key, nonce, died=row.may_kill)
    return PublishedMessage(
        alias=row.alias,
        state=PublishedMessage.State.PENDING,
        message_id=row.message_id,
        exchange="",
        queue=row.queue,
        routing_key=row.routing_key,
        type=row.type,
        content_type=row.content_type,
        correlation_id=row.correlation_id,
        causation_id=row.causation_id,
        reply_to=row.reply_to,
        headers=row.headers,
        body=row.body if with_body else "",
        body_encoding=row.body_encoding,
        wire=envelope.to_wire(),
        round=row.round,
        epoch=new_epoch(),
        inbox_id=row.pk,
        publish_at=due,
        due_at=due,
    )


def _epoch(moment: Any) -> int | None:
    # A row that was never read back has an expression here.
    return int(moment.timestamp()) if isinstance(moment, datetime) else None


class Composer:
    """Makes the unsaved outbox rows of messages that are published together.

    Args:
        settings: the alias's.
        current: the handler that publishes them, if one does.
        database: whose outbox the caller named, if it did.
    """

    def __init__(
        self, settings: conf.AliasSettings, current: HandlerContext | None = None, database: str | None = None
    ) -> None:
        cause = current.message if current is not None else None
        # The handler's own may have been another one in an earlier run, before it moved: the ids stay the same.
        is_own = current is not None and database == current.database
        self._current, self._database = current, None if is_own else database
        self._exchange = settings.exchange
        self._common = PublishedMessage.blank_values() | {
            "alias": settings.alias,
            "state": PENDING,
            "epoch": 0,
            "correlation_id": short(cause.correlation_id or cause.id) if cause is not None else "",
            "causation_id": storable(cause.id, 255) if cause is not None else "",
        }

    def addressed(self, message: Message) -> Message:
        """The message, if it is one, with what its event declares. Raises PublishError."""
        _check_types(message)
        event = message.routing_key
        return event.addressed(message, self._common["alias"]) if isinstance(event, Event) else message

    def compose(self, message: Message) -> PublishedMessage:
        """The row of one message. Raises PublishError."""
        message = self.addressed(message)
        given, event = message, message.payload if isinstance(message.payload, CloudEvent) else None
        if event is not None:
            message = cloud_events.opened(given, event)
        values = self._common | self._address(message) | _content(message)
        if message.at is not None or message.delay is not None:  # else when it is inserted
            values["publish_at"] = values["due_at"] = _due(message)
        if message.correlation_id:
            values["correlation_id"] = _short("correlation_id", message.correlation_id)
        if message.type:
            values["type"] = _short("type", message.type)
        if message.reply_to:
            values["reply_to"] = _name("reply_to", message.reply_to)
        values["priority"] = _priority(message.priority)
        values["expiration"] = _expiration(message.expiration)
        values["mandatory"] = message.mandatory
        values["headers"] = {}
        if event is not None:
            values["epoch"] = new_epoch() if event.id else 0
            message = cloud_events.closed(given, event, event.id or self._new_id(message, values), values)
        else:
            self._name_it(message, values)
        row = PublishedMessage.of(values)
        version = getattr(type(message.payload), upgrades.MARK, None)
        if message.headers or message.content_encoding or version is not None:
            headers = dict(message.headers or {})
            if version is not None:
                _set_version(headers, version.number)
            _set_headers(row, headers, message.content_encoding)
        return row

    def _name_it(self, message: Message, values: dict[str, Any]) -> None:
        if message.message_id:
            values["message_id"], values["epoch"] = _short("message_id", message.message_id), new_epoch()
        else:
            values["message_id"] = self._new_id(message, values)

    def _address(self, message: Message) -> dict[str, str]:
        exchange, queue = self._destination(message)
        return {"exchange": exchange, "queue": queue, "routing_key": _name("routing_key", message.routing_key)}

    def _destination(self, message: Message) -> tuple[str, str]:
        if message.queue:
            if message.exchange:
                raise PublishError("Give either queue or exchange: a queue is reached through the default exchange.")
            return "", _name("queue", message.queue)
        return self._exchange if message.exchange is None else _name("exchange", message.exchange), ""

    def _new_id(self, message: Message, values: dict[str, Any]) -> str:
        current = self._current
        if current is None or current.atomic:
            return new_id(_ahead(message)) if message.at is not None or message.delay is not None else new_id()
        if current.derivation is None:
            return current.next_id(":".join(values[name] for name in ADDRESS))
        return current.next_id(self._digest(message, values).hex)

    def _digest(self, message: Message, values: dict[str, Any]) -> uuid.UUID:
        """Tells messages apart by all that the caller gave, in whatever order headers were."""
        given = [
            *(values["alias"], self._database, *(values[name] for name in GIVEN)),
            str(message.correlation_id or ""),
            None if message.delay is None else _seconds("delay", message.delay),
            None if message.at is None else values["publish_at"].isoformat(),
            *([message.content_encoding] if message.content_encoding else []),
        ]
        try:
            headers = encode_table(_in_order(message.headers or {}))
        except RecursionError as error:
            raise PublishError("The headers cannot be sent: they are nested too deeply.") from error
        except WireError as error:
            raise PublishError(f"The headers cannot be sent: {error}") from error
        return hashed(json.dumps(given).encode(), headers, values["body"].encode())


def _content(message: Message) -> dict[str, str]:
    try:
        body, content_type = encode_body(message.payload, message.content_type, message.content_encoding)
    except PayloadError as error:
        body, content_type = _of_instances(message, error)
    if message.content_type is not None:
        content_type = _short("content_type", content_type)
    text, body_encoding = pack_body(body)
    return {"body": text, "body_encoding": body_encoding, "content_type": content_type}


def _of_instances(message: Message, problem: PayloadError) -> tuple[bytes, str]:
    """The body of a payload with instances in it, which JSON does not know, and its content type."""
    try:
        payload = payloads.plain(message.payload)
        return encode_body(payload, message.content_type, message.content_encoding)
    except PayloadError as error:
        raise PublishError(str(error)) from error
    except RecursionError:
        raise PublishError(str(problem)) from problem
    except Exception as error:  # whatever a library, or the class itself, does not want to be written
        raise PublishError(f"The payload cannot be written as JSON: {error}.") from error


def _set_version(headers: dict[str, Any], version: int) -> None:
    """Say the version of the payload's class; the first is said by saying none, as by the releases before."""
    if headers.get(VERSION, version) != version:
        raise PublishError(f"The header {VERSION} says {headers[VERSION]!r}, and the payload is version {version}.")
    if version > 1:
        headers[VERSION] = version


def _check_ours(headers: Mapping[str, Any]) -> None:
    ours = sorted(name for name in map(_text, headers) if name.startswith(OUR_PREFIX) and name != VERSION)
    if ours:
        raise PublishError(f"The header {ours[0]!r} begins with {OUR_PREFIX!r}, which is for this app alone.")
    version = headers.get(VERSION, 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= LATEST_VERSION:
        raise PublishError(f"The header {VERSION} is {version!r}; it is a whole number, at least 1.")


def _set_headers(row: PublishedMessage, headers: dict[str, Any], encoding: str | None) -> None:
    """What the columns cannot hold goes into an envelope of the row's own."""
    _check_ours(headers)
    try:
        length = len(encode_table(headers))
        if length > MAX_HEADERS:
            raise PublishError(f"The headers have {length} bytes; AMQP carries about {MAX_HEADERS} in one message.")
        _check_copies(headers)
        row.headers = to_json(headers)
        # Bytes, datetimes and decimals exist in AMQP, not in JSON; to PostgreSQL's JSON a large float is an integer.
        if encoding or row.headers != headers or _has_odd_float(headers):
            encoding = _short("content_encoding", encoding) if encoding else None
            properties = Properties.decode(properties_of(row)).edited(add_headers=headers, content_encoding=encoding)
            row.wire = Envelope(row.exchange, row.routing_key, properties, b"").to_wire()
    except WireError as error:
        raise PublishError(f"The headers cannot be sent: {error}") from error


def _in_order(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _in_order(value[name]) for name in sorted(value, key=str)}
    return [_in_order(one) for one in value] if isinstance(value, (list, tuple)) else value


def _has_odd_float(value: Any) -> bool:
    if isinstance(value, float):
        return value == 0 or abs(value) >= WHOLE_FLOATS
    if isinstance(value, Mapping):
        return any(map(_has_odd_float, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_odd_float, value))


def _check_copies(headers: Mapping[str, Any]) -> None:
    for name in ("CC", "BCC"):
        keys = headers.get(name, [])
        if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
            raise PublishError(f"The header {name} is {keys!r}; RabbitMQ wants a list of routing keys there.")
        for key in keys:
            _name(f"A routing key in the header {name}", key)


def _check_types(message: Any) -> None:
    if not isinstance(message, Message):
        raise PublishError(f"publish_many() takes Message objects, not {type(message).__name__}.")
    if not isinstance(message.routing_key, str):
        raise PublishError(f"routing_key is {message.routing_key!r}; it must be text.")
    headers: Any = message.headers
    if headers is not None and not isinstance(headers, Mapping):
        raise PublishError(f"headers is {type(headers).__name__}; it must be a dict.")
    content_type: Any = message.content_type
    if content_type is not None and not isinstance(content_type, str):
        raise PublishError(f"content_type is {content_type!r}; it must be text.")
    content_encoding: Any = message.content_encoding
    if content_encoding is not None and not isinstance(content_encoding, str):
        raise PublishError(f"content_encoding is {content_encoding!r}; it must be text.")
    if message.reply_to == REPLIES:
        raise PublishError(f"reply_to is {REPLIES!r}, which works only without an outbox; name a queue.")
    if not isinstance(message.mandatory, bool):
        raise PublishError(f"mandatory is {message.mandatory!r}; it must be True or False.")


def _name(name: str, value: object) -> str:
    """The name of something at the broker, or a routing key: on one line."""
    text = _short(name, value)
    if text.isprintable():  # nearly all: there is no line break in it
        return text
    text = name_of(text)
    if "\n" in text or "\r" in text:
        raise PublishError(f"{name} is {text!r}; it must not have a line break in it.")
    return text


def _short(name: str, value: object) -> str:
    text = value if type(value) is str else _text(value)
    if len(text) <= 255 and text.isascii() and text.isprintable():  # nearly all
        return text
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"{name} is not valid Unicode text.") from error
    if length > 255:
        raise PublishError(f"{name} has {length} bytes; AMQP allows 255.")
    if "\x00" in text:
        raise PublishError(f"{name} contains a NUL character.")
    return text


def _text(value: object) -> str:
    return plain(value) if isinstance(value, str) else str(value)


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise PublishError(f"priority is {value!r}; it is a whole number from 0 to 255.")
    return value


def _seconds(name: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST_WAIT:
        raise PublishError(f"{name} is {value!r}; it is a number of seconds from 0 to ten years.")
    return float(seconds)


def _expiration(value: float | timedelta | None) -> int | None:
    # RabbitMQ takes at most 32 bits of milliseconds.
    return None if value is None else min(round(_seconds("expiration", value) * 1000), 2**32 - 1)


def _ahead(message: Message) -> float:
    """Seconds until a checked message is to be sent."""
    if isinstance(message.at, datetime):
        return max(0.0, (in_utc(message.at) - datetime.now(UTC)).total_seconds())
    return _seconds("delay", message.delay)


def _due(message: Message) -> models.expressions.Combinable | datetime:
    if message.at is not None:
        if message.delay is not None:
            raise PublishError("Give either delay or at, not both.")
        at: Any = message.at
        if not isinstance(at, datetime) or (django_settings.USE_TZ and timezone.is_naive(at)):
            raise PublishError(f"at is {at!r}; it must be a datetime with a time zone.")
        return as_stored(at)
    return Now() + timedelta(seconds=_seconds("delay", message.delay))
