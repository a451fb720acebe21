"""What is recorded without running a handler: dead letters, reused ids, crashes, and what no handler takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.expressions import Combinable

from messaging.db.clock import Now
from messaging.exceptions import HandlerTimeout, IdReused, ProcessDied, WireError
from messaging.handlers import Handler
from messaging.models import AuditRecord, ProcessedMessage, Worker
from messaging.models.base import in_state
from messaging.models.operations import STOPPED
from messaging.models.processed import UNCLAIMED
from messaging.models.spools import Spool
from messaging.monitoring import counters
from messaging.processing import crashes, failures, inbox
from messaging.processing.failures import Failure
from messaging.processing.inbox import AlreadyRecorded, Place, Verdict
from messaging.processing.station import Station, Work
from messaging.supervising.ledger import Entry
from messaging.wire.bodies import storable
from messaging.wire.envelope import Envelope, address
from messaging.wire.properties import Properties

STOPPING = "stopping"  # what people read of a worker once it is asked to stop
UNBEGUN = "Its worker was lost before its handler began."
AWAY = "Its claim ran out while the database could not be used."
LOOKS = 10  # at a row that others keep changing


class DeadLetter(Protocol):
    """What `revive()` needs of a delivery from a dead-letter queue."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


REASONS = {
    "expired": "it expired in the queue",
    "maxlen": "the queue was full",
    "delivery_limit": "it was delivered too often",
    "rejected": "a consumer rejected it",
}


def record_unrun(
    station: Station,
    database: str,
    queue: str,
    envelope: Envelope,
    failure: Failure,
    *,
    redelivered: bool,
    handler: Handler | None = None,
    is_dead: bool = False,
    spool: Spool | None = None,
) -> bool:
    """Record a message that no handler can take, or that the broker gave up, so that it `is_dead`.

    `handler` is the one that would take it, `spool` has the body where the envelope has not. Returns whether
    the inbox answers for it now. Raises SetAside when a twin is about to record it.
    """
    for _ in range(LOOKS):
        row = inbox.find(database, station.alias, queue, envelope, redelivered=redelivered, handler=handler)
        if row is None:
            place = inbox.fresh(station.alias, queue, envelope)
        else:
            verdict = inbox.gate(row, envelope, is_dead=is_dead)
            if verdict is Verdict.REUSED:
                record_reused(station, database, row, envelope, spool=spool)
                return True
            bring_content(row, envelope, database, spool)
            if verdict is Verdict.DONE or (is_dead and verdict is Verdict.CRASHED and row.at_broker is False):
                return True  # in the latter case the sweep ends the claim, and sends the message round again
            place = inbox.abandoned(row) if verdict is Verdict.CRASHED else inbox.existing(row)
        try:
            with _whole(place, database, spool):
                failures.record(place, failure, database, station.settings)
            return True
        except AlreadyRecorded:
            redelivered = True
    return False


@contextmanager
def _whole(place: Place, database: str, spool: Spool | None) -> Iterator[None]:
    """Around a record: with it a body is stored that is not in its envelope, both or neither."""
    if spool is None or not place.is_new:
        yield
        return
    with place.tentative(), transaction.atomic(using=database):
        yield
        spool.store(place.row, database)


def record_reused(
    station: Station, database: str, row: ProcessedMessage, envelope: Envelope, *, spool: Spool | None = None
) -> None:
    """Keep and flag a message whose id another one took first."""
    place = inbox.fresh(station.alias, row.queue, envelope, key=envelope.reused_key(row.digest_version))
    error = IdReused(
        f"The message id was used before, by another message (row {row.pk}) with other content or headers. "
        "Requeue it to process it all the same, or discard it."
    )
    with suppress(AlreadyRecorded), _whole(place, database, spool):  # this very message was flagged before
        failures.record(place, Failure(error, station.worker), database, station.settings)


