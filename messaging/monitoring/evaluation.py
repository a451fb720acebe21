"""What an alert may be about now: what tables, brokers and certificates say, and what of it nobody knows at the moment.

What follows from something that is told anyway is left out: a broker that is away is one alert, not three.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, Sum
from django.utils.translation import gettext as _

from messaging import conf
from messaging.backends import get_backend
from messaging.db.clock import Now, in_utc
from messaging.exceptions import ConfigurationError, MessagingError
from messaging.handlers import queues_of
from messaging.models import FailureCount, FailureGroup
from messaging.models.failure_groups import is_silenced
from messaging.monitoring import readings, snapshot
from messaging.monitoring.conditions import Condition, alive, conditions, limit, of_queue
from messaging.monitoring.databases import ask_each, known
from messaging.monitoring.snapshot import Snapshot

NEW = timedelta(days=1)  # for which a group of failures may be called new
QUIET = timedelta(hours=1)  # after which it is no longer, when nothing more of it is seen
MOST_GROUPS = 10  # that are told one by one
LOOK_AT_CERTIFICATES = 3600.0  # seconds between two looks
# By kind, what of the same alias makes it a matter of course.
CAUSES = {
    "oldest_due": ("broker_away", "broker_full", "no_relay"),
    "not_consumed": ("broker_away",),
    "failures_rising": ("new_failures",),
}
OF_TABLES = ("no_relay", "oldest_due", "unrouted", "new_failures", "failures_rising", "long_paused")


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong, and what nobody knows.

    Attributes:
        wrong: conditions that are to be told.
        follows: those that follow from one of these: they are not told, and do not end what was told.
        unknown: kind and subject of what could not be looked at; with the subject "" every one of the kind.
    """

    wrong: list[Condition]
    follows: list[Condition] = field(default_factory=list)
    unknown: frozenset[tuple[str, str]] = frozenset()

    def is_unknown(self, kind: str, subject: str) -> bool:
        """Whether nobody can say whether this is over."""
        return (kind, subject) in self.unknown or (kind, "") in self.unknown


def evaluate() -> Findings:
    """Look at everything. Raises what the database raises when it is away."""
    reading = readings.waiting()
    now = snapshot.read(reading.ready)
    ending, unseen = certificates()
    found = [*unreached(now, reading), *new_failures(), *_of_all_workers(now), *ending]
    unknown = {(kind, "") for kind in OF_TABLES} if now.away else set()
    unknown |= {("not_consumed", subject) for alias in conf.aliases() for subject in _unseen_queues(alias, reading)}
    unknown |= {("certificate", subject) for subject in unseen}
    kinds = {(condition.name, condition.alias) for condition in found}
    follows = [one for one in found if any((cause, one.alias) in kinds for cause in CAUSES.get(one.name, ()))]
    return Findings([one for one in found if one not in follows], follows, frozenset(unknown))


def _unseen_queues(alias: str, reading: readings.Waiting) -> list[str]:
    """Subjects of the queues of which nothing is known; "", for any, where the settings do not tell which there are."""
    try:
        conf.get(alias)
    except ConfigurationError:
        return [""]
    return [of_queue(alias, queue) for queue in queues_of(alias)] if alias in reading.away else []


def unreached(now: Snapshot, reading: readings.Waiting) -> Iterator[Condition]:
    """A broker cannot be reached from here, and nobody lives who would say so himself."""
    for alias in reading.unreachable:
        if any(True for _worker in alive(now, alias)):
            continue
        words = _("No worker runs for “%(alias)s”, and the broker cannot be reached from here. %(reason)s")
        fix = _("Check that the broker runs, then start consumers and relays.")
        told = words % {"alias": alias, "reason": reading.away.get(alias, "")}
        yield Condition("broker_away", "critical", alias, told, fix, "worker/", alias=alias)


def _of_all_workers(now: Snapshot) -> Iterator[Condition]:
    """What is wrong, whichever worker says so: all do, and who was seen last is another each time."""
    workers = {worker.name for worker in now.workers}
    told = set()
    for one in conditions(now):
        if one.subject not in workers:
            yield one
        elif (one.name, one.alias) not in told:
            told.add((one.name, one.alias))
            yield replace(one, subject=one.alias)


