"""What is wrong on this site right now, each with its fix: for the admin's pages, for health checks and for alerts.

All is concluded from a `Snapshot`: nothing here asks a database or a broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

from django.utils.translation import gettext as _

from messaging import conf
from messaging.db.clock import in_utc
from messaging.exceptions import ConfigurationError
from messaging.models import Worker
from messaging.models.failure_groups import BUCKET
from messaging.monitoring.counters import minute_of
from messaging.monitoring.snapshot import MOST, Snapshot

SILENT = 60  # seconds after which a worker that says nothing is called silent
BEFORE = 60  # minutes that are compared with

# From when on something is wrong, where `MESSAGING_CONSOLE["ALERTS"]` does not say otherwise.
LIMITS = {
    "late": 60.0,  # seconds after which a message that is due and not sent is a sign of trouble
    "far_too_late": 600.0,  # seconds after which it is trouble
    "long_pause": 3600.0,  # seconds after which somebody may have forgotten a pause
    "few_failures": 5.0,  # in twenty minutes, which are no alarm whatever was before
    "rise": 3.0,  # times as many as before
    "certificate_days": 14.0,  # before a certificate ends
}

# What workers say in their status, as far as something follows from it.
WAITS_FOR_BROKER = "waiting for the broker"
WAITS_FOR_DATABASE = "waiting for the database"
BROKER_TROUBLE = "broker: "  # before a relay's reason

Level = Literal["critical", "warning"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong.

    Attributes:
        name: tells its kind from others, for machines.
        level: "critical" where messages do not get on, else "warning".
        subject: the alias, queue or worker that it is about; see `of_queue()`.
        words: what is wrong, in a sentence.
        fix: what to do.
        link: where the admin shows more, below the app's own page; "" for nowhere.
        since: when it began, as far as that is known.
        alias: alias of `MESSAGING`, where it is about one.
    """

    name: str
    level: Level
    subject: str
    words: str
    fix: str
    link: str = ""
    since: datetime | None = None
    alias: str = ""


def conditions(now: Snapshot) -> list[Condition]:
    """Everything that is wrong, the worst first."""
    found = [condition for look in LOOKS for condition in look(now)]
    return sorted(found, key=lambda condition: condition.level != "critical")


def broker_away(now: Snapshot) -> Iterator[Condition]:
    """Relays or consumers cannot reach their broker, whoever else can."""
    for alias in conf.aliases():
        told = [worker for worker in alive(now, alias) if _lacks_broker(worker)]
        if not told:
            continue
        reason = next((_reason(worker) for worker in told if _reason(worker)), "")
        words = _("Of %(all)d running workers, %(count)d cannot reach the broker. %(reason)s") % {
            "all": len(list(alive(now, alias))),
            "count": len(told),
            "reason": reason,
        }
        fix = _(
            "Check that the broker runs and that these hosts reach it; nothing is lost meanwhile: what is published "
            "waits in the outbox."
        )
        yield Condition("broker_away", "critical", alias, words.strip(), fix, "worker/", alias=alias)


def broker_full(now: Snapshot) -> Iterator[Condition]:
    """The broker takes no messages, as an alarm of its has it."""
    for worker in alive(now):
        if worker.kind == "relay" and worker.status and not _lacks_broker(worker):
            words = _("The broker takes no messages for now: %(reason)s.") % {"reason": worker.status.rstrip(".")}
            fix = _("Look at the broker's alarms: its memory or disk is nearly full. Messages wait in the outbox.")
            yield Condition("broker_full", "critical", worker.name, words, fix, "worker/", alias=worker.alias)


def database_away(now: Snapshot) -> Iterator[Condition]:
    """A database cannot be read from here, or consumers wait for one."""
    for name in now.away:
        words = _("The database “%(name)s” cannot be read: its messages are neither shown nor counted.")
        fix = _("Check that it runs, that this host reaches it, and that its tables are migrated.")
        yield Condition("database_away", "critical", name, words % {"name": name}, fix, "worker/")
    told = [worker for worker in alive(now) if worker.status == WAITS_FOR_DATABASE]
    if told:
        words = _("Workers wait for a database: %(names)s.") % {"names": _names(worker.name for worker in told)}
        fix = _("Check that every database of the settings can be reached and written to from their hosts.")
        yield Condition("database_away", "critical", told[0].name, words, fix, "worker/")


