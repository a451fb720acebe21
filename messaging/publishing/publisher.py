"""Publishing: a row in the caller's transaction, which tells the relays. They do the rest.

PostgreSQL's NOTIFY tells them; on other databases they find the row at their next look.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import conf, killpoints, signals
from messaging.contracts.events import Event
from messaging.db.insert_many import insert_many
from messaging.db.insert_one import insert
from messaging.exceptions import ConfigurationError, PublishError
from messaging.killpoints import kill_point
from messaging.message import Message, handler_context
from messaging.models import PublishedMessage
from messaging.publishing.rows import Composer
from messaging.publishing.surrounding import compose_all

CHANNEL = "messaging_outbox"
# Told of rows that are saved and not committed, with their database; set where metrics are on.
on_saved: Callable[[Sequence[PublishedMessage], str], None] | None = None


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
    content_encoding: str | None = None,
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
        routing_key: up to 255 bytes; or an `Event`, which names the exchange, the type and the alias as well.
        payload: bytes and text are sent as they are; a `CloudEvent` is sent as one; anything else is encoded as JSON.
        exchange: `None` for the alias's `EXCHANGE`; `""` for the default exchange.
        queue: sends the message straight to this queue, past all exchanges; the consumer still sees `routing_key`.
        headers: plain values. Names that begin with `x-messaging-` are reserved, except `x-messaging-version`.
        message_id: up to 255 bytes; a new UUID by default. A consumer processes each id once.
        correlation_id: by default, inside a handler, the correlation id of the message that it handles.
        content_type: decides how text is encoded; by default it is guessed from the payload. A CloudEvent is structured
            with `application/cloudevents+json`, and binary with anything else.
        content_encoding: `"gzip"` or `"deflate"` compresses the payload. Bytes are sent as they are in any case.
        type: the message type, up to 255 bytes.
        reply_to: the queue that expects an answer, up to 255 bytes.
        priority: 0 to 255.
        expiration: seconds after which the broker may drop the message from a queue.
        mandatory: whether it is an error if no queue takes the message.
        delay: seconds to wait before the message is sent.
        at: when to send the message, instead of `delay`: an aware datetime; with `USE_TZ = False` a naive one in
            `TIME_ZONE`.
        using: alias of `MESSAGING`.
        database: the database whose outbox takes the message. By default it is the handler's inside a handler, and
            elsewhere the one that the database router chooses. Name it to publish while a transaction of another
            database is open: the message is then no part of that transaction.

    Returns:
        The outbox row.

    Raises:
        PublishError: the message can never be sent. Nothing was written.
        ConfigurationError: there is no such alias, or no relay serves that database.
    """
    if isinstance(routing_key, Event) and using == conf.DEFAULT_ALIAS:
        using = routing_key.using
    message = Message(
        routing_key,
        payload,
        exchange=exchange,
        queue=queue,
        headers=headers,
        message_id=message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        content_encoding=content_encoding,
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
    """Publish several messages with few statements: all of them or none.

    Args:
        messages: what to publish; a generator will do.
        using: alias of `MESSAGING`.
        database: the database whose outbox takes the messages, as for `publish()`.

    Returns:
        The outbox rows, in the same order.

    Raises:
        PublishError: one of the messages can never be sent. None was written.
        ConfigurationError: there is no such alias, or no relay serves that database.
    """
    settings = conf.get(using)
    current = handler_context.get()
    composer = Composer(settings, current, database)
    is_named = bool(database)
    database = database or (current.database if current else router.db_for_write(PublishedMessage))
    if database not in settings.databases:
        raise ConfigurationError(
            f'No relay serves the outbox of the database "{database}": add it to '
            f'MESSAGING["{using}"]["DATABASES"], or the message would never be sent.'
        )
    if not is_named:
        _check_transaction(database)
    if settings.publish_middleware:
        rows = compose_all(settings, composer, messages)
    else:
        rows = list(map(composer.compose, messages))
    end_spans = None if signals.tracing is None else signals.tracing.create(rows, settings)
    if current is not None and not current.atomic:
        rows = _save_once(rows, database, settings)
    else:
        if current is not None and current.rehearsed is not None:
            current.rehearsed += rows
        _save(rows, database, settings)
    if end_spans is not None:
        end_spans(rows, database)
    return rows


async def apublish(routing_key: str, payload: Any, **options: Any) -> PublishedMessage:
    """`publish()` for async code.

    Args:
        routing_key: as for `publish()`.
        payload: as for `publish()`.
        **options: the other arguments of `publish()`.

    Returns:
        The outbox row.

    Raises:
        PublishError: as for `publish()`.
        ConfigurationError: as for `publish()`.
    """
    return await sync_to_async(lambda: whole(publish(routing_key, payload, **options)))()


async def apublish_many(messages: Iterable[Message], **options: Any) -> list[PublishedMessage]:
    """`publish_many()` for async code.

    Args:
        messages: what to publish.
        **options: the other arguments of `publish_many()`.

    Returns:
        The outbox rows, in the same order.

    Raises:
        PublishError: as for `publish_many()`.
        ConfigurationError: as for `publish_many()`.
    """
    given = list(messages)
    return await sync_to_async(lambda: list(map(whole, publish_many(given, **options))))()


def whole(row: PublishedMessage) -> PublishedMessage:
    """The row. What the database filled in is read here: async code must not wait for a query when it asks for it."""
    deferred = row.get_deferred_fields()
    if deferred and row.pk is not None:
        row.refresh_from_db(fields=deferred)
    return row


def _check_transaction(database: str) -> None:
    """Raise PublishError where the caller's transaction is in another database than the outbox that nobody named."""
    if not is_open(connections[database]):
        for other in connections.all(initialized_only=True):
            if other.alias != database and is_open(other):
                raise PublishError(
                    f'A transaction is open in the database "{other.alias}", and none in "{database}", whose outbox '
                    "takes the message: it would be sent even if that transaction rolled back. Either use the outbox "
                    f'there, with database="{other.alias}"; or open transaction.atomic(using="{database}") inside of '
                    f'it, which commits first; or say database="{database}" if it belongs to no transaction.'
                )


def is_open(connection: BaseDatabaseWrapper) -> bool:
    """Whether the caller has begun a transaction there: not the test case around a test, and not by the settings."""
    if connection.atomic_blocks:
        return not getattr(connection.atomic_blocks[-1], "_from_testcase", False)
    return connection.connection is not None and not connection.autocommit and connection.settings_dict["AUTOCOMMIT"]


def _save(rows: Sequence[PublishedMessage], database: str, settings: conf.AliasSettings) -> None:
    if not rows:
        return
    if len(rows) == 1:
        insert(rows[0], database)
    else:
        insert_many(rows, database, lambda row: len(row.body))
    kill_point("publisher.saved")
    if killpoints.armed():
        transaction.on_commit(partial(kill_point, "publisher.committed"), using=database)
    if on_saved is not None:
        on_saved(rows, database)
    wake_relays(database, settings)


def _save_once(rows: list[PublishedMessage], database: str, settings: conf.AliasSettings) -> list[PublishedMessage]:
    """Save what an earlier run of the same handler has not saved; ids are derived from the cause, or the caller's own.

    What goes elsewhere is another message, whatever its id.
    """
    ids = [row.message_id for row in rows]
    known = {
        _identity(row): row
        for row in PublishedMessage.objects.using(database).filter(
            alias=settings.alias, message_id__in=ids, causation_id=rows[0].causation_id if rows else ""
        )
    }
    _save([row for row in rows if _identity(row) not in known], database, settings)
    return [known.get(_identity(row), row) for row in rows]


def _identity(row: PublishedMessage) -> tuple[str, str, str, str]:
    return row.message_id, row.exchange, row.queue, row.routing_key


def wake_relays(database: str, settings: conf.AliasSettings) -> None:
    """Tell an alias's relays, where the database can: once per transaction, because each NOTIFY slows its commit."""
    connection = connections[database]
    if not settings.notify or connection.vendor != "postgresql":
        return
    if connection.in_atomic_block:
        told: dict[str, _Told] = connection.__dict__.setdefault("_messaging_told", {})
        hook = told.get(settings.alias)
        # Django forgets the hooks of what is rolled back, as PostgreSQL forgets its notifications.
        if hook is not None and any(entry[1] is hook for entry in connection.run_on_commit):
            return
        told[settings.alias] = hook = _Told()
        transaction.on_commit(hook, using=database)
    notify(connection, settings.alias)


def notify(connection: BaseDatabaseWrapper, alias: str) -> None:
    """Tell an alias's relays, with this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, alias])


class _Told:
    """A commit hook that does nothing: its presence says that an alias's relays are told by this transaction."""

    def __call__(self) -> None:
        pass
