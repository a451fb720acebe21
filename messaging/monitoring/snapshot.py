"""What the tables say of the whole site at one moment.

One statement reads its workers, and one what waits in each database; no backlog makes these longer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import BooleanField, ExpressionWrapper, F, Q, QuerySet, Sum

from messaging import conf
from messaging.db.clock import Now, in_utc
from messaging.models import FailureCount, FailureGroup, PublishedMessage, QueueControl, Worker
from messaging.models.base import listed_in, written
from messaging.models.failure_groups import is_silenced
from messaging.models.outbox import UNROUTED, PublishedMessageQuerySet
from messaging.monitoring.databases import ask_each, home, known

MOST = 10_000  # rows of a kind that are ever counted; one more says that there are more
SHOWN = 200  # workers
KEPT = timedelta(days=1)  # for which a worker that says nothing is still remembered
RECENT = timedelta(days=1)
QUIET = 1000  # silenced groups that are told
LOOKED_BACK = 200  # minutes of them; hosts' clocks may be an hour apart

Part = tuple[str, tuple[Any, ...]]  # a statement, and its parameters


@dataclass(frozen=True, slots=True)
class Outbox:
    """What an alias's outbox holds, counted up to `MOST` + 1.

    Attributes:
        due: messages whose time has come.
        oldest: when that was for the one that has waited longest; None without any.
        unrouted: messages that no queue took, and that are tried again.
        unrouted_since: when the first of those was due.
        failed: messages that can never be sent.
        database: where the one is that has waited longest; "" for the database that lists begin with.
        unrouted_in: the same of those that no queue took.
    """

    due: int = 0
    oldest: datetime | None = None
    unrouted: int = 0
    unrouted_since: datetime | None = None
    failed: int = 0
    database: str = ""
    unrouted_in: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """A queue that our consumers leave alone, and since when."""

    alias: str
    queue: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The site at one moment.

    Attributes:
        now: the moment, by the database's clock.
        outboxes: by alias, those of all databases added up.
        pauses: the paused queues.
        failures: incoming messages that failed, by alias and the first of every `BUCKET` minutes; those apart that are
            of groups which are silenced now, as `silenced`.
        quiet: the fingerprints of the silenced groups, by database.
        recent: how many groups were seen within `RECENT`, and are not silenced, by database.
        workers: those that were seen within a day, the latest first.
        ready: messages in queues, by alias and queue, as far as a broker has told lately.
        by_database: the outboxes by database, those of all aliases added up.
        away: databases that cannot be read.
    """

    now: datetime
    outboxes: Mapping[str, Outbox] = field(default_factory=dict)
    pauses: tuple[Pause, ...] = ()
    failures: Mapping[tuple[str, int], int] = field(default_factory=dict)
    silenced: Mapping[tuple[str, int], int] = field(default_factory=dict)
    quiet: Mapping[str, Collection[str]] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)
    workers: tuple[Worker, ...] = ()
    ready: Mapping[tuple[str, str], int] = field(default_factory=dict)
    by_database: Mapping[str, Outbox] = field(default_factory=dict)
    away: tuple[str, ...] = ()


def read(ready: Mapping[tuple[str, str], int] | None = None) -> Snapshot:
    """Look at the tables.

    Args:
        ready: what is known of queues; it is passed on.
    """
    workers = written(Worker).filter(seen_at__gte=Now() - KEPT).order_by("-seen_at", "-id")[:SHOWN]
    databases = dict.fromkeys([*known(), *known(FailureGroup), written(QueueControl).db])
    told = ask_each(_told, databases)
    rows = [row for own in told.values() for row in own]
    boxes = {(name, alias): _outbox(name, alias, own) for name, own in told.items() for alias in conf.aliases()}
    return Snapshot(
        now=in_utc(next((row.publish_at for row in rows if row.kind == "now"), datetime.now(UTC))),
        outboxes={one: _together(box for (_, alias), box in boxes.items() if alias == one) for one in conf.aliases()},
        pauses=tuple(Pause(row.alias, row.queue, row.publish_at) for row in rows if row.kind == "paused"),
        failures=_summed(rows, "failures"),
        silenced=_summed(rows, "silenced"),
        quiet={name: frozenset(row.alias for row in own if row.kind == "quiet") for name, own in told.items()},
        recent={name: sum(int(row.number) for row in own if row.kind == "recent") for name, own in told.items()},
        workers=tuple(workers),
        ready=ready or {},
        by_database={one: _together(box for (name, _), box in boxes.items() if name == one) for one in told},
        away=tuple(name for name in databases if name not in told),
    )


def _summed(rows: Iterable[Any], kind: str) -> dict[tuple[str, int], int]:
    """Failures of a kind by alias and minute, those of all databases added up."""
    found: Counter[tuple[str, int]] = Counter()
    for row in rows:
        if row.kind == kind:
            found[row.alias, int(row.first)] += int(row.number)
    return dict(found)


def _outbox(database: str, alias: str, told: Iterable[Any]) -> Outbox:
    own = {row.kind: row for row in told if row.alias == alias}
    due, unrouted, failed = own.get("due"), own.get("unrouted"), own.get("unsendable")
    return Outbox(
        int(due.number) if due else 0,
        due.publish_at if due else None,
        int(unrouted.number) if unrouted else 0,
        unrouted.publish_at if unrouted else None,
        int(failed.number) if failed else 0,
        *([database] * 2 if database != home() else []),
    )


