"""Alerts: what is wrong is told once, again each hour while it lasts, and once more when it is over.

What is to be told is a row for each recipient, written in the transaction that notes it in the alert's own row. Both
are changed by comparing first, so that of many processes one writes, and one sends. Killed before it was sent, a
message is due again; killed after, it is sent twice. A try counts as it begins: one that kills its process, or never
ends, is not made for ever.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.models import F
from django.utils.translation import gettext as _

from messaging import conf
from messaging.db.clock import Now, in_utc
from messaging.db.connections import close_old
from messaging.db.patience import bound_here
from messaging.exceptions import ConfigurationError
from messaging.models import Alert, AlertMessage
from messaging.monitoring import telling
from messaging.monitoring.conditions import Condition
from messaging.monitoring.databases import home, known
from messaging.monitoring.evaluation import Findings, evaluate
from messaging.monitoring.telling import BEGINS, GOES_ON, OVER, TEST, Channel, NotTold
from messaging.wire.bodies import one_line, storable

logger = logging.getLogger("messaging.alerts")

EVERY = 60.0  # seconds between two looks, of all processes together
AGAIN = timedelta(hours=1)  # between two messages about one alert, but for the one that it is over
LEASE = timedelta(seconds=120)  # that one sending may take
TRIES = 12  # of a message that cannot be sent, about five hours
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 3600.0  # seconds between two of them
KEPT = timedelta(days=90)  # for which an alert that is over is remembered
PATIENCE = 10.0  # seconds for a database that gives no sign
MARGIN = timedelta(seconds=5)  # by which a process's own beat may be early


class AlertThread(threading.Thread):
    """Looks, and tells, beside what a process does otherwise; it has a connection only meanwhile.

    Args:
        stop: ends it after what it does now.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(name="messaging-alerts", daemon=True)
        self._stop_asked = stop

    def run(self) -> None:
        """Look each minute, unless somebody else has, and send what is due, until asked to stop."""
        for database in known():
            bound_here(database, PATIENCE)
        while not self._stop_asked.wait(EVERY * random.uniform(0.9, 1.1)):
            try:
                close_old()
                if telling.channels():
                    look()
            except (OperationalError, InterfaceError) as error:  # who consumes, or relays, says so already
                logger.debug("Alerts wait for a database: %s", one_line(error))
            except Exception:
                logger.exception("Alerts could not be looked for; it is tried again.")
            finally:
                connections.close_all()


def look(*, at_once: bool = False) -> int:
    """Write what there is to tell, unless somebody has looked within a minute, and send what is due.

    Args:
        at_once: look in any case.

    Returns how many messages were sent. Raises what the database raises when it is away.
    """
    database, told = home(Alert), telling.channels()
    if _takes_beat(database) or at_once:
        note(evaluate(), told, database)
    return send_due(told, database)


def note(findings: Findings, told: Sequence[Channel], database: str) -> None:
    """Write what has begun, goes on and is over since the last look, and what is to be told of it."""
    rows = {(row.kind, row.subject): row for row in _rows(database).exclude(kind=Alert.BEAT)}
    for condition in findings.wrong:
        with _apart_from_others(_key(condition)):
            _note(condition, rows.get(_key(condition)), told, database)
    lasting = {_key(condition) for condition in (*findings.wrong, *findings.follows)}
    for key, row in rows.items():
        if row.ended_at is None and key not in lasting and not findings.is_unknown(*key):
            with _apart_from_others(key):
                _end(row, told, database)


def send_due(told: Sequence[Channel], database: str) -> int:
    """Send every message that is due. Returns how many were sent."""
    by_key = {name: channel for channel in told for name in (channel.name, channel.key)}
    sent = 0
    while (message := _claim(database)) is not None:
        sent += _send(message, by_key, database)
    return sent


