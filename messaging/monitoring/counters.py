"""How many messages were published, processed and failed: counted in memory, written about once a minute.

A process that is killed loses what it has counted since it last wrote. Each writes rows of its own, which are added up
by whoever reads them: no two processes ever wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet, Sum

from messaging.db.clock import Now, in_utc
from messaging.models import Counter, Worker
from messaging.models.base import written

EVERY = 55.0  # seconds between two writes; the chores that write come by every few seconds
KINDS = ("published", "unpublished", "processed", "retried", "failed")
MOST = 1000  # queues that are told apart between two writes: names of reply queues may be without number
HOUR = 60  # minutes
MINUTES_KEPT = 48 * HOUR  # minutes for which each minute stands alone
HOURS_KEPT = 90 * 24 * HOUR  # minutes

_lock = threading.Lock()
_SUMS = (*KINDS, "run_seconds")
_counted: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(_SUMS, 0))
_written_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Point:
    """What was done within some minutes; `minute` is the first, counted from 1970 in UTC."""

    minute: int
    published: int = 0
    unpublished: int = 0
    processed: int = 0
    retried: int = 0
    failed: int = 0
    run_seconds: float = 0.0


def add(kind: str, alias: str, queue: str, number: int = 1, seconds: float = 0.0) -> None:
    """Count messages. From any thread; it takes no longer than a microsecond.

    Args:
        kind: one of `KINDS`.
        alias: alias of `MESSAGING`.
        queue: theirs; "" for what was published to an exchange.
        number: how many.
        seconds: how long their handlers ran, together.
    """
    with _lock:
        key = (alias, queue) if len(_counted) < MOST or (alias, queue) in _counted else (alias, "")
        counts = _counted[key]
        counts[kind] += number
        counts["run_seconds"] += seconds


def write_when_due(database: str) -> None:
    """Write what was counted, unless this process has written less than a minute ago."""
    if time.monotonic() - _written_at >= EVERY:
        write(database)


def write(database: str) -> None:
    """Write what was counted since the last time, if anything. Where that fails, it stays counted."""
    global _written_at
    with _lock:
        taken = dict(_counted)
        _counted.clear()
        _written_at = time.monotonic()
    if not taken:
        return
    try:
        minute = _this_minute(database)
        rows = [Counter(minute=minute, alias=alias, queue=queue, **counts) for (alias, queue), counts in taken.items()]
        Counter.objects.using(database).bulk_create(rows)
    except BaseException:
        with _lock:
            for key, counts in taken.items():
                for name, number in counts.items():
                    _counted[key][name] += number
        raise


def history(until: int, minutes: int, step: int) -> list[Point]:
    """What was done in a period, a point for every `step` minutes, those in which nothing was done included.

    Args:
        until: the last minute, counted from 1970.
        minutes: how long the period is.
        step: minutes of a point; a divisor of `minutes`.
    """
    first = until - until % step - minutes + step
    bucket = F("minute") - F("minute") % step
    rows = written(Counter).filter(minute__gte=first, minute__lte=until).values(bucket=bucket).order_by()
    found = {row.pop("bucket"): row for row in rows.annotate(**{name: Sum(name) for name in _SUMS})}
    return [Point(minute, **found.get(minute, {})) for minute in range(first, until + 1, step)]


def prune(database: str) -> int:
    """Add up the minutes of two days ago to hours, and delete the hours of three months ago. Returns how many went."""
    now, gone = _this_minute(database), 0
    rows = Counter.objects.using(database)
    minutes = rows.filter(length=1, minute__lt=now - now % HOUR - MINUTES_KEPT).order_by("minute")
    while (first := minutes.values_list("minute", flat=True).first()) is not None:
        hour = first - first % HOUR
        gone += _add_up(minutes.filter(minute__lt=hour + HOUR), hour, database)
    return gone + rows.filter(minute__lt=now - HOURS_KEPT).delete()[0]


def _add_up(minutes: QuerySet[Counter], hour: int, database: str) -> int:
    """Replace the rows of an hour by a row for each queue. Returns how many there are fewer."""
    features = transaction.get_connection(database).features
    with transaction.atomic(using=database):
        rows = minutes.select_for_update() if features.has_select_for_update else minutes
        found = list(rows)
        if minutes.delete()[0] != len(found):
            transaction.set_rollback(True, using=database)  # somebody else was faster
            return 0
        hours = _sums(found, hour)
        Counter.objects.using(database).bulk_create(hours)
    return len(found) - len(hours)


def _sums(rows: Iterable[Counter], hour: int) -> list[Counter]:
    found: dict[tuple[str, str], Counter] = {}
    for row in rows:
        own: dict[str, Any] = {"length": HOUR, "minute": hour, "alias": row.alias, "queue": row.queue}
        total = found.setdefault((row.alias, row.queue), Counter(**own))
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return list(found.values())


def minute_of(moment: Any) -> int:
    """The number of a moment's minute, counted from 1970 in UTC."""
    return int(in_utc(moment).timestamp()) // 60


def _this_minute(database: str) -> int:
    """By the database's clock, which all processes share."""
    rows = Worker.objects.using(database)
    now, params = rows.query.get_compiler(database).compile(Now())
    [row] = rows.raw(f"SELECT 0 AS id, {now} AS seen_at", params)
    return minute_of(row.seen_at)