def no_relay(now: Snapshot) -> Iterator[Condition]:
    """Nobody sends what is published."""
    for alias, box in now.outboxes.items():
        if any(worker.kind == "relay" for worker in alive(now, alias)):
            continue
        waits = box.oldest is not None and _seconds(now, box.oldest) > limit("late")
        if not waits and not list(alive(now, alias)):
            continue  # a site that is not running yet
        words = _("No relay runs for “%(alias)s”: what is published waits in the outbox.") % {"alias": alias}
        if _sends_elsewhere(alias):
            fix = _("This site's settings forbid to send from here: start the relay where it is allowed.")
        else:
            fix = _("Start one: manage.py consume has a relay inside, manage.py relay is one alone.")
        level: Level = "critical" if waits else "warning"
        link = _of(box.database, _PENDING)
        yield Condition("no_relay", level, alias, words, fix, link, box.oldest, alias)


def oldest_due(now: Snapshot) -> Iterator[Condition]:
    """What is due waits for too long though a relay runs."""
    for alias, box in now.outboxes.items():
        seconds = _seconds(now, box.oldest) if box.oldest is not None else 0.0
        if seconds <= limit("late") or not any(worker.kind == "relay" for worker in alive(now, alias)):
            continue
        words = _("Messages are due and not sent: %(count)s.") % {"count": _number(box.due)}
        fix = _(
            "Look at what the relay says of itself under workers. If it only has too much to do, start another: "
            "manage.py relay."
        )
        level: Level = "critical" if seconds > limit("far_too_late") else "warning"
        yield Condition("oldest_due", level, alias, words, fix, _of(box.database, _PENDING), box.oldest, alias)


def unrouted(now: Snapshot) -> Iterator[Condition]:
    """No queue takes what is published."""
    for alias, box in now.outboxes.items():
        if box.unrouted:
            words = _("No queue takes %(count)s outgoing messages.") % {"count": _number(box.unrouted)}
            fix = _("Bind a queue to their routing keys: deploy the handler, then run manage.py topology.")
            link = _of(box.unrouted_in, "publishedmessage/?state=waiting")
            yield Condition("unrouted", "warning", alias, words, fix, link, box.unrouted_since, alias)


def not_consumed(now: Snapshot) -> Iterator[Condition]:
    """A queue has messages and nobody of ours takes them."""
    paused = {(pause.alias, pause.queue) for pause in now.pauses}
    for (alias, queue), ready in sorted(now.ready.items()):
        if not ready or (alias, queue) in paused or any(queue in worker.queues for worker in alive(now, alias)):
            continue
        words = _("Nobody consumes the queue %(queue)s, which has %(count)s messages.") % {
            "queue": queue,
            "count": f"{ready:,}",
        }
        fix = _("Start a consumer: manage.py consume %(queue)s") % {"queue": queue}
        subject = of_queue(alias, queue)
        yield Condition("not_consumed", "critical", subject, words, fix, "queuecontrol/", alias=alias)


def failures_rising(now: Snapshot) -> Iterator[Condition]:
    """More incoming messages fail than did before, those of silenced groups not counted."""
    this = minute_of(now.now)
    this -= this % BUCKET
    for alias in conf.aliases():
        counts = {first: count for (own, first), count in now.failures.items() if own == alias}
        newest = sum(counts.get(first, 0) for first in (this, this - BUCKET))
        silenced = sum(now.silenced.get((alias, first), 0) for first in (this, this - BUCKET))
        before = [count for first, count in counts.items() if this - BUCKET - BEFORE <= first < this - BUCKET]
        usual = sum(before) * 2 * BUCKET / BEFORE
        if newest <= limit("few_failures") or newest <= limit("rise") * usual:
            continue
        words = _("Failures are rising: %(count)s within %(minutes)d minutes, instead of the usual %(usual)d.") % {
            "count": f"{newest:,}",
            "minutes": 2 * BUCKET,
            "usual": round(usual),
        }
        if silenced:
            words += " " + _("In silenced groups: %(count)s more.") % {"count": f"{silenced:,}"}
        fix = _("Look at what they have in common: often the newest release, or a service that is away.")
        yield Condition("failures_rising", "warning", alias, words, fix, "failuregroup/", alias=alias)