def test(told: Iterable[Channel]) -> dict[str, str]:
    """Tell every recipient that this is a test. Returns as `tell_all()` does."""
    words, fix = _("Alerts of this site reach you."), _("There is nothing to do.")
    return tell_all(TEST, Condition("test", "warning", "", words, fix), told)


def tell_all(event: str, condition: Condition, told: Iterable[Channel]) -> dict[str, str]:
    """Tell every recipient now, without a row. Returns for each channel what went wrong; "" where nothing did."""
    content = _content(event, condition)
    problems = {}
    for channel in told:
        try:
            channel.tell(content)
        except NotTold as problem:
            problems[channel.name] = str(problem)
        else:
            problems[channel.name] = ""
    return problems


def prune(database: str) -> int:
    """Forget alerts that were over long ago, of which nothing is to be told. Returns how many."""
    old = _rows(database).filter(ended_at__lt=Now() - KEPT, message_set=None)
    gone, _each = _rows(database).filter(pk__in=list(old.values_list("pk", flat=True))).delete()
    return int(gone)


def _takes_beat(database: str) -> bool:
    """Whether nobody has looked within a minute; from now on somebody has."""
    own = {"kind": Alert.BEAT, "subject": ""}
    before = Now() - timedelta(seconds=EVERY) + MARGIN
    if _rows(database).filter(**own, told_at__lte=before).update(told_at=Now()):
        return True
    if _rows(database).filter(**own).exists():
        return False
    _row, is_new = _rows(database).get_or_create(**own, defaults={"told_at": Now()})
    return bool(is_new)


@contextmanager
def _apart_from_others(key: tuple[str, str]) -> Iterator[None]:
    """Let an alert that cannot be written keep no other one from being told. A database that is away still raises."""
    try:
        yield
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        logger.exception("The alert %s could not be written; the others are.", one_line(" ".join(key)))


def _note(condition: Condition, row: Any, told: Sequence[Channel], database: str) -> None:
    kind, subject = _key(condition)
    with transaction.atomic(using=database):
        if row is None:
            values = {**_values(condition), "told_at": Now(), "is_told": True}
            row, is_new = _rows(database).get_or_create(kind=kind, subject=subject, defaults=values)
            if is_new:
                _tell(row, BEGINS, condition, told, database)
        elif row.ended_at is not None:
            _begin_again(row, condition, told, database)
        else:
            _go_on(row, condition, told, database)


def _begin_again(row: Alert, condition: Condition, told: Sequence[Channel], database: str) -> None:
    """It was over, and is not. Within an hour of what was last told, people hear nothing of it.

    But for whoever was not told yet that it was over: he hears that it lasts, instead of an end that is none.
    """
    over = _as_read(row, database)
    values = {**_values(condition), "began_at": Now(), "ended_at": None, "version": F("version") + 1}
    if over.filter(told_at__lte=Now() - AGAIN).update(**values, told_at=Now(), is_told=True):
        _tell(row, BEGINS, condition, told, database)
    else:
        unsent = set(_messages(database).filter(alert=row).values_list("channel", flat=True))
        if over.update(**values, is_told=bool(unsent)):
            late = [channel for channel in told if unsent & {channel.key, channel.name}]
            _tell(row, BEGINS, condition, late, database)


def _go_on(row: Alert, condition: Condition, told: Sequence[Channel], database: str) -> None:
    same, values = _as_read(row, database), _values(condition)
    if same.filter(told_at__lte=Now() - AGAIN).update(**values, told_at=Now(), is_told=True, version=F("version") + 1):
        _tell(row, GOES_ON if row.is_told else BEGINS, condition, told, database)
    elif any(getattr(row, name) != value for name, value in values.items()):
        same.update(**values)


def _end(row: Alert, told: Sequence[Channel], database: str) -> None:
    """It is over; whoever was told that it began is told."""
    with transaction.atomic(using=database):
        if not _as_read(row, database).update(ended_at=Now(), version=F("version") + 1):
            return
        if row.is_told:
            ended = Condition(row.kind, "warning", row.subject, row.words, "", row.link)
            _tell(row, OVER, ended, told, database)


