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
    """What this test published, in order: sent or not, scheduled or not; without drafts and without retries.

    Args:
        routing_key: a routing key, or a pattern (`*` one word, `#` any number); None for all.
        queue: only what was published straight to this queue.
        exchange: only what was published to this exchange.
        using: alias of `MESSAGING`.
        database: whose outbox; all that the alias uses and the test may read unless given.

    Returns outbox rows, with `payload`, `headers`, `routing_key`, `queue`, `publish_at`, `message_id` and so on.
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
        routing_key: a routing key or a pattern; None for any.
        payload: as it was published or as it arrives; `unittest.mock.ANY` stands for any, in parts of it too.
        queue: the queue that it was published straight to; "" for none.
        exchange: the exchange that it was published to; "" for the default exchange.
        headers: headers that it must have; it may have others.
        count: how many there must be; None for at least one.
        using: see `published()`.
        database: see `published()`.
        fields: other fields of the row, such as `correlation_id=`, `priority=` or `state=`.

    Returns the rows that match, in order. Raises AssertionError saying what was published, and what comes nearest.
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
    """Assert that no such message was published; without arguments, that nothing was. See `assert_published()`."""
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
    """Do what relay and consumer would, here and now: send what is due, and process what handlers of this site take.

    Handlers run as in production, in transactions of their own, with retries, until nothing is due. Inside the
    transaction of a `TestCase` savepoints stand for their transactions. No time limit (`timeout=`) is watched.

    Args:
        within: seconds that pass meanwhile; delays and pauses before retries that end within them are over.
        raise_errors: whether the first error of a handler is raised, after it was recorded and all is done. False to
            look at the rows instead.
        limit: messages after which it gives up, because handlers publish to each other without an end.
        using: alias of `MESSAGING`.

    Returns what became of the messages. Raises what a handler raised, and RuntimeError inside an `atomic()` block.
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
