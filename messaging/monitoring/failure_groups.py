"""Which failures are alike: counted in memory, written every few seconds into one row for each group.

A failed message itself names its group, by the statement that records its failure. So where a process is killed before
it has written the group's row, that row is made by the next one: see `adopt()`. What the dead had counted is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import Exists, F, OuterRef, Sum

from messaging import conf
from messaging.db.clock import Now
from messaging.models import AuditRecord, FailureCount, FailureGroup, ProcessedMessage
from messaging.models.failure_groups import BUCKET
from messaging.models.processed import in_group
from messaging.monitoring import counters

MOST = 1000  # groups that are told apart between two writes
LOOKED_AT = 100  # groups whose row is looked for at once
AGAIN = 3600.0  # seconds after which all are looked for again
COUNTED = 10_000  # open failures of a group that are ever counted; one more says that there are more
MINUTES_KEPT = 48 * 60  # minutes for which it is known when a group's failures were
FORGOTTEN = timedelta(days=90)  # after which a group goes that nothing is left of

RESUMED = "unsilence"  # in the audit
_lock = threading.Lock()


class Cause(NamedTuple):
    """What failures of one group have in common; see `FailureGroup`."""

    fingerprint: str
    exception_type: str = ""
    frame: str = ""
    handler: str = ""
    queue: str = ""


@dataclass(slots=True)
class _Tally:
    cause: Cause
    failed: int = 0
    retried: int = 0


_counted: dict[str, dict[tuple[str, str], _Tally]] = {}  # by database, then by group and alias


def add(database: str, alias: str, cause: Cause, *, is_final: bool) -> None:
    """Count an attempt that failed. From any thread.

    Args:
        database: where its message is.
        alias: alias of `MESSAGING`.
        cause: what it is like; without a fingerprint where it is like nothing.
        is_final: whether the message rests as failed.
    """
    with _lock:
        own = _counted.setdefault(database, {})
        if len(own) >= MOST and (cause.fingerprint, alias) not in own:
            cause = Cause("")
        _count(own, alias, cause, is_final, not is_final)


def write(database: str) -> None:
    """Write what was counted there since the last time, if anything. Where that fails, it stays counted."""
    with _lock:
        taken = _counted.pop(database, {})
    if not taken:
        return
    try:
        minute = counters._this_minute(database)
        with transaction.atomic(using=database):
            groups = _seen({tally.cause.fingerprint: tally.cause for tally in taken.values()}, database)
            for (fingerprint, alias), tally in sorted(taken.items()):
                _write_count(groups.get(fingerprint), alias, minute - minute % BUCKET, tally, database)
    except BaseException:
        with _lock:
            own = _counted.setdefault(database, {})
            for (_, alias), tally in taken.items():
                _count(own, alias, tally.cause, tally.failed, tally.retried)
        raise


class Adoption:
    """Makes the rows of groups that only messages name, some at a time, and again every hour.

    Their process was killed before it wrote them, or the release before knew of no such rows.

    Args:
        database: where they are.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._after: str | None = ""
        self._ended_at = 0.0

    def go_on(self) -> None:
        """Look at the next `LOOKED_AT` groups, if it is time."""
        if self._after is None and time.monotonic() - self._ended_at < AGAIN:
            return
        self._after, self._ended_at = adopt(self._database, self._after or ""), time.monotonic()


def adopt(database: str, after: str = "") -> str | None:
    """Make the rows of those of the next `LOOKED_AT` groups that have none.

    Args:
        database: where they are.
        after: the fingerprint that was looked at last.

    Returns the last one now; None where there is none behind it.
    """
    rows = ProcessedMessage.objects.using(database).exclude(fingerprint="")
    found: list[str] = []
    while len(found) < LOOKED_AT:
        beyond = rows.filter(fingerprint__gt=found[-1] if found else after).order_by("fingerprint")
        following = beyond.values_list("fingerprint", flat=True).first()
        if following is None:
            break
        found.append(following)
    groups = FailureGroup.objects.using(database)
    known = set(groups.filter(fingerprint__in=found).values_list("fingerprint", flat=True))
    for fingerprint in found:
        if fingerprint not in known:
            _adopt_one(fingerprint, database)
    return found[-1] if len(found) == LOOKED_AT else None


def open_counts(database: str, fingerprints: Iterable[str]) -> dict[tuple[str, str], int]:
    """How many messages of these groups are failed, or retrying, by fingerprint and state, up to `COUNTED` + 1 each."""
    rows = ProcessedMessage.objects.using(database)
    keys: list[tuple[str, str]] = []
    parts, values = [], []
    for fingerprint in fingerprints:
        for state in (ProcessedMessage.State.FAILED, ProcessedMessage.State.RETRYING):
            own = rows.filter(in_group(fingerprint, state)).order_by("state", "pk").values("pk")[: COUNTED + 1]
            sql, params = own.query.get_compiler(database).as_sql()
            parts.append(f"SELECT {len(keys)}, COUNT(*) FROM ({sql}) own")  # noqa: S608  a query of Django's own
            keys.append((fingerprint, state.value))
            values += params
    if not keys:
        return {}
    with connections[database].cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), values)
        return {keys[number]: int(count) for number, count in cursor.fetchall()}