def record_counted(
    station: Station, database: str, row: ProcessedMessage, envelope: Envelope, handler: Handler
) -> None:
    """Send a message round again whose crash was counted before its content was known, or whose run we cut short.

    Raises AlreadyRecorded when someone else was faster, SetAside when someone else is about to be.
    """
    bring_content(row, envelope, database)
    if row.interrupted:
        with suppress(WireError):  # it was damaged since, so that it can only be failed
            failures.send_round(inbox.existing(row), station.worker, database, why=STOPPED)
            return
    last = row.failures().order_by("-id").first()
    kind = HandlerTimeout if last is not None and last.was_late else ProcessDied
    error = kind(last.exception_message if last else "Its process died.")
    now = time.monotonic()
    failure = Failure(error, station.worker, handler, now, now, crashed=True, counted=True)
    failures.record(inbox.existing(row), failure, database, station.settings)


def absorb_crash(station: Station, work: Work, place: Place) -> bool:
    """Take a crash of a message without an id over into the claim that it has made since, and send it round.

    Returns whether there was one. Raises AlreadyRecorded, SetAside.
    """
    row, database = place.row, work.database
    for _ in range(LOOKS):
        alike = inbox.alike(database, row.alias, row.queue, work.envelope)
        row.attempts = next((one.attempts for one in alike if one.lease_token == place.token), 0)
        bare = next((one for one in alike if crashes.is_bare(one)), None)
        if bare is not None and not row.attempts:
            with suppress(AlreadyRecorded):
                crashes.absorb(place, bare, database)
        if row.attempts:
            record_counted(station, database, row, work.envelope, work.handler)
            return True
        if bare is None:
            break
    return False


def record_spared(station: Station, entry: Entry) -> None:
    """Send a claimed message round again whose process was killed on another one's account: no attempt is counted.

    Raises SetAside while its row is locked, such as by the transaction of that process.
    """
    rows = ProcessedMessage.objects.using(entry.database).filter(alias=entry.alias, queue=entry.queue)
    claim = in_state(ProcessedMessage.State.PROCESSING)
    row = rows.filter(claim, key=entry.identity[0], lease_token=entry.token).first()
    if row is not None:
        give_up(station, entry.database, row)


def give_up(station: Station, database: str, row: ProcessedMessage) -> bool:
    """End a claim whose run was cut short by ourselves: the message comes again, and no attempt is counted.

    Returns False when the claim was no longer held. Raises SetAside when the row is locked.
    """
    place, handler = inbox.existing(row), handler_of(station, row)
    try:
        if inbox.comes_again(row, handler):
            # The mark tells its redelivery that nothing is to be counted.
            values: dict[str, Any] = {**UNCLAIMED, "interrupted": True, "error": STOPPED}
            with place.tentative(), transaction.atomic(using=database):
                place.write(database, **values)
        else:
            failures.send_round(place, station.worker, database, why=STOPPED)
    except AlreadyRecorded:
        return False
    counters.tell("interrupted", row.alias, row.queue, handler.name if handler else "")
    return True


def end_abandoned(station: Station, database: str, row: ProcessedMessage, handler: Handler | None) -> bool:
    """End a claim that its worker stopped renewing, as a crash or without an attempt. False when it ended meanwhile."""
    why = _excuse(station, database, row)
    if not why:
        return record_abandoned(station, database, row, handler)
    try:
        failures.send_round(inbox.abandoned(row), row.worker, database, why=why)
        counters.tell("interrupted", row.alias, row.queue, handler.name if handler else "")
        return True
    except AlreadyRecorded:
        return False
    except WireError:  # it was damaged since, so that it can only be failed
        return record_abandoned(station, database, row, handler)


def _excuse(station: Station, database: str, row: ProcessedMessage) -> str:
    """Why an abandoned claim is not an attempt; "" where it is one, or nobody knows: see `ProcessedMessage`."""
    if row.at_broker is None:
        return ""
    if row.interrupted or (row.at_broker and row.started_at is not None and _was_stopping(database, row.worker)):
        return STOPPED
    if row.started_at is None:
        return UNBEGUN
    return AWAY if _lapsed_in_an_outage(station, database, row) else ""