def _tell(row: Any, event: str, condition: Condition, told: Sequence[Channel], database: str) -> None:
    """Write a message for everyone, in place of an older one that was not sent yet."""
    began = condition.since or (in_utc(row.began_at) if isinstance(row.began_at, datetime) else datetime.now(UTC))
    content = _content(event, condition, began)
    values = {"content": content, "attempts": 0, "due_at": Now(), "token": None, "error": ""}
    for channel in told:
        _messages(database).update_or_create(alert=row, channel=channel.key, defaults=values)


def _claim(database: str) -> AlertMessage | None:
    """Take the message that has been due for longest; None where none is."""
    due = AlertMessage.objects.using(database).filter(due_at__lte=Now())
    while (message := due.order_by("due_at", "pk").first()) is not None:
        as_read = due.filter(pk=message.pk, token=message.token, attempts=message.attempts)
        if message.attempts >= TRIES:  # whoever tried the last time did not survive it
            if as_read.delete()[0]:
                _give_up(message, message.channel, "nobody came back from sending it")
            continue
        token = uuid.uuid4()
        if as_read.update(token=token, due_at=Now() + LEASE, attempts=F("attempts") + 1):
            message.token, message.attempts = token, message.attempts + 1
            return message
    return None


def _send(message: AlertMessage, told: dict[str, Channel], database: str) -> bool:
    mine = _messages(database).filter(pk=message.pk, token=message.token)
    channel = told.get(message.channel)
    try:
        if channel is None:  # perhaps another process's settings do
            raise NotTold("the settings do not name it")
        channel.tell(message.content)
    except NotTold as problem:
        _put_off(message, mine, channel.name if channel else message.channel, str(problem))
        return False
    mine.delete()
    return True


def _put_off(message: AlertMessage, mine: Any, name: str, problem: str) -> None:
    if message.attempts >= TRIES:
        mine.delete()
        _give_up(message, name, problem)
        return
    text = "An alert could not be told to %s (%s), try %d: %s"
    logger.warning(text, name, _words(message), message.attempts, problem)
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (message.attempts - 1)) * random.uniform(0.75, 1.0)
    mine.update(token=None, due_at=Now() + timedelta(seconds=pause), error=storable(problem))


def _give_up(message: AlertMessage, name: str, problem: str) -> None:
    text = "It is given up: an alert could not be told to %s (%s), try %d: %s"
    logger.error(text, name, _words(message), message.attempts, problem)


def _words(message: AlertMessage) -> str:
    return one_line(message.content.get("words", ""))


def _values(condition: Condition) -> dict[str, str]:
    """What a row keeps of a condition."""
    words, fix = storable(condition.words), storable(condition.fix)
    return {"level": condition.level, "words": words, "fix": fix, "link": storable(condition.link, 255)}


def _key(condition: Condition) -> tuple[str, str]:
    return condition.name, storable(condition.subject, 255)


def _content(event: str, condition: Condition, began: datetime | None = None) -> dict[str, Any]:
    banner = ""
    with suppress(ConfigurationError):
        banner = conf.console().banner
    return {
        "event": event,
        "kind": condition.name,
        "subject": storable(condition.subject, 255),
        "alias": condition.alias,
        "level": condition.level,
        "words": storable(condition.words),
        "fix": storable(condition.fix),
        "since": in_utc(began).isoformat(timespec="seconds") if began is not None else "",
        "page": condition.link,
        "banner": banner,
    }


def _as_read(row: Alert, database: str) -> Any:
    """The row, if nobody has changed it meanwhile but for its words."""
    return _rows(database).filter(pk=row.pk, version=row.version)


def _rows(database: str) -> Any:
    return Alert.objects.using(database)


def _messages(database: str) -> Any:
    return AlertMessage.objects.using(database)
