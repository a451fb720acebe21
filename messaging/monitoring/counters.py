"""How many messages were published, processed and failed, and how long they took: counted in memory.

It is written about once a minute: a process that is killed loses what it has counted since it last wrote. Each writes
rows of its own, so that it waits for no other. Once a minute is over, whoever comes by makes one row of theirs for each
queue: however many processes there are, a page has the same number of rows to add up.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.db import transaction
from django.db.models import CharField, Count, F, QuerySet, Sum, Value

from messaging.db.clock import in_utc, read_clock
from messaging.models import Counter, Worker
from messaging.models.base import written
from messaging.models.counting import BOUNDS, RUNS, WAITS
from messaging.wire.envelope import made_at

EVERY = 55.0  # seconds between two writes; the chores that write come by every few seconds
KINDS = ("published", "unpublished", "processed", "retried", "failed")
MOST = 1000  # queues that are told apart between two writes: names of reply queues may be without number
ASKED = 16  # messages of a batch that are asked how long they waited, each for its neighbours, which did as long
OVER = 2  # minutes after which nobody writes rows of a minute any more
JOINED = 15  # minutes back that `join()` looks; what is older is left to `prune()`
LONGEST = 1.0  # seconds after which it begins no other minute: others wait for this thread
BATCH = 1000  # rows of a statement: a server has a limit for the length of one
HOUR = 60  # minutes
MINUTES_KEPT = 48 * HOUR  # minutes for which each minute stands alone
HOURS_KEPT = 90 * 24 * HOUR  # minutes


class Observer(Protocol):
    """Who is told of each count as it happens, where metrics are on; from any thread."""

    def count(self, kind: str, alias: str, queue: str, handler: str, number: int) -> None:
        """See `add()`."""

    def processed(self, alias: str, queue: str, handler: str, seconds: float, ids: Sequence[str]) -> None:
        """See `add_processed()`."""


observer: Observer | None = None  # set where metrics are on

_lock = threading.Lock()
_SUMS = (*KINDS, "run_seconds", *WAITS, *RUNS)
_counted: defaultdict[tuple[str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(int))
_written_at = _joined_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Point:
    """What was done within some minutes; `minute` is the first, counted from 1970 in UTC.

    `waits` and `runs` are histograms, as `models.counting` has them: for `percentiles`.
    """

    minute: int
    published: int = 0
    unpublished: int = 0
    processed: int = 0
    retried: int = 0
    failed: int = 0
    run_seconds: float = 0.0
    waits: tuple[int, ...] = (0,) * len(WAITS)
    runs: tuple[int, ...] = (0,) * len(RUNS)


def add(kind: str, alias: str, queue: str, number: int = 1, *, handler: str = "") -> None:
    """Count messages. From any thread; it takes no longer than a microsecond.

    Args:
        kind: one of `KINDS`.
        alias: alias of `MESSAGING`.
        queue: theirs; "" for what was published to an exchange.
        number: how many.
        handler: which one failed; for metrics alone.
    """
    with _lock:
        _counts(alias, queue)[kind] += number
    tell(kind, alias, queue, handler, number)


def tell(kind: str, alias: str, queue: str, handler: str = "", number: int = 1) -> None:
    """Count for metrics alone, where they are on: what no chart shows, of any kind. See `add()`."""
    if observer is not None:
        observer.count(kind, alias, queue, handler, number)


def add_processed(
    alias: str, queue: str, seconds: float, ids: Sequence[str], *, handler: str = "", is_first: bool = True
) -> None:
    """Count messages that a handler has just processed together. From any thread; it takes a few microseconds.

    Args:
        alias: alias of `MESSAGING`.
        queue: theirs.
        seconds: how long the handler ran, its commit included.
        ids: the id of each of them, which may tell since when it waited.
        handler: which one; for metrics alone.
        is_first: whether they are on their first round: a retry waits on purpose, and is not counted as waiting.
    """
    began, number = time.time() - seconds, len(ids)
    with _lock:
        counts = _counts(alias, queue)
        counts["processed"] += number
        counts["run_seconds"] += seconds
        counts[RUNS[bisect_left(BOUNDS, seconds)]] += number
        for made, share in samples(ids) if is_first else ():
            counts[WAITS[bisect_left(BOUNDS, began - made)]] += share
    if observer is not None:
        observer.processed(alias, queue, handler, seconds, ids)


def samples(ids: Sequence[str]) -> Iterator[tuple[float, int]]:
    """When some of these messages were made, as far as their ids tell, each with the number that it stands for."""
    every = 1 + (len(ids) - 1) // ASKED
    for first in range(0, len(ids), every):
        made = made_at(ids[first])
        if made is not None:
            yield made, min(every, len(ids) - first)


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


def join_when_due(database: str) -> None:
    """Join what all processes wrote, unless this one has looked less than a minute ago."""
    global _joined_at
    if time.monotonic() - _joined_at >= EVERY:
        _joined_at = time.monotonic()
        join(database)


def join(database: str) -> int:
    """Make one row for each queue of what the processes wrote in the last minutes. Returns how many rows fewer."""
    began, fewer = time.monotonic(), 0
    now, minutes = _this_minute(database), Counter.objects.using(database).filter(length=1)
    over = minutes.filter(minute__gt=now - JOINED, minute__lte=now - OVER).order_by()
    several: defaultdict[int, set[str]] = defaultdict(set)
    for row in over.values("minute", "alias", "queue").annotate(rows=Count("pk")).filter(rows__gt=1):
        several[row["minute"]].add(row["queue"])
    for minute, queues in sorted(several.items()):
        if time.monotonic() - began < LONGEST:
            fewer += _add_up(minutes.filter(minute=minute, queue__in=queues), minute, 1, database) or 0
    return fewer


@dataclass(frozen=True, slots=True)
class Period:
    """So many minutes until one, counted from 1970, in points of `step` minutes, which divides them."""

    until: int
    minutes: int
    step: int

    @property
    def starts(self) -> range:
        """The first minute of each point."""
        first = self.until - self.until % self.step - self.minutes + self.step
        return range(first, self.until + 1, self.step)

    def points(self, found: Mapping[int, Mapping[str, Any]]) -> list[Point]:
        """A point for each, from the sums by its first minute; those in which nothing was done included."""
        return [_point(minute, found.get(minute, {})) for minute in self.starts]


def history(whole: Period, by_queue: Period) -> tuple[list[Point], dict[tuple[str, str], list[Point]]]:
    """What was done in a period; and in another one, in each queue by alias and name. One statement."""
    parts = (_summed(whole, Value("", CharField()), Value("", CharField())), _summed(by_queue, F("alias"), F("queue")))
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {("", ""): {}}
    for row in parts[0].union(parts[1], all=True):
        found.setdefault((row["of_alias"], row["of_queue"]), {})[row["bucket"]] = row
    sums = found.pop(("", ""))
    return whole.points(sums), {key: by_queue.points(own) for key, own in found.items()}


def _summed(period: Period, alias: Any, queue: Any) -> Any:
    bucket = F("minute") - F("minute") % period.step
    rows = written(Counter).filter(minute__gte=period.starts[0], minute__lte=period.until).order_by()
    return rows.values(of_alias=alias, of_queue=queue, bucket=bucket).annotate(**{name: Sum(name) for name in _SUMS})


def _point(minute: int, sums: Mapping[str, Any]) -> Point:
    own = {name: sums.get(name) or 0 for name in (*KINDS, "run_seconds")}
    waits, runs = (tuple(int(sums.get(name) or 0) for name in names) for names in (WAITS, RUNS))
    return Point(minute, waits=waits, runs=runs, **own)


def prune(database: str) -> int:
    """Add up the minutes of two days ago to hours, and delete the hours of three months ago. Returns how many went.

    It stops where another process is at it.
    """
    now, gone = _this_minute(database), 0
    rows = Counter.objects.using(database)
    minutes = rows.filter(length=1, minute__lt=now - now % HOUR - MINUTES_KEPT).order_by("minute")
    while (first := minutes.values_list("minute", flat=True).first()) is not None:
        hour = first - first % HOUR
        fewer = _add_up(minutes.filter(minute__lt=hour + HOUR), hour, HOUR, database)
        if fewer is None:
            break
        gone += fewer
    return gone + rows.filter(minute__lt=now - HOURS_KEPT).delete()[0]


def _add_up(rows: QuerySet[Counter], minute: int, length: int, database: str) -> int | None:
    """Replace rows by one for each queue, from a minute on.

    Returns how many there are fewer; None where somebody else is doing it, or has just added to them.
    """
    first = rows.order_by("minute", "pk").first()
    with transaction.atomic(using=database):
        if first is None or not _is_free(Counter.objects.using(database).filter(pk=first.pk), database):
            return None
        found = list(rows)
        sums = _sums(found, minute, length)
        if length == 1 and len(sums) == len(found):  # somebody was faster
            return 0
        if rows.delete()[0] != len(found):
            transaction.set_rollback(True, using=database)
            return None
        Counter.objects.using(database).bulk_create(sums, batch_size=BATCH)
    return len(found) - len(sums)


def _is_free(first: QuerySet[Counter], database: str) -> bool:
    """Whether the first of some rows is there and nobody's, whose it is from now on. Waits only where it has to."""
    if transaction.get_connection(database).features.has_select_for_update_skip_locked:
        return bool(first.select_for_update(skip_locked=True))
    return bool(first.update(length=F("length")))


def _sums(rows: Iterable[Counter], minute: int, length: int) -> list[Counter]:
    found: dict[tuple[str, str], Counter] = {}
    for row in rows:
        own: dict[str, Any] = {"length": length, "minute": minute, "alias": row.alias, "queue": row.queue}
        total = found.setdefault((row.alias, row.queue), Counter(**own))
        for name in _SUMS:
            if number := getattr(row, name):
                setattr(total, name, (getattr(total, name) or 0) + number)
    return list(found.values())


def _counts(alias: str, queue: str) -> defaultdict[str, float]:
    """Where a queue is counted; under the lock."""
    return _counted[(alias, queue) if len(_counted) < MOST or (alias, queue) in _counted else (alias, "")]


def minute_of(moment: Any) -> int:
    """The number of a moment's minute, counted from 1970 in UTC."""
    return int(in_utc(moment).timestamp()) // 60


def _this_minute(database: str) -> int:
    """By the database's clock, which all processes share."""
    return minute_of(read_clock(Worker.objects.using(database), "seen_at"))
