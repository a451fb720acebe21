"""Recording what failed: the attempt, what follows from it, and the scheduled publish that is the retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.models import F

from messaging import conf, inbox, signals
from messaging.clock import Now
from messaging.database import brief_locks, is_lock_wait
from messaging.exceptions import MessagingError, Reject, WireError
from messaging.handlers import Handler, registry
from messaging.inbox import AlreadyRecorded, Place, SetAside
from messaging.ledger import Entry
from messaging.models import Attempt, ProcessedMessage
from messaging.retry import Decision, decide
from messaging.sealing import compose_round
from messaging.texts import storable
from messaging.tracebacks import describe, fingerprint, text_of, traceback_of, type_name

State = ProcessedMessage.State


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed.

    Attributes:
        error: what went wrong.
        worker: who ran it.
        handler: what ran; None when no handler was found or it never started.
        started: seconds since the epoch; None when no attempt was started.
        crashed: whether the process died with it.
        counted: whether the attempt is recorded already.
    """

    error: BaseException
    worker: str
    handler: Handler | None = None
    started: float | None = None
    crashed: bool = False
    counted: bool = False


def record(place: Place, failure: Failure, database: str, settings: conf.AliasSettings) -> ProcessedMessage:
    """Commit a failed attempt with its consequence: another round, or rest as failed.

    One transaction writes the inbox row, the attempt and the retry's outbox row. Raises AlreadyRecorded when the
    message was recorded otherwise meanwhile, SetAside when a twin is about to.
    """
    try:
        return _record(place, failure, database, settings)
    except DatabaseError as error:
        if not place.escape(error):
            raise
        return _record(place, failure, database, settings)
    except WireError as error:  # its row was damaged since, so that no retry can be made of it
        damaged = Reject(f"{error} It cannot be sent round again. {describe(failure.error)}")
        damaged.__cause__ = failure.error
        return _record(place, replace(failure, error=damaged), database, settings)


def _record(place: Place, failure: Failure, database: str, settings: conf.AliasSettings) -> ProcessedMessage:
    row = place.row
    if place.token is not None:  # its supervisor may have counted an earlier crash while it ran
        attempts = ProcessedMessage.objects.using(database).filter(pk=row.pk).values_list("attempts", flat=True)
        row.attempts = attempts.first() or row.attempts
    number = row.attempts + (failure.started is not None and not failure.counted)
    decision = _decide(number, failure, settings)
    values = _values(failure, decision, number)
    retrying = decision.retry_after is not None
    with place.tentative(), transaction.atomic(using=database):
        before = row.round
        place.write(database, next_round=before + 1 if retrying else None, **values)
        if failure.started is not None and not failure.counted:
            _attempt(row, failure, number, before).save(using=database, force_insert=True)
        if retrying:
            compose_round(row, _due(decision)).save(using=database, force_insert=True)
    signal = signals.message_retrying if retrying else signals.message_failed
    signal.send_robust(type(row), row=row, attempt=number, error=failure.error)
    return row


def send_round(place: Place, worker: str, database: str, *, why: str = "") -> None:
    """Commit that a message goes round again now, without an attempt. Raises AlreadyRecorded, SetAside.

    Args:
        place: its row.
        worker: who says so.
        database: where its row is.
        why: what the operator reads; "" to leave what stands there.
    """
    values = {"state": State.RETRYING, "worker": worker, "retry_at": Now(), **inbox.UNCLAIMED}
    if why:
        values |= {"error": why, "exception_type": "", "fingerprint": ""}
    with place.tentative(), transaction.atomic(using=database):
        place.write(database, next_round=place.row.round + 1, **values)
        compose_round(place.row, Now()).save(using=database, force_insert=True)


def record_crash(entry: Entry, error: MessagingError, worker: str) -> None:
    """Record that a process died while it ran `entry`. Its message comes again, from the broker or by a retry."""
    settings = conf.get(entry.alias)
    key, _digest = entry.identity
    for _ in range(10):
        row = (
            ProcessedMessage.objects.using(entry.database).filter(alias=entry.alias, queue=entry.queue, key=key).first()
        )
        try:
            if row is None:
                if not _came_again(entry):
                    _insert_crash(entry, error, worker)
            elif row.state == State.PROCESSING and row.lease_token is None:
                return  # counted already: its twin died with it, or it is reported twice
            elif row.round != entry.round or row.state not in (State.PROCESSING, *ProcessedMessage.AWAITING):
                return  # it ended some other way: nothing is left to count
            elif row.state == State.PROCESSING and str(row.lease_token or "") != entry.token:
                _count_crash(row, entry, error, worker)
            elif inbox.comes_again(row, handler := registry.find(entry.alias, entry.queue, row.routing_key)):
                _count_crash(row, entry, error, worker, **inbox.UNCLAIMED, error=describe(error))
            else:
                failure = Failure(error, worker, handler, entry.started, crashed=True)
                record(inbox.existing(row), failure, entry.database, settings)
            return
        except (AlreadyRecorded, IntegrityError):
            continue
        except SetAside:
            return  # it runs again elsewhere, under a claim that would be counted in its turn