def _together(boxes: Iterable[Outbox]) -> Outbox:
    """Several added up; of what waits, the first."""
    found = list(boxes)
    if len(found) == 1:
        return found[0]
    due = min(found, key=lambda box: _stamp(box.oldest), default=Outbox())
    unrouted = min(found, key=lambda box: _stamp(box.unrouted_since), default=Outbox())
    return Outbox(
        sum(box.due for box in found),
        due.oldest,
        sum(box.unrouted for box in found),
        unrouted.unrouted_since,
        sum(box.failed for box in found),
        due.database,
        unrouted.unrouted_in,
    )


def _stamp(moment: datetime | None) -> float:
    return math.inf if moment is None else in_utc(moment).timestamp()


def _told(database: str) -> list[Any]:
    """Rows of the columns kind, alias, queue, number, first and publish_at, by one statement."""
    parts = [*_of_outboxes(database)] if database in known() else []
    parts += [_of_pauses(database)] if database == written(QueueControl).db else []
    parts += [*_of_failures(database), *_of_groups(database)] if database in known(FailureGroup) else []
    now, params = _now(database)
    first = f"SELECT 0 AS id, 'now' AS kind, '' AS alias, '' AS queue, 0 AS number, 0 AS first, {now} AS publish_at"
    sql = " UNION ALL ".join([first, *(text for text, _ in parts)])
    values = [*params, *(value for _, more in parts for value in more)]
    return list(PublishedMessage.objects.using(database).raw(sql, values))


def _of_outboxes(database: str) -> Iterator[Part]:
    """What is due or tried again, and what can never be sent."""
    outbox = PublishedMessage.objects.using(database)
    for alias in conf.aliases():
        yield _of_due(outbox, alias)
    rows = outbox.filter(listed_in(PublishedMessage.State.FAILED)).order_by("state", "id")
    sql, params = _compiled(rows.values("alias")[: MOST + 1])
    yield f"SELECT 0, 'unsendable', alias, '', COUNT(*), 0, NULL FROM ({sql}) failed GROUP BY alias", params


def _of_due(outbox: PublishedMessageQuerySet, alias: str) -> Part:
    """They are found by `due_at`. Of what can be taken now the first are looked at, in the order in which relays do.

    Of what a relay holds, or has to try again later, those whose turn is next: what is scheduled stands among them.
    """
    unrouted = ExpressionWrapper(UNROUTED, BooleanField())
    taken: list[str] = []
    values: list[Any] = []
    for rows in (outbox.scheduled(alias, due_at__lte=Now()), outbox.scheduled(alias, due_at__gt=Now())):
        found = rows.annotate(is_unrouted=unrouted).values("alias", "publish_at", "is_unrouted")
        sql, params = _compiled(found[: MOST + 1])
        taken.append(f"SELECT * FROM ({sql}) one")
        values += params
    now, params = _now(outbox.db)
    text = (
        "SELECT 0, CASE WHEN is_unrouted THEN 'unrouted' ELSE 'due' END, alias, '', COUNT(*), 0, MIN(publish_at) "
        f"FROM ({' UNION ALL '.join(taken)}) found WHERE publish_at <= {now} GROUP BY alias, is_unrouted"
    )
    return text, (*values, *params)


def _of_pauses(database: str) -> Part:
    rows = QueueControl.objects.using(database).filter(paused=True).order_by("id")
    sql, params = _compiled(rows.values("alias", "queue", "changed_at")[:MOST])
    return f"SELECT 0, 'paused', alias, queue, 1, 0, changed_at FROM ({sql}) paused", params


def _of_failures(database: str) -> Iterator[Part]:
    """What has failed for good, by whether its group is silenced now."""
    since = int(time.time()) // 60 - LOOKED_BACK
    rows = FailureCount.objects.using(database).filter(minute__gte=since, failed__gt=0).order_by()
    quiet = is_silenced("group__")
    for kind, own in (("failures", rows.filter(Q(group=None) | ~quiet)), ("silenced", rows.filter(quiet))):
        sums = own.values("alias", first=F("minute")).annotate(number=Sum("failed"))
        sql, params = _compiled(sums)
        yield f"SELECT 0, '{kind}', alias, '', number, first, NULL FROM ({sql}) {kind}", params


def _of_groups(database: str) -> Iterator[Part]:
    """The silenced groups, their fingerprints in the place of the alias; and how many others were seen lately."""
    rows = FailureGroup.objects.using(database)
    sql, params = _compiled(rows.silenced().order_by("id").values("fingerprint")[:QUIET])
    yield f"SELECT 0, 'quiet', fingerprint, '', 1, 0, NULL FROM ({sql}) quiet", params
    recent = rows.filter(~is_silenced(), last_seen__gte=Now() - RECENT).order_by("-last_seen").values("id")
    sql, params = _compiled(recent[: MOST + 1])
    yield f"SELECT 0, 'recent', '', '', COUNT(*), 0, NULL FROM ({sql}) recent", params


def _now(database: str) -> tuple[str, tuple[Any, ...]]:
    sql, params = written(PublishedMessage).using(database).query.get_compiler(database).compile(Now())
    return sql, tuple(params)


def _compiled(rows: QuerySet[Any]) -> tuple[str, tuple[Any, ...]]:
    sql, params = rows.query.get_compiler(rows.db).as_sql()
    return sql, tuple(params)