def _was_stopping(database: str, worker: str) -> bool:
    """Whether a worker said of itself that it was asked to stop: of a run that locks its row nobody else can say so."""
    return Worker.objects.using(database).filter(name=worker, kind="consume", is_stopping=True).exists()


def _lapsed_in_an_outage(station: Station, database: str, row: ProcessedMessage) -> bool:
    """Whether a claim ran out after an outage began that its last renewal did not outlive."""
    lapsed, lease = Q(), station.settings.lease
    for begin, end, was_seen in station.outages.seen(database):
        began, latest = Now() - timedelta(seconds=begin), Now() + timedelta(seconds=lease - end)
        lapsed |= Q(leased_until__lte=latest) & (Q(leased_until__gte=began) if was_seen else _lapsed_unseen(began))
    return bool(lapsed) and ProcessedMessage.objects.using(database).filter(lapsed, pk=row.pk).exists()


def _lapsed_unseen(began: Combinable) -> Q:
    """That a claim may have run out in an outage in which this process began: no worker was seen in between.

    Once for each message: what ends whole machines may look like this, and must not run for ever.
    """
    seen = Worker.objects.filter(seen_at__gt=OuterRef("leased_until"), seen_at__lt=began)
    excused = AuditRecord.objects.filter(
        kind="processed", message_pk=OuterRef("pk"), action=AuditRecord.INTERRUPTION, reason=AWAY
    )
    return Q(~Exists(seen), ~Exists(excused))


def record_abandoned(station: Station, database: str, row: ProcessedMessage, handler: Handler | None) -> bool:
    """Count the crash of a worker that stopped renewing its claim. False when it was recorded otherwise meanwhile."""
    error = ProcessDied(f"The worker {row.worker} stopped renewing its claim: it died, or lost the database.")
    now = time.monotonic()
    failure = Failure(error, row.worker, handler, now, now, crashed=True)
    try:
        failures.record(inbox.abandoned(row), failure, database, station.settings)
        return True
    except AlreadyRecorded:
        return False


def handler_of(station: Station, row: ProcessedMessage) -> Handler | None:
    """The handler that takes a claimed message, as far as its columns tell; None where there is none."""
    return station.handlers.find(station.alias, row.queue, storable(row.routing_key))


def bring_content(row: ProcessedMessage, envelope: Envelope, database: str, spool: Spool | None = None) -> None:
    """Fill in a row that was made for a crash alone, whatever has become of it: it is all that will be left."""
    if row.wire is not None:
        return
    inbox.fill(row, envelope)
    place, same = inbox.existing(row), ProcessedMessage.objects.using(database).filter(pk=row.pk, key=row.key)
    while True:
        content = {name: getattr(row, name) for name in envelope.columns}
        try:
            with transaction.atomic(using=database):
                if same.filter(wire__isnull=True).update(**content) and spool is not None:
                    spool.store(row, database)
            return
        except DatabaseError as error:
            if not place.escape(error):
                raise


def revive(letter: DeadLetter, queue: str) -> tuple[Envelope, str]:
    """A dead letter as `queue` got it, and why the broker gave it up, in words."""
    headers = letter.properties.headers
    death = _death(headers.get("x-death"), queue)
    reason = str(death.get("reason") or headers.get("x-first-death-reason") or "unknown")
    text = f"The broker gave it up: {REASONS.get(reason, 'reason ' + storable(reason, 100))}."
    keys = death.get("routing-keys")
    exchange = address(death.get("exchange"), letter.exchange)
    routing_key = address(keys[0] if isinstance(keys, list) and keys else None, letter.routing_key)
    return Envelope.received(exchange, routing_key, letter.properties, letter.body, queue), text


def _death(deaths: Any, queue: str) -> dict[str, Any]:
    entries = deaths if isinstance(deaths, list) else []
    return next((entry for entry in entries if isinstance(entry, dict) and entry.get("queue") == queue), {})
