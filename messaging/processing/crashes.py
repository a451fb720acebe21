"""Counting how processes died: each death costs one message one attempt, whatever else runs that message meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import Q, QuerySet

from messaging import signals
from messaging.db.clock import read_clock
from messaging.db.connections import brief_locks, is_conflict, is_lock_wait
from messaging.exceptions import MessagingError
from messaging.models import Attempt, AuditRecord, ProcessedMessage
from messaging.models.processed import DERIVATION, UNCLAIMED
from messaging.monitoring import counters, failure_groups
from messaging.processing import inbox
from messaging.processing.error_text import describe
from messaging.processing.failures import Failure, attempt_of, decision_on, kind_of, outcome, record
from messaging.processing.inbox import AlreadyRecorded, SetAside
from messaging.processing.station import Station
from messaging.supervising.ledger import Entry

LOOKS = 10  # at a row that others keep changing
MANY = 1000  # messages of one content within one run
RESOLUTION = 0.001  # seconds: SQLite's clock cuts off what is less

State = ProcessedMessage.State

# In what state a message may be that came again meanwhile, under a claim.
_AT_BROKER = Q(at_broker=True) | Q(at_broker=None)
_OPEN = Q(state=State.RETRYING) | (Q(state=State.PROCESSING, wire__isnull=False) & _AT_BROKER)
# An ordinary first delivery of another message with the same content claims nothing, and has no later round.
_ENDED = Q(state=State.PROCESSED) & (Q(at_broker=True) | Q(round__gt=1)) | Q(
    state__in=(State.FAILED, State.REQUEUED, State.DISCARDED, State.SUPERSEDED)
)


@dataclass(frozen=True, slots=True)
class Crash:
    """A process that died while it ran `entry`.

    Attributes:
        station: where the process stands that records it.
        entry: what it ran.
        error: what it died of.
        since: CLOCK_MONOTONIC of when the run began.
    """

    station: Station
    entry: Entry
    error: MessagingError
    since: float

    @classmethod
    def of(cls, station: Station, entry: Entry, error: MessagingError, since: float | None = None) -> Crash:
        """`since` is None where the release before reports it."""
        if since is None:
            since = time.monotonic() - max(0.0, time.time() - entry.started)
        return cls(station, entry, error, since)

    @property
    def began(self) -> datetime:
        """When the run began, by the database's clock: rather earlier, by what it takes to ask it, than later.

        What came of the run is younger, however soon it came.
        """
        now = read_clock(self.rows(), "received_at")
        return now - timedelta(seconds=max(0.0, time.monotonic() - self.since) + RESOLUTION)

    def rows(self) -> QuerySet[ProcessedMessage]:
        """The inbox of its queue."""
        rows = ProcessedMessage.objects.using(self.entry.database)
        return rows.filter(alias=self.entry.alias, queue=self.entry.queue)

    def failure(self, row: ProcessedMessage) -> Failure:
        """The attempt that it is."""
        handler = self.station.handlers.find(self.entry.alias, self.entry.queue, row.routing_key)
        return Failure(self.error, self.station.worker, handler, self.since, crashed=True)


def record_crash(crash: Crash) -> None:
    """Record that a process died. Its message comes again, from the broker or by a retry.

    Recorded twice it counts once. Raises SetAside while another run of the message keeps its row locked.
    """
    for _ in range(LOOKS):
        row = crash.rows().filter(key=crash.entry.identity[0]).first()
        try:
            if row is None:
                _record_unknown(crash)
            elif not row.failures().filter(run=crash.entry.run).exists():
                _record_known(row, crash)
            elif row.state == State.PROCESSING and is_bare(row):
                _settle_elsewhere(crash, row)  # whoever recorded it died before it looked
            return
        except (AlreadyRecorded, IntegrityError):
            continue
    raise SetAside


def came_again(crash: Crash, database: str) -> bool:
    """Whether a message has come again in a database that its handler has moved to; its crash is counted there.

    Raises SetAside while another run of the message keeps its row locked. Raises DatabaseUnavailable where its own
    database is away.
    """
    moved = replace(crash, entry=replace(crash.entry, database=database))
    for _ in range(LOOKS):
        try:
            here = crash.rows().filter(key=crash.entry.identity[0])
            is_here = crash.station.outages.steadily(crash.entry.database, here.exists)
            if crash.entry.message_id:
                return _record_moved(moved, is_here=is_here)
            return not is_here and _settle_elsewhere(moved, None)
        except (AlreadyRecorded, IntegrityError):
            continue
    raise SetAside


def _record_moved(crash: Crash, *, is_here: bool) -> bool:
    """Count the crash of a message with an id in the row that it has in this database, unless its own knows it too."""
    row = crash.rows().filter(key=crash.entry.identity[0]).first()
    if row is None:
        return False
    if row.failures().filter(run=crash.entry.run).exists():
        return True
    if not is_here:
        _record_known(row, crash)
    return not is_here


def absorb(place: inbox.Place, bare: ProcessedMessage, database: str) -> None:
    """Take a crash that was counted before its message came again over into the claim that the message has made since.

    Raises AlreadyRecorded when one of the two changed, SetAside when one is locked.
    """
    with place.tentative():
        _merge(bare, place.row, database)


def is_bare(row: ProcessedMessage) -> bool:
    """Whether nothing but a crash is known of it, of a message without an id."""
    return row.message_id == "" and row.wire is None and row.lease_token is None


def _record_known(row: ProcessedMessage, crash: Crash) -> None:
    entry = crash.entry
    if row.state == State.PROCESSING and row.lease_token is None:
        return  # counted already: its twin died with it
    if row.round < entry.round or row.state not in (State.PROCESSING, *ProcessedMessage.AWAITING):
        return  # it ended some other way, or the inbox was set back: nothing is left to count
    if row.round > entry.round:
        if not _was_requeued(row, crash):
            _count(row, crash)
    elif row.state == State.PROCESSING and str(row.lease_token) != entry.token:
        _count(row, crash)
    elif inbox.comes_again(row, crash.failure(row).handler):
        _count(row, crash, **UNCLAIMED, error=describe(crash.error))
    else:
        record(inbox.existing(row), crash.failure(row), entry.database, crash.station.settings)


def _was_requeued(row: ProcessedMessage, crash: Crash) -> bool:
    """Whether an operator has granted fresh attempts since."""
    acts = AuditRecord.objects.using(crash.entry.database).filter(kind="processed", message_pk=row.pk)
    return row.state == State.REQUEUED or acts.filter(action="requeue", at__gte=crash.began).exists()


def _count(row: ProcessedMessage, crash: Crash, **changes: Any) -> None:
    """Only count it, since the message runs elsewhere, or comes again anyway; fail one that waits for one run too many.

    Raises AlreadyRecorded when the row changed, SetAside when it is locked.
    """
    failure, number, database = crash.failure(row), row.attempts + 1, crash.entry.database
    decision = decision_on(number, failure, crash.station.settings)
    gives_up = row.state == State.RETRYING and decision.retry_after is None
    cause = failure.cause(row.queue)
    changes |= outcome(failure, decision, number, cause) if gives_up else {"attempts": number}
    with _brief(database):
        if not row.move(row.state, round=row.round, token=row.lease_token, counted=row.attempts, **changes):
            raise AlreadyRecorded
        attempt_of(row, failure, number, crash.entry.round, crash.entry.run).save(using=database, force_insert=True)
    if gives_up:
        counters.add("failed", row.alias, row.queue, handler=cause.handler)
        failure_groups.add(database, row.alias, cause, is_final=True)
        signals.message_failed.send_robust(type(row), row=row, attempt=number, error=crash.error)


def _record_unknown(crash: Crash) -> None:
    """Count it in a row without content, which the redelivery will bring.

    A message without an id comes again under a key of its own: if it has already, nothing would ever claim such a row.
    One that claims right now, and this crash, each look for the other after they are committed: one of them will see.
    """
    if crash.entry.message_id == "" and _settle_elsewhere(crash, None):
        return
    row = _insert(crash)
    if crash.entry.message_id == "":
        _settle_elsewhere(crash, row)


def _insert(crash: Crash) -> ProcessedMessage:
    entry, (key, digest) = crash.entry, crash.entry.identity
    row = ProcessedMessage(
        alias=entry.alias,
        queue=entry.queue,
        key=key,
        digest=digest,
        headers_digest=entry.headers_digest or None,
        message_id=entry.message_id,
        round=entry.round,
        state=State.PROCESSING,
        attempts=1,
        handler=entry.handler,
        worker=crash.station.worker,
        error=describe(crash.error),
        derivation=DERIVATION,
        **kind_of(crash.error),
    )
    with _brief(entry.database):
        row.save(using=entry.database, force_insert=True)
        attempt = attempt_of(row, crash.failure(row), 1, entry.round, entry.run)
        attempt.save(using=entry.database, force_insert=True)
    return row


def _settle_elsewhere(crash: Crash, own: ProcessedMessage | None) -> bool:
    """Count the crash of a message without an id in the row that it has come again under, if it has.

    Args:
        crash: what is counted.
        own: the row without content in which it is counted so far; it goes. None when there is none.
    """
    key, digest = crash.entry.identity
    alike = crash.rows().filter(digest=digest, message_id="", received_at__gte=crash.began).exclude(key=key)
    if crash.entry.headers_digest:
        alike = alike.filter(Q(headers_digest=None) | Q(headers_digest=crash.entry.headers_digest))
    ids = list(alike.values_list("pk", flat=True)[:MANY])
    rows = crash.rows().filter(pk__in=ids)
    attempts = Attempt.objects.using(crash.entry.database).filter(message__in=ids, run=crash.entry.run)
    if not ids or attempts.exists():
        return bool(ids)
    open_ = rows.filter(_OPEN).order_by("id").first()
    if open_ is not None:
        if own is None:
            _count(open_, crash)
        else:
            _merge(own, open_, crash.entry.database)
    elif rows.filter(_ENDED).exists():
        if own is not None:
            with _brief(crash.entry.database):
                _remove(own, crash.entry.database)
    else:
        return False
    return True


def _merge(bare: ProcessedMessage, row: ProcessedMessage, database: str) -> None:
    """Move what a row without content has counted to another one of the same message."""
    with _brief(database):
        total = row.attempts + bare.attempts
        if not row.move(row.state, round=row.round, token=row.lease_token, counted=row.attempts, attempts=total):
            raise AlreadyRecorded
        attempts = bare.failures().order_by("id")
        for number, attempt in enumerate(attempts, total - bare.attempts + 1):
            attempt.message_id, attempt.number = row.pk, number
            attempt.save(using=database, update_fields=["message", "number"])
        _remove(bare, database)


def _remove(bare: ProcessedMessage, database: str) -> None:
    # Locked first, since a redelivery may be about to adopt it.
    if not bare.move(State.PROCESSING, round=bare.round, counted=bare.attempts, state=State.SUPERSEDED):
        raise AlreadyRecorded
    bare.delete(using=database)


@contextmanager
def _brief(database: str) -> Iterator[None]:
    """A transaction that does not wait for a handler to end. Raises SetAside when one locks the row."""
    connection = connections[database]
    try:
        with transaction.atomic(using=database), brief_locks(connection, inbox.TWIN_WAIT):
            yield
    except OperationalError as error:
        if is_lock_wait(error) or is_conflict(error):
            raise SetAside from error
        raise