# Failure groups


def new_failures() -> Iterator[Condition]:
    """Failures that were not seen before a day ago, as far as messages rest for them or many are retried."""
    told = ask_each(_new_groups, known(FailureGroup))
    groups = sorted(
        (one for own in told.values() for one in own), key=lambda group: (in_utc(group.first_seen), group.pk)
    )
    for group in groups[:MOST_GROUPS]:
        words = _(
            "A new failure: %(name)s in %(place)s. So far %(failed)d messages failed, and %(retried)d attempts are "
            "repeated."
        )
        known_facts = {"name": group.name, "place": group.frame or group.handler or group.queue}
        told_words = words % {**known_facts, "failed": group.failed or 0, "retried": group.retried or 0}
        fix = _("Look at its traceback; once its cause is gone, requeue its messages, or silence the group.")
        link = f"failuregroup/{group.pk}/change/"
        yield Condition(
            "new_failures", "warning", group.fingerprint, told_words, fix, link, in_utc(group.first_seen), group.alias
        )
    if len(groups) > MOST_GROUPS:
        words = _("More failures are new: %(count)d or more groups beside those that are told one by one.")
        fix = _("Look at what they have in common: often the newest release, or a service that is away.")
        count = {"count": len(groups) - MOST_GROUPS}
        yield Condition("new_failures", "warning", "…", words % count, fix, "failuregroup/")


def _new_groups(database: str) -> list[Any]:
    """The first of the groups that are new, and loud; each with its counts and one of its aliases."""
    few = int(limit("few_failures"))
    counts = FailureCount.objects.using(database).filter(group=OuterRef("pk"))
    loud = counts.filter(Q(failed__gt=0) | Q(retried__gt=few))
    rows = FailureGroup.objects.using(database).filter(
        ~is_silenced(), Exists(loud), first_seen__gte=Now() - NEW, last_seen__gte=Now() - QUIET
    )
    own = counts.order_by("minute").values("alias")[:1]
    sums = {name: Sum(f"count_set__{name}") for name in ("failed", "retried")}
    found = rows.annotate(alias=own, **sums).order_by("first_seen", "pk")[: 2 * MOST_GROUPS]
    return list(found)


# Certificates

_looked_at: dict[str, tuple[float, dict[str, datetime | None]]] = {}


def certificates() -> tuple[list[Condition], set[str]]:
    """Certificates that end soon; and those that could not be looked at. Each alias is looked at once an hour."""
    found: list[Condition] = []
    unseen: set[str] = set()
    for alias in conf.aliases():
        for what, ends in _certificates_of(alias).items():
            if ends is None:  # said elsewhere: the broker is away, or a check names the file
                unseen.add(f"{alias}: {what}")
            else:
                found += _of_certificate(alias, what, ends)
    return found, unseen


def _certificates_of(alias: str) -> dict[str, datetime | None]:
    looked_at, ends = _looked_at.get(alias, (-LOOK_AT_CERTIFICATES, {}))
    if time.monotonic() - looked_at < LOOK_AT_CERTIFICATES and None not in ends.values():
        return ends
    try:
        ends = get_backend(alias).certificates()
    except MessagingError:  # settings that cannot be used
        ends = dict.fromkeys(ends)
    _looked_at[alias] = time.monotonic(), ends
    return ends


def _of_certificate(alias: str, what: str, ends: datetime) -> Iterator[Condition]:
    days = (ends - datetime.now(UTC)).total_seconds() / 86400
    if days > limit("certificate_days"):
        return
    words = {
        "broker": _("The broker's certificate ends on %(day)s."),
        "client": _("The certificate with which this site connects to the broker ends on %(day)s."),
    }[what]
    fix = _("Renew it. Once it has ended, nobody can connect; what is published waits in the outbox meanwhile.")
    told = words % {"day": f"{ends:%Y-%m-%d}"}
    yield Condition("certificate", "critical" if days <= 1 else "warning", f"{alias}: {what}", told, fix, alias=alias)
