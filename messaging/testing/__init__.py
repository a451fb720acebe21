"""For tests of code that publishes and of handlers, without a broker: in Django's test cases and with pytest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

from django.core.exceptions import FieldDoesNotExist

from messaging import conf
from messaging.exceptions import LONGEST_WAIT
from messaging.handlers import topic_matches
from messaging.models import PublishedMessage
from messaging.processing.error_text import without_ours
from messaging.testing.asking import ask
from messaging.testing.comparing import Wanted, differences, listing, report
from messaging.testing.drained import Drained
from messaging.testing.draining import Drain, usable

__all__ = ["Drained", "ask", "assert_not_published", "assert_published", "drain", "published"]

LIMIT = 1000  # messages that one drain() sends at most


def published(
    routing_key: str | None = None,
    *,
    queue: str | None = None,
    exchange: str | None = None,
    using: str = conf.DEFAULT_ALIAS,
    database: str | None = None,
) -> list[PublishedMessage]:
    """What this test published, in order: whether sent or not, scheduled or not. Drafts and retries are left out.

    Args:
        routing_key: a routing key, or a pattern (`*` stands for one word, `#` for any number); `None` for all.
        queue: only messages that were published straight to this queue.
        exchange: only messages that were published to this exchange.
        using: alias of `MESSAGING`.
        database: the database whose outbox is read; by default every one that the alias uses and the test may read.

    Returns:
        Outbox rows, with `payload`, `headers`, `routing_key`, `queue`, `publish_at`, `message_id` and so on.
    """
    rows = [
        row
        for row in _outbox(using, database)
        if (routing_key is None or topic_matches(routing_key, row.routing_key))
        and queue in (None, row.queue)
        and exchange in (None, row.exchange)
    ]
    return sorted(rows, key=lambda row: row.created_at)


def assert_published(
    routing_key: str | None = None,
    payload: Any = ANY,
    *,
    queue: str | None = None,
    exchange: str | None = None,
    headers: Mapping[str, Any] | None = None,
    count: int | None = None,
    using: str = conf.DEFAULT_ALIAS,
    database: str | None = None,
    **fields: Any,
) -> list[PublishedMessage]:
    """Assert that such a message was published.

    Args:
        routing_key: a routing key or a pattern; `None` for any.
        payload: the payload, as it was published or as it arrives. `unittest.mock.ANY` stands for any value, also
            within it.
        queue: the queue that the message was published straight to; `""` if to none.
        exchange: the exchange that the message was published to; `""` for the default exchange.
        headers: headers that the message must have; it may have others.
        count: how many such messages there must be; `None` for at least one.
        using: as for `published()`.
        database: as for `published()`.
        **fields: other fields of the row, such as `correlation_id=`, `priority=` or `state=`.

    Returns:
        The rows that match, in order.

    Raises:
        AssertionError: the number of matching messages is another. The text lists what was published, and says what
            differs in the message that comes nearest.
        TypeError: an outbox row has no such field.
    """
    __tracebackhide__ = True
    wanted = _wanted(routing_key, payload, queue, exchange, headers, fields)
    rows = published(using=using, database=database)
    matching = [row for row in rows if not differences(row, wanted)]
    if count is None and not matching:
        raise AssertionError(f"No message{wanted} was published.\n{report(rows, wanted)}")
    if count is not None and len(matching) != count:
        raise AssertionError(
            f"{_number(len(matching))}{wanted} {'was' if len(matching) == 1 else 'were'} published, not {count}.\n"
            f"{report(rows, wanted)}"
        )
    return matching


def assert_not_published(
    routing_key: str | None = None,
    payload: Any = ANY,
    *,
    queue: str | None = None,
    exchange: str | None = None,
    headers: Mapping[str, Any] | None = None,
    using: str = conf.DEFAULT_ALIAS,
    database: str | None = None,
    **fields: Any,
) -> None:
    """Assert that no such message was published; without arguments, that none was.

    Args:
        routing_key: a routing key or a pattern; `None` for any.
        payload: as for `assert_published()`.
        queue: the queue that the message was published straight to; `""` if to none.
        exchange: the exchange that the message was published to; `""` for the default exchange.
        headers: headers that the message must have; it may have others.
        using: as for `published()`.
        database: as for `published()`.
        **fields: other fields of the row, such as `correlation_id=`, `priority=` or `state=`.

    Raises:
        AssertionError: there is such a message. The text lists all of them.
        TypeError: an outbox row has no such field.
    """
    __tracebackhide__ = True
    wanted = _wanted(routing_key, payload, queue, exchange, headers, fields)
    matching = [row for row in published(using=using, database=database) if not differences(row, wanted)]
    if matching:
        verb = "was" if len(matching) == 1 else "were"
        lines = "\n".join(listing(matching))
        raise AssertionError(f"{_number(len(matching))}{wanted} {verb} published:\n{lines}")


def drain(
    *,
    within: timedelta | float = 0,
    raise_errors: bool = True,
    limit: int = LIMIT,
    using: str = conf.DEFAULT_ALIAS,
) -> Drained:
    """Do the work of the relay and of the consumer now: send what is due, and process what this site's handlers take.

    Handlers run as in production, in transactions of their own and with retries, until nothing is due. Inside the
    transaction of a `TestCase`, savepoints take the place of these transactions. The `timeout` of a handler is ignored.

    Args:
        within: how many seconds are taken to pass meanwhile. Delays, and pauses before retries, that end within this
            time are over at once.
        raise_errors: whether to raise the first error of a handler, once everything is done and recorded. Pass
            `False` to look at the rows instead.
        limit: the number of messages after which it gives up, since handlers may publish to each other without an end.
        using: alias of `MESSAGING`.

    Returns:
        What became of the messages.

    Raises:
        Exception: what a handler raised.
        MessagingError: more than `limit` messages were to be sent.
        RuntimeError: it was called inside an `atomic()` block.
        ValueError: `within` is negative, or more than ten years.
    """
    __tracebackhide__ = True
    drained = Drain(using, limit).run(_seconds(within))
    if raise_errors and drained.errors:
        first, *others = drained.errors
        if others:
            first.add_note(f"{len(others)} more failed after it. drain(raise_errors=False) returns them all.")
        raise first.with_traceback(without_ours(first.__traceback__))
    return drained


def _outbox(using: str, database: str | None) -> list[PublishedMessage]:
    rows: list[PublishedMessage] = []
    for name in [database] if database else usable(conf.get(using).databases):
        first_rounds = PublishedMessage.objects.using(name).filter(alias=using, inbox=None, round=1)
        rows += first_rounds.exclude(state=PublishedMessage.State.DRAFT).order_by("pk")
    return rows


def _wanted(
    routing_key: str | None,
    payload: Any,
    queue: str | None,
    exchange: str | None,
    headers: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> Wanted:
    for name in fields:
        try:
            PublishedMessage._meta.get_field(name)
        except FieldDoesNotExist:
            known = ", ".join(sorted(field.name for field in PublishedMessage._meta.concrete_fields))
            raise TypeError(f"A published message has no field {name!r}; it has {known}.") from None
    places = {"queue": queue, "exchange": exchange}
    given = {name: value for name, value in places.items() if value is not None}
    return Wanted(routing_key, payload, headers or {}, {**given, **fields})


def _number(count: int) -> str:
    return f"{count or 'No'} message{'' if count == 1 else 's'}"


def _seconds(within: timedelta | float) -> float:
    seconds = within.total_seconds() if isinstance(within, timedelta) else float(within)
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError(f"within is {within!r}; it is a number of seconds from 0 to ten years.")
    return seconds
