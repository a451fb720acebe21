"""Publishing: a row in the caller's transaction. The relay does the rest."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections, models, router, transaction
from django.utils import timezone

from messaging import conf, killpoints
from messaging.clock import Now
from messaging.database import batches
from messaging.exceptions import ConfigurationError, PayloadError, ProcessDied, PublishError, WireError
from messaging.killpoints import kill_point
from messaging.message import (
    CAUSATION,
    OUR_PREFIX,
    ROUTING_KEY,
    Envelope,
    Message,
    Running,
    encode_body,
    pack_body,
    running,
    short,
    storable,
)
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.wire import Properties, encode_table, to_json

CHANNEL = "messaging_outbox"
MAX_SECONDS = 10 * 366 * 86400
MAX_HEADERS = 120 * 1024  # bytes: they have to fit one frame of 128 KiB, beside the other properties
REPLIES = "amq.rabbitmq.reply-to"  # stands for a consumer on the publisher's own channel; the relay's has none

State = PublishedMessage.State


def publish(
    routing_key: str,
    payload: Any,
    *,
    exchange: str | None = None,
    queue: str | None = None,
    headers: Mapping[str, Any] | None = None,
    message_id: str | uuid.UUID | None = None,
    correlation_id: str | uuid.UUID | None = None,
    content_type: str | None = None,
    type: str | None = None,  # noqa: A002  AMQP's own name
    reply_to: str | None = None,
    priority: int | None = None,
    expiration: float | timedelta | None = None,
    mandatory: bool = True,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str = conf.DEFAULT_ALIAS,
    database: str | None = None,
) -> PublishedMessage:
    """Publish a message: it is sent once the caller's transaction has committed, and not at all if it rolls back.

    Args:
        routing_key: up to 255 bytes.
        payload: bytes and text are sent as they are, anything else as JSON.
        exchange: None for the alias's `EXCHANGE`; "" for the default exchange.
        queue: send straight to this queue, past all exchanges; its consumer still sees `routing_key`.
        headers: plain values; names that begin with "x-messaging-" are ours.
        message_id: up to 255 bytes; a UUID unless given. A consumer processes each id once.
        correlation_id: inside a handler, that of the handled message unless given.
        content_type: decides how text is encoded; guessed from the payload unless given.
        type: the message's type, up to 255 bytes.
        reply_to: the queue that expects an answer, up to 255 bytes.
        priority: 0 to 255.
        expiration: seconds after which the broker may drop it from a queue.
        mandatory: whether it is an error that no queue takes it.
        delay: seconds to wait before sending.
        at: an aware datetime to send at, instead of `delay`.
        using: alias of `MESSAGING`.
        database: whose outbox; the handler's inside a handler, else what the database router says.

    Returns the outbox row. Raises PublishError for what can never be sent, ConfigurationError for an unknown alias or a
    database that no relay serves.
    """
    message = Message(
        routing_key,
        payload,
        exchange=exchange,
        queue=queue,
        headers=headers,
        message_id=message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        type=type,
        reply_to=reply_to,
        priority=priority,
        expiration=expiration,
        mandatory=mandatory,
        delay=delay,
        at=at,
    )
    return publish_many([message], using=using, database=database)[0]


def publish_many(
    messages: Iterable[Message], *, using: str = conf.DEFAULT_ALIAS, database: str | None = None
) -> list[PublishedMessage]:
    """Publish messages with few statements; all or none. Arguments and errors as for `publish()`."""
    settings = conf.get(using)
    current = running.get()
    database = database or (current.database if current else router.db_for_write(PublishedMessage))
    if database not in settings.databases:
        raise ConfigurationError(
            f'No relay serves the outbox of the database "{database}": add it to '
            f'MESSAGING["{using}"]["DATABASES"], or the message would never be sent.'
        )
    rows = [compose(message, settings, current) for message in messages]
    if current is not None and not current.atomic:
        return _save_once(rows, database, settings)
    return _save(rows, database, settings)


def compose(message: Message, settings: conf.AliasSettings, current: Running | None = None) -> PublishedMessage:
    """The unsaved outbox row of a message. Raises PublishError."""
    _check_types(message)
    try:
        body, content_type = encode_body(message.payload, message.content_type)
    except PayloadError as error:
        raise PublishError(str(error)) from error
    exchange, queue = _destination(message, settings)
    text, body_encoding = pack_body(body)
    due = _due(message)
    row = PublishedMessage(
        alias=settings.alias,
        state=State.PENDING,
        message_id=_short("message_id", message.message_id or _new_id(current, exchange, queue, message.routing_key)),
        exchange=exchange,
        queue=queue,
        routing_key=_short("routing_key", message.routing_key),
        type=_short("type", message.type or ""),
        content_type=_short("content_type", content_type),
        correlation_id=_short("correlation_id", message.correlation_id or _correlation(current)),
        causation_id=storable(current.message.id, 255) if current and current.message else "",
        reply_to=_short("reply_to", message.reply_to or ""),
        body=text,
        body_encoding=body_encoding,
        priority=_priority(message.priority),
        expiration=_expiration(message.expiration),
        mandatory=message.mandatory,
        publish_at=due,
        due_at=due,
    )
    _set_headers(row, dict(message.headers or {}))
    return row


async def apublish(routing_key: str, payload: Any, **options: Any) -> PublishedMessage:
    """`publish()` for async code; takes the same arguments."""
    return await sync_to_async(partial(publish, routing_key, payload, **options))()


async def apublish_many(messages: Iterable[Message], **options: Any) -> list[PublishedMessage]:
    """`publish_many()` for async code; takes the same arguments."""
    return await sync_to_async(partial(publish_many, list(messages), **options))()


def seal(row: PublishedMessage) -> tuple[str, str, bytes, bytes]:
    """What an outbox row puts on the wire: exchange, routing key, properties, body. Raises WireError, ValueError."""
    if row.wire is None:
        properties, address = _properties(row), (row.exchange, row.routing_key)
    else:
        envelope = Envelope.from_wire(bytes(row.wire), row.raw_body)
        properties, address = envelope.properties, (envelope.exchange, envelope.routing_key)
    if row.queue:
        address = ("", row.queue)
    return *address, properties.encode(), row.raw_body


def compose_round(row: ProcessedMessage, due: models.expressions.Combinable) -> PublishedMessage:
    """The unsaved outbox row that sends an inbox row's message to its queue for the row's present round.

    Straight to the queue, so that no other service sees it twice. Raises WireError without a recorded envelope.
    """
    died = row.exception_type == f"{ProcessDied.__module__}.{ProcessDied.__qualname__}"
    envelope = row.envelope().for_round(row.queue, row.round, row.key, died=died)
    return PublishedMessage(
        alias=row.alias,
        state=State.PENDING,
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
        body=row.body,
        body_encoding=row.body_encoding,
        wire=envelope.to_wire(),
        round=row.round,
        inbox=row,
        publish_at=due,
        due_at=due,
    )


def wake_relays(database: str, settings: conf.AliasSettings) -> None:
    """Tell waiting relays, where the database can: once per transaction, because each NOTIFY slows its commit."""
    connection = connections[database]
    if not settings.notify or connection.vendor != "postgresql":
        return
    if connection.in_atomic_block:
        told = getattr(connection, "_messaging_told", None)
        # Django forgets the hooks of what is rolled back, as PostgreSQL forgets its notifications.
        if told is not None and any(entry[1] is told for entry in connection.run_on_commit):
            return
        hook = _Told()
        connection._messaging_told = hook  # type: ignore[attr-defined]
        transaction.on_commit(hook, using=database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, settings.alias])


class _Told:
    """A commit hook that does nothing: its presence says that relays are told when this transaction commits."""

    def __call__(self) -> None:
        pass


def _save(rows: list[PublishedMessage], database: str, settings: conf.AliasSettings) -> list[PublishedMessage]:
    if not rows:
        return []
    if len(rows) == 1:
        rows[0].save(using=database, force_insert=True)
    else:
        with transaction.atomic(using=database, savepoint=False):
            for batch in batches(rows, lambda row: len(row.body)):
                PublishedMessage.objects.using(database).bulk_create(batch)
    kill_point("publisher.saved")
    if killpoints.armed():
        transaction.on_commit(partial(kill_point, "publisher.committed"), using=database)
    wake_relays(database, settings)
    return rows


def _save_once(rows: list[PublishedMessage], database: str, settings: conf.AliasSettings) -> list[PublishedMessage]:
    """Save what an earlier run of the same handler has not saved; ids are derived from the cause."""
    ids = [row.message_id for row in rows]
    known = {
        row.message_id: row
        for row in PublishedMessage.objects.using(database).filter(
            alias=settings.alias, message_id__in=ids, causation_id=rows[0].causation_id if rows else ""
        )
    }
    _save([row for row in rows if row.message_id not in known], database, settings)
    return [known.get(row.message_id, row) for row in rows]


def _properties(row: PublishedMessage) -> Properties:
    headers = dict(row.headers)
    if row.causation_id:
        headers[CAUSATION] = row.causation_id
    if row.queue:
        headers.update(_original_address(row))
    return Properties.build(
        headers=headers or None,
        content_type=row.content_type or None,
        delivery_mode=2,
        priority=row.priority,
        correlation_id=row.correlation_id or None,
        reply_to=row.reply_to or None,
        expiration=None if row.expiration is None else str(row.expiration),
        message_id=row.message_id or None,
        timestamp=_epoch(row.created_at),
        type=row.type or None,
    )


def _original_address(row: PublishedMessage) -> dict[str, str]:
    return {ROUTING_KEY: row.routing_key} if row.routing_key != row.queue else {}


def _destination(message: Message, settings: conf.AliasSettings) -> tuple[str, str]:
    if message.queue:
        if message.exchange:
            raise PublishError("Give either queue or exchange: a queue is reached through the default exchange.")
        return "", _short("queue", message.queue)
    exchange = settings.exchange if message.exchange is None else message.exchange
    return _short("exchange", exchange), ""


def _new_id(current: Running | None, exchange: str, queue: str, routing_key: str) -> uuid.UUID:
    if current is not None and not current.atomic:
        return current.next_id(f"{exchange}:{queue}:{routing_key}")
    return uuid.uuid4()


def _correlation(current: Running | None) -> str:
    if current is None or current.message is None:
        return ""
    return short(current.message.correlation_id or current.message.id)


def _set_headers(row: PublishedMessage, headers: dict[str, Any]) -> None:
    ours = sorted(str(name) for name in headers if str(name).startswith(OUR_PREFIX))
    if ours:
        raise PublishError(f"The header {ours[0]!r} begins with {OUR_PREFIX!r}, which is for this app alone.")
    try:
        length = len(encode_table(headers))
        if length > MAX_HEADERS:
            raise PublishError(f"The headers have {length} bytes; AMQP carries about {MAX_HEADERS} in one message.")
        _check_copies(headers)
        row.headers = to_json(headers)
        if row.headers != headers:  # bytes, datetimes and decimals exist in AMQP, not in JSON
            envelope = Envelope(row.exchange, row.routing_key, _properties(row), b"")
            properties = envelope.properties.edited(add_headers=headers)
            row.wire = Envelope(row.exchange, row.routing_key, properties, b"").to_wire()
    except WireError as error:
        raise PublishError(f"The headers cannot be sent: {error}") from error


def _check_copies(headers: Mapping[str, Any]) -> None:
    for name in ("CC", "BCC"):
        keys = headers.get(name, [])
        if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
            raise PublishError(f"The header {name} is {keys!r}; RabbitMQ wants a list of routing keys there.")
        for key in keys:
            _short(f"A routing key in the header {name}", key)


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
    if message.reply_to == REPLIES:
        raise PublishError(f"reply_to is {REPLIES!r}, which works only without an outbox; name a queue.")
    if not isinstance(message.mandatory, bool):
        raise PublishError(f"mandatory is {message.mandatory!r}; it must be True or False.")


def _short(name: str, value: object) -> str:
    text = str(value)
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"{name} is not valid Unicode text.") from error
    if length > 255:
        raise PublishError(f"{name} has {length} bytes; AMQP allows 255.")
    if "\x00" in text:
        raise PublishError(f"{name} contains a NUL character.")
    return text


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise PublishError(f"priority is {value!r}; it is a whole number from 0 to 255.")
    return value


def _seconds(name: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_SECONDS:
        raise PublishError(f"{name} is {value!r}; it is a number of seconds from 0 to ten years.")
    return float(seconds)


def _expiration(value: float | timedelta | None) -> int | None:
    # RabbitMQ takes at most 32 bits of milliseconds.
    return None if value is None else min(round(_seconds("expiration", value) * 1000), 2**32 - 1)


def _due(message: Message) -> models.expressions.Combinable | datetime:
    if message.at is not None:
        if message.delay is not None:
            raise PublishError("Give either delay or at, not both.")
        at: Any = message.at
        if not isinstance(at, datetime) or timezone.is_naive(at):
            raise PublishError(f"at is {at!r}; it must be a datetime with a time zone.")
        try:
            return at.astimezone(UTC)
        except OverflowError as error:
            raise PublishError(f"at is {at}, which is no time in UTC.") from error
    if message.delay is None:
        return Now()
    return Now() + timedelta(seconds=_seconds("delay", message.delay))


def _epoch(moment: Any) -> int | None:
    # A row that was never read back has an expression here.
    return int(moment.timestamp()) if isinstance(moment, datetime) else None