def _came_again(entry: Entry) -> bool:
    """Whether a message without an id was redelivered meanwhile: under a new key, so that nothing would claim this."""
    if entry.message_id:
        return False
    started = datetime.fromtimestamp(entry.started, UTC)
    rows = ProcessedMessage.objects.using(entry.database).filter(
        alias=entry.alias, queue=entry.queue, digest=entry.identity[1], message_id="", received_at__gte=started
    )
    return rows.exists()


def _insert_crash(entry: Entry, error: MessagingError, worker: str) -> None:
    """A row without content: the crash is counted, and the redelivery will bring the content."""
    key, digest = entry.identity
    failure = Failure(error, worker, started=entry.started, crashed=True)
    row = ProcessedMessage(
        alias=entry.alias,
        queue=entry.queue,
        key=key,
        digest=digest,
        message_id=entry.message_id,
        round=entry.round,
        state=State.PROCESSING,
        attempts=1,
        handler=entry.handler,
        worker=worker,
        error=describe(error),
        exception_type=type_name(error),
        derivation=inbox.DERIVATION,
    )
    with _brief(entry.database):
        row.save(using=entry.database, force_insert=True)
        _attempt(row, failure, 1, entry.round).save(using=entry.database, force_insert=True)


def _count_crash(row: ProcessedMessage, entry: Entry, problem: MessagingError, worker: str, **changes: Any) -> None:
    """The message is running again elsewhere, or will be delivered again: only the count is added."""
    failure = Failure(problem, worker, started=entry.started, crashed=True)
    with _brief(entry.database):
        if not row.move(row.state, round=row.round, token=row.lease_token, attempts=F("attempts") + 1, **changes):
            raise AlreadyRecorded
        _attempt(row, failure, row.attempts + 1, row.round).save(using=entry.database, force_insert=True)


@contextmanager
def _brief(database: str) -> Iterator[None]:
    """A transaction that does not wait for a handler to end. Raises SetAside when one locks the row."""
    connection = connections[database]
    try:
        with transaction.atomic(using=database), brief_locks(connection, inbox.TWIN_WAIT):
            yield
    except OperationalError as error:
        if is_lock_wait(error) and connection.vendor != "sqlite":
            raise SetAside from error
        raise


def _decide(number: int, failure: Failure, settings: conf.AliasSettings) -> Decision:
    handler = failure.handler
    if handler is None and failure.started is None:
        return Decision(None, "no attempt was made")
    return decide(
        number,
        failure.error,
        max_attempts=(handler and handler.max_attempts) or settings.retry.max_attempts,
        backoff=handler.backoff if handler else None,
        policy=settings.retry,
    )


def _values(failure: Failure, decision: Decision, number: int) -> dict[str, Any]:
    handler = failure.handler.name if failure.handler else ""
    retrying = decision.retry_after is not None
    return {
        "state": State.RETRYING if retrying else State.FAILED,
        "attempts": number,
        "handler": handler[:255],
        "worker": failure.worker,
        "error": describe(failure.error),
        "exception_type": type_name(failure.error),
        "fingerprint": fingerprint(failure.error, handler),
        "retry_at": _due(decision) if retrying else None,
        "failed_at": None if retrying else Now(),
        **inbox.UNCLAIMED,
    }


def _due(decision: Decision) -> Any:
    return Now() + timedelta(seconds=decision.retry_after or 0.0)


def _attempt(row: ProcessedMessage, failure: Failure, number: int, round_: int) -> Attempt:
    return Attempt(
        message=row,
        number=number,
        round=round_,
        worker=failure.worker,
        started_at=datetime.fromtimestamp(failure.started, UTC) if failure.started is not None else None,
        crashed=failure.crashed,
        exception_type=type_name(failure.error),
        exception_message=storable(text_of(failure.error), 10_000),
        traceback=traceback_of(failure.error),
    )