def history(database: str, groups: Iterable[int], period: counters.Period) -> dict[int, list[int]]:
    """How many attempts failed in each group in a period, a number for each of its points.

    Args:
        database: where they are.
        groups: their primary keys.
        period: its step is a multiple of `BUCKET`.
    """
    step, starts, wanted = period.step, period.starts, list(groups)
    found = {group: [0] * len(starts) for group in wanted}
    rows = FailureCount.objects.using(database).filter(group__in=wanted)
    rows = rows.filter(minute__gte=starts[0], minute__lte=period.until).order_by()
    sums = rows.values("group", slot=F("minute") - F("minute") % step).annotate(number=Sum(F("failed") + F("retried")))
    for row in sums:
        found[row["group"]][starts.index(row["slot"])] = row["number"]
    return found


def prune(database: str) -> int:
    """Forget when failures were that are long past, and the groups that nothing is left of. Returns how many went."""
    counts = FailureCount.objects.using(database)
    gone, _ = counts.filter(minute__lt=counters._this_minute(database) - MINUTES_KEPT).delete()
    old = FailureGroup.objects.using(database).filter(last_seen__lt=Now() - FORGOTTEN, note="", silenced_at=None)
    rows = ProcessedMessage.objects.using(database).filter(in_group(OuterRef("fingerprint")))
    empty = old.filter(~Exists(rows)).order_by("last_seen", "id")
    for pk in list(empty.values_list("pk", flat=True)[:MOST]):
        gone += old.filter(pk=pk).delete()[0]
    return gone


def _count(own: dict[tuple[str, str], _Tally], alias: str, cause: Cause, failed: int, retried: int) -> None:
    tally = own.setdefault((cause.fingerprint, alias), _Tally(cause))
    tally.failed += failed
    tally.retried += retried


def _seen(causes: Mapping[str, Cause], database: str) -> dict[str, int]:
    """Note that these were seen now. Returns the primary keys of their groups.

    It begins with a write: on SQLite who reads first may not write afterwards.
    """
    release, names = conf.release(), [name for name in causes if name]
    groups = FailureGroup.objects.using(database)
    known = groups.filter(fingerprint__in=names)
    known.update(last_seen=Now(), last_release=release)
    told = known.only("pk", "fingerprint", "frame", "silenced_at", "silenced_in")
    found = {group.fingerprint: group for group in told}
    for name in sorted(names):
        group = found.get(name)
        if group is None:
            values = {**causes[name]._asdict(), "first_release": release, "last_release": release}
            found[name], _ = groups.get_or_create(fingerprint=name, defaults=values)
            continue
        if not group.frame and causes[name].frame:  # it was made from a message, which does not say
            groups.filter(pk=group.pk).update(frame=causes[name].frame)
        if group.silenced_at is not None and group.silenced_in is not None and release not in ("", *group.silenced_in):
            _end_silence(group, release, database)
    return {name: group.pk for name, group in found.items()}


def _end_silence(group: FailureGroup, release: str, database: str) -> None:
    """It goes on in a later release than it was silenced in. The caller's transaction has its row locked."""
    ended = {"silenced_at": None, "silenced_until": None, "silenced_in": None}
    FailureGroup.objects.using(database).filter(pk=group.pk).update(**ended)
    reason = f"It was seen in the release {release}."
    AuditRecord.objects.using(database).create(action=RESUMED, kind="group", message_pk=group.pk, reason=reason)


def _write_count(group: int | None, alias: str, minute: int, tally: _Tally, database: str) -> None:
    rows = FailureCount.objects.using(database)
    own: dict[str, Any] = {"group_id": group, "alias": alias, "minute": minute}
    more = {"failed": F("failed") + tally.failed, "retried": F("retried") + tally.retried}
    if group is None:  # of which no row is the only one
        rows.create(**own, failed=tally.failed, retried=tally.retried)
    elif not rows.filter(**own).update(**more):
        _, is_new = rows.get_or_create(**own, defaults={"failed": tally.failed, "retried": tally.retried})
        if not is_new:
            rows.filter(**own).update(**more)


def _adopt_one(fingerprint: str, database: str) -> None:
    """The row of a group as the first and the last of its messages in each state have it."""
    rows = ProcessedMessage.objects.using(database)
    told = rows.only("exception_type", "handler", "queue", "failed_at", "received_at").order_by("state", "pk")
    each = [told.filter(in_group(fingerprint, state)) for state in ProcessedMessage.State.values]
    ends = [end for own in each for end in (own.first(), own.last()) if end is not None]
    if not ends:
        return
    one, times = ends[0], [end.failed_at or end.received_at for end in ends]
    values = {
        "exception_type": one.exception_type,
        "handler": one.handler,
        "queue": "" if one.handler else one.queue,
        "first_seen": min(times),
        "last_seen": max(times),
    }
    FailureGroup.objects.using(database).get_or_create(fingerprint=fingerprint, defaults=values)