def long_paused(now: Snapshot) -> Iterator[Condition]:
    """A queue has been paused for so long that somebody may have forgotten it."""
    for pause in now.pauses:
        if _seconds(now, pause.since) > limit("long_pause"):
            subject = of_queue(pause.alias, pause.queue)
            words = _("The queue %(queue)s is paused.") % {"queue": pause.queue}
            fix = _("Resume it on the page of queues, once the reason for the pause is gone.")
            yield Condition("long_paused", "warning", subject, words, fix, "queuecontrol/", pause.since, pause.alias)


def silent_workers(now: Snapshot) -> Iterator[Condition]:
    """Workers of a host that are silent."""
    hosts: dict[str, list[Worker]] = {}
    for worker in silent(now):
        hosts.setdefault(worker.host, []).append(worker)
    for host, workers in sorted(hosts.items()):
        words = _("Workers say nothing any more: %(names)s.") % {"names": _names(worker.name for worker in workers)}
        fix = _("Look at these processes and their hosts. What they ran goes round again when their leases end.")
        yield Condition("silent_workers", "warning", host, words, fix, "worker/", in_utc(workers[-1].seen_at))


def silent(now: Snapshot) -> list[Worker]:
    """Workers that have neither signed off nor been seen lately, and that no newer one has taken the place of."""
    places = Counter(_place(worker) for worker in alive(now))
    latest = sorted(now.workers, key=lambda one: in_utc(one.seen_at), reverse=True)
    return [one for one in latest if _seconds(now, one.seen_at) > SILENT and not _is_replaced(now, one, places)]


def _place(worker: Worker) -> tuple[str, str, frozenset[str]]:
    """What another worker has to do to stand in for this one."""
    return worker.kind, worker.alias, frozenset(worker.queues)


def _is_replaced(now: Snapshot, worker: Worker, places: Counter[tuple[str, str, frozenset[str]]]) -> bool:
    """Whether one that lives began after it was last seen, and stands in for no other."""
    place, seen_at = _place(worker), in_utc(worker.seen_at)
    began = sum(_place(one) == place and _began_after(one, seen_at) for one in alive(now))
    if not min(began, places[place]):
        return False
    places[place] -= 1
    return True


def _began_after(worker: Worker, moment: datetime) -> bool:
    began: Any = worker.started_at  # an expression as long as the row is not written
    return isinstance(began, datetime) and in_utc(began) > moment


LOOKS: tuple[Callable[[Snapshot], Iterator[Condition]], ...] = (
    broker_away, broker_full, database_away, not_consumed, no_relay, oldest_due, unrouted, failures_rising,
    long_paused, silent_workers,
)  # fmt: skip
_PENDING = "publishedmessage/?state=pending"


def limit(name: str) -> float:
    """One of `LIMITS`, as the site has it; ours where its setting cannot be read."""
    try:
        return float(conf.console().alerts.get(name, LIMITS[name]))
    except ConfigurationError:
        return LIMITS[name]


def of_queue(alias: str, queue: str) -> str:
    """The subject of a condition about a queue: its name, behind the alias where that is not the default one."""
    return queue if alias == conf.DEFAULT_ALIAS else f"{alias}: {queue}"


def alive(now: Snapshot, alias: str | None = None) -> Iterator[Worker]:
    """The workers that were seen lately; those of an alias, if one is given."""
    for worker in now.workers:
        if alias in (None, worker.alias) and _seconds(now, worker.seen_at) <= SILENT:
            yield worker


def _of(database: str, link: str) -> str:
    """A link to the list of a database."""
    return f"{link}&{urlencode({'database': database})}" if database else link


def _lacks_broker(worker: Worker) -> bool:
    return worker.status == WAITS_FOR_BROKER or worker.status.startswith(BROKER_TROUBLE)


def _reason(worker: Worker) -> str:
    return worker.status.removeprefix(BROKER_TROUBLE) if worker.status.startswith(BROKER_TROUBLE) else ""


def _sends_elsewhere(alias: str) -> bool:
    try:
        return not conf.get(alias).relay
    except ConfigurationError:
        return False


def _seconds(now: Snapshot, moment: datetime) -> float:
    return (now.now - in_utc(moment)).total_seconds()


def _number(count: int) -> str:
    return f"{MOST:,}+" if count > MOST else f"{count:,}"


def _names(names: Iterable[str], most: int = 3) -> str:
    known = list(names)
    more = [f"+{len(known) - most}"] if len(known) > most else []
    return ", ".join([*known[:most], *more])
