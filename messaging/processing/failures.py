"""Recording what failed: the attempt, what follows from it, and the scheduled publish that is the retry."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, transaction

from messaging import conf, signals
from messaging.db.clock import Now
from messaging.exceptions import DeadLettered, HandlerTimeout, NewerVersion, ProcessDied, Reject, WireError
from messaging.handlers import Backoff, Handler
from messaging.models import Attempt, AuditRecord, ProcessedMessage
from messaging.models.base import in_state
from messaging.models.processed import UNCLAIMED
from messaging.monitoring import counters, failure_groups
from messaging.monitoring.failure_groups import Cause
from messaging.processing.durations import micros
from messaging.processing.error_text import cause_of, describe, text_of, traceback_of, type_name
from messaging.processing.inbox import AlreadyRecorded, Place
from messaging.processing.retry import Decision, decide
from messaging.publishing.rows import compose_round
from messaging.wire.bodies import storable

State = ProcessedMessage.State


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed.

    Attributes:
        error: what went wrong.
        worker: who ran it.
        handler: what ran; None when no handler was found or it never started.
        started: CLOCK_MONOTONIC of its begin, which no change of the host's clock moves; None when none was started.
        ended: CLOCK_MONOTONIC of its end; the same as `started` where nobody knows how long it ran.
        crashed: whether the process died with it.
        counted: whether the attempt is recorded already.
        max_attempts, backoff: what a handler would say, where there is none.
    """

    error: BaseException
    worker: str
    handler: Handler | None = None
    started: float | None = None
    ended: float = field(default_factory=time.monotonic)
    crashed: bool = False
    counted: bool = False
    max_attempts: int | None = None
    backoff: Backoff | None = None

    @property
    def duration(self) -> int | None:
        """How long it ran, in microseconds; None where none was started, or nobody knows."""
        return None if self.started in (None, self.ended) else micros(self.ended - self.started)

    def cause(self, queue: str) -> Cause:
        """Which failures it is like, of a message of that queue."""
        return cause_of(self.error, self.handler.name if self.handler else "", queue)


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
    while True:
        try:
            return _record_once(place, failure, database, settings)
        except AlreadyRecorded:
            if not _has_risen(place, database):
                raise


def _has_risen(place: Place, database: str) -> bool:
    """Whether nothing but the count of attempts is another one, such as of a crash that was reported meanwhile."""
    row = place.row
    if place.is_new:
        return False
    rows = ProcessedMessage.objects.using(database).filter(
        in_state(*place.sources), pk=row.pk, key=row.key, round=row.round, lease_token=place.token
    )
    attempts, before = rows.values_list("attempts", flat=True).first(), row.attempts
    row.attempts = before if attempts is None else attempts
    return row.attempts != before


def _record_once(place: Place, failure: Failure, database: str, settings: conf.AliasSettings) -> ProcessedMessage:
    row, run = place.row, place.run
    number = row.attempts + (failure.started is not None and not failure.counted)
    decision = decision_on(number, failure, settings)
    cause = failure.cause(row.queue)
    values = outcome(failure, decision, number, cause)
    retrying = decision.retry_after is not None
    with place.tentative(), transaction.atomic(using=database):
        before = row.round
        place.write(database, next_round=before + 1 if retrying else None, counted=row.attempts, **values)
        if failure.started is not None and not failure.counted:
            attempt_of(row, failure, number, before, run).save(using=database, force_insert=True)
        if retrying:
            compose_round(row, _due(decision)).save(using=database, force_insert=True)
    counters.add("retried" if retrying else "failed", row.alias, row.queue, handler=cause.handler)
    failure_groups.add(database, row.alias, cause, is_final=not retrying)
    signal = signals.message_retrying if retrying else signals.message_failed
    signal.send_robust(type(row), row=row, attempt=number, error=failure.error)
    return row


def send_round(place: Place, worker: str, database: str, *, why: str = "") -> None:
    """Commit that a message goes round again now, without an attempt. Raises AlreadyRecorded, SetAside.

    Args:
        place: its row.
        worker: who says so.
        database: where its row is.
        why: what the operator reads, also in the message's timeline; "" to leave what stands there.
    """
    values: dict[str, Any] = {"state": State.RETRYING, "worker": worker, "retry_at": Now(), **UNCLAIMED}
    if why:
        values |= {"error": why, "exception_type": "", "process_died": None, "dead_lettered": None, "fingerprint": ""}
    with place.tentative(), transaction.atomic(using=database):
        before = place.row.state
        place.write(database, next_round=place.row.round + 1, **values)
        compose_round(place.row, Now()).save(using=database, force_insert=True)
        if why:
            _interruption(place.row, before, why, worker).save(using=database, force_insert=True)


def _interruption(row: ProcessedMessage, before: str, why: str, worker: str) -> AuditRecord:
    """What is to be read of a run that was no attempt, when the message has long been processed."""
    return AuditRecord.of(row, AuditRecord.INTERRUPTION, before, username=worker, reason=why)


def decision_on(number: int, failure: Failure, settings: conf.AliasSettings) -> Decision:
    """What follows from the failure, as the `number`-th attempt."""
    handler = failure.handler
    if handler is None and failure.started is None:
        return Decision(None, "no attempt was made")
    most = (handler or failure).max_attempts or settings.retry.max_attempts
    if isinstance(failure.error, NewerVersion):  # as long as an unknown routing key, however few the handler says
        most = max(most, settings.retry.max_attempts)
    return decide(
        number,
        failure.error,
        max_attempts=most,
        backoff=(handler or failure).backoff,
        policy=settings.retry,
    )


def outcome(failure: Failure, decision: Decision, number: int, cause: Cause) -> dict[str, Any]:
    """What the inbox row says afterwards."""
    retrying = decision.retry_after is not None
    return {
        "state": State.RETRYING if retrying else State.FAILED,
        "attempts": number,
        "handler": failure.handler.name[:255] if failure.handler else "",
        "worker": failure.worker,
        "duration": failure.duration,
        "error": describe(failure.error),
        **kind_of(failure.error),
        "fingerprint": cause.fingerprint,
        "retry_at": _due(decision) if retrying else None,
        "failed_at": None if retrying else Now(),
        **UNCLAIMED,
    }


def kind_of(error: BaseException) -> dict[str, Any]:
    """What an inbox row says of the kind of its failure: its name for people, and what decides anything."""
    return {
        "exception_type": type_name(error),
        "process_died": isinstance(error, ProcessDied) or None,
        "dead_lettered": isinstance(error, DeadLettered) or None,
    }


def _due(decision: Decision) -> Any:
    return Now() + timedelta(seconds=decision.retry_after or 0.0)


def age_of(moment: float, now: float) -> timedelta:
    """How long ago that was, by CLOCK_MONOTONIC."""
    return timedelta(seconds=max(0.0, now - moment))


def attempt_of(row: ProcessedMessage, failure: Failure, number: int, round_: int, run: uuid.UUID) -> Attempt:
    """The failure as a row beside it."""
    now = time.monotonic()
    return Attempt(
        message_id=row.pk,
        number=number,
        round=round_,
        worker=failure.worker,
        started_at=None if failure.started is None else Now() - age_of(failure.started, now),
        ended_at=Now() - age_of(failure.ended, now),
        crashed=failure.crashed,
        exception_type=type_name(failure.error),
        exception_message=storable(text_of(failure.error), 10_000),
        traceback=traceback_of(failure.error),
        run=run,
        timed_out=isinstance(failure.error, HandlerTimeout) or None,
    )
