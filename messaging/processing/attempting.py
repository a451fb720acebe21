"""One attempt at a message: its handler and its record, in one transaction where the handler shares one."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

from django.db import Error, connections, transaction
from django.db.models import F

from messaging import conf, signals
from messaging.db.clock import Now
from messaging.db.connections import (
    Local,
    close_old,
    is_conflict,
    is_database_error,
    is_lost,
    is_too_long,
    is_unfit,
    reconnect,
    was_idle,
)
from messaging.db.session import renew
from messaging.exceptions import DatabaseUnavailable
from messaging.handlers import Handler
from messaging.killpoints import kill_point
from messaging.message import HandlerContext, ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.monitoring import counters
from messaging.processing import durations, failures, without_handler
from messaging.processing.execution import proven_commit
from messaging.processing.failures import Failure
from messaging.processing.inbox import AlreadyRecorded, Place, SetAside
from messaging.processing.station import Station, Work, inserts_first
from messaging.wire.bodies import one_line
from messaging.wire.properties import Properties

logger = logging.getLogger("messaging.processor")

State = ProcessedMessage.State
RERUNS = 3  # immediate ones, after a deadlock or a serialization failure
DEFAULT_DELIVERY_LIMIT = 20  # RabbitMQ 4's, on queues whose limit we did not set
BRIEF = 1.0  # seconds after which a connection may be lost once more and the handler be innocent
WAITS_TO_BEGIN = "is claimed and waits to begin", "begins now"
WAITS_TO_BE_RECORDED = "has run and waits to be recorded", "is recorded now"
UNTRACED = nullcontext()
DELIVERY_COUNT = "x-delivery-count"


class Attempts:
    """Makes attempts at single messages, and records how they ended.

    Args:
        station: where this process stands.
    """

    def __init__(self, station: Station) -> None:
        self._station = station

    def make(self, work: Work, place: Place) -> None:
        """Run the handler once, or a few times where only a conflict was in the way; record how it ended.

        Raises AlreadyRecorded and SetAside, when another copy was faster, and DatabaseUnavailable.
        """
        station = self._station
        if is_near_limit(work.envelope.properties, station.settings.queue(work.queue)):
            with station.claims.held(place.token, work.database):
                failures.send_round(place, station.worker, work.database)
            return
        if work.left_over or (place.token is None and self._needs_claim(work, place)):
            was_new = place.is_new
            with station.claims.held(place.token, work.database):
                self._claim(work, place)
            kill_point("processor.claimed")
            if was_new and work.envelope.key is None and self._absorb(work, place):
                return
        if work.left_over:
            self._retire_others(work, place)
        work.attempt = place.row.attempts + 1
        with station.claims.held(place.token, work.database, work=work, at_broker=work.handler.atomic):
            if not work.handler.atomic:
                work.ack()
                work.acked = True
                work.envelope.belongs_to(place.row.key)
            if place.token is not None:
                self._begin(work, place)
                kill_point("processor.begun")
            started = time.monotonic()
            # In the ledger until the attempt is recorded: a process that dies before has an attempt to be counted.
            with station.running(work.entry(station, place, time.time())) as work.lift, self._span(work):
                self._try(work, place, started)

    def _span(self, work: Work) -> AbstractContextManager[None]:
        if signals.tracing is None:
            return UNTRACED
        span: AbstractContextManager[None] = signals.tracing.process(work, self._station.settings)
        return span

    def _begin(self, work: Work, place: Place) -> None:
        """Commit that the handler of a claim begins: what dies before has cost no attempt.

        Raises AlreadyRecorded when the claim was lost meanwhile, and DatabaseUnavailable where the broker keeps it.
        """

        def write() -> None:
            changes: dict[str, Any] = {"interrupted": True} if self._station.claims.are_interrupted else {}
            changes["started_at"] = Now()
            if not place.row.move(State.PROCESSING, round=place.row.round, token=place.token, **changes):
                raise AlreadyRecorded

        if work.acked:
            self._insist(work, write, WAITS_TO_BEGIN)
        else:
            self._station.outages.steadily(work.database, write)

    def _retire_others(self, work: Work, place: Place) -> None:
        """Take a message over from other databases before it runs: whoever changes a row of it first has it.

        The claim is new, made after their rows were read: two processes cannot take it over from each other.
        """
        with self._station.claims.held(place.token, work.database):
            try:
                self._station.elsewhere.retire(work.left_over, work.database)
            except AlreadyRecorded as error:
                raise SetAside from error  # which keeps the claim: it may go on
        kill_point("processor.moved")

    def _needs_claim(self, work: Work, place: Place) -> bool:
        """Whether it is to be known of a message that it runs, before it runs."""
        if work.redelivered or not work.handler.atomic:
            return True
        if place.is_new:
            return False
        # The last attempt: if it dies, no copy may run before that is reported. And what rested runs where the inbox
        # was set back: its round has had its attempt.
        limit = work.handler.max_attempts or self._station.settings.retry.max_attempts
        return place.row.attempts + 1 >= limit or not set(place.sources) <= set(ProcessedMessage.AWAITING)

    def _claim(self, work: Work, place: Place) -> None:
        """Claim it under a token that is known before: where the commit's answer is lost, the claim is ours still."""
        station, token = self._station, uuid.uuid4()
        try:
            with station.claims.held(token, work.database):
                place.claim(
                    work.database,
                    station.worker,
                    station.settings.lease,
                    at_broker=work.handler.atomic,
                    token=token,
                )
        except SetAside:  # surely not made
            station.claims.take(token)
            raise

    def _absorb(self, work: Work, place: Place) -> bool:
        """Whether a crash of this message, which has no id, was counted before it was claimed: it goes round then.

        Whoever counts it looks for this claim in turn; see `crashes`.
        """
        with self._station.claims.held(place.token, work.database):
            return without_handler.absorb_crash(self._station, work, place)

    def _try(self, work: Work, place: Place, started: float) -> None:
        failure: Failure | None = None
        for rerun in range(RERUNS + 1):
            work.has_begun, began = False, time.monotonic()
            try:
                self._run(work, place, started, last_resort=rerun > 0)
                return
            except (SetAside, DatabaseUnavailable):
                raise
            except AlreadyRecorded:
                if failure is None or not place.is_unfinished:
                    raise
                self._record(place, failure, work)  # perhaps the last run's own record, which its handler committed
                return
            except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
                ended = time.monotonic()
                self._station.claims.end_here()
                kill_point("processor.rolled_back")
                self._station.outages.raise_if_away(error, work.database)
                if not work.has_begun and isinstance(error, Error):
                    _refresh(error, place, work.database, is_last=rerun == RERUNS)
                    continue
                failure = Failure(error, self._station.worker, work.handler, started, ended)
                is_first, is_last = rerun == 0, rerun == RERUNS
                ends = is_last or not _worth_rerunning(error, place, work.database, ended - began, is_first=is_first)
                renew(connections[work.database])
                if ends:
                    self._record(place, failure, work)
                    return
                close_old()

    def _run(self, work: Work, place: Place, started: float, *, last_resort: bool) -> None:
        """The handler and its record; for an atomic handler both in one transaction, proven to be committed."""
        message = ReceivedMessage(
            work.envelope, queue=work.queue, attempt=place.row.attempts + 1, redelivered=work.redelivered
        )
        if work.handler.atomic:
            self._run_atomic(work, place, message, last_resort=last_resort)
        else:
            took = self._call(work, message, _cause(place.row, work.handler), place.row.derivation)
            renew(connections[work.database])
            kill_point("processor.handled")
            self._finish_claimed(work, place, durations.micros(took))
        kill_point("processor.committed")
        duration = time.monotonic() - started
        ids, is_first = (work.envelope.message_id,), work.envelope.round == 1
        counters.add_processed(place.row.alias, work.queue, duration, ids, handler=work.handler.name, is_first=is_first)
        signals.message_processed.send_robust(ProcessedMessage, row=place.row, duration=duration)

    def _run_atomic(self, work: Work, place: Place, message: ReceivedMessage, *, last_resort: bool) -> None:
        # On SQLite a reader that becomes a writer fails if others wrote meanwhile, while one that begins as a writer
        # locks everybody out: so the first run begins as a reader, and a rerun as a writer.
        mode = "IMMEDIATE" if last_resort else "DEFERRED"
        first = inserts_first(work.database)
        with place.tentative(), proven_commit(work.database, message, work.about, mode=mode) as proof:
            if first:
                began = None if place.is_new else datetime.now(UTC)
                self._write_processed(place, work, durations.UNMEASURED, proof.local(work.handler.timeout), began)
                proof.recorded(place.row)
                place.began, place.is_unfinished = began, False
            try:
                took = self._call(work, message)
                kill_point("processor.handled")
                proof.refuse_other()
                is_long = first and took >= durations.BRIEF
                is_told = not is_long or durations.correct(place.rows(), took)
            except BaseException:
                place.is_unfinished = first
                raise
            if not first:
                self._write_processed(place, work, durations.micros(took))
        if is_long:
            place.row.duration = durations.micros(took)
        if not is_told:
            durations.correct_late(place.rows(), took)

    def _call(
        self, work: Work, message: ReceivedMessage, cause: uuid.UUID | None = None, derivation: int | None = None
    ) -> float:
        """Run the handler. Returns how many seconds that took."""
        handler, work.has_begun = work.handler, True
        context = HandlerContext(
            message, handler.database, handler.atomic, cause, derivation, handler.using, worker=self._station.worker
        )
        began = time.monotonic()
        self._station.call(handler, [message] if handler.batch is not None else message, context)
        return time.monotonic() - began

    def _finish_claimed(self, work: Work, place: Place, duration: int) -> None:
        """Record the end of a handler without a transaction: its work is done and must not run again, so this waits."""

        def write() -> None:
            with place.tentative(), transaction.atomic(using=work.database):
                self._write_processed(place, work, duration)

        work.lift()
        self._insist(work, write, WAITS_TO_BE_RECORDED)

    def _insist(self, work: Work, write: Callable[[], object], words: tuple[str, str]) -> None:
        """Commit what nothing but this thread knows, however long the database or a lock is in the way."""
        waits = is_renewed = False
        while True:
            close_old()  # the connection may have been idle for hours, or left behind unfit by the handler
            try:
                with self._station.outages.watch(work.database):
                    write()
                break
            except (DatabaseUnavailable, SetAside, Error) as error:
                if is_unfit(error, work.database) and not is_renewed:  # perhaps by what the handler left in its session
                    is_renewed = True
                    reconnect(work.database)
                    continue
                if isinstance(error, Error) and not is_database_error(error):
                    raise
                if is_lost(error, work.database):
                    reconnect(work.database)
                if not waits:
                    logger.warning("%s %s: %s", work.name, words[0], one_line(error), extra=work.about())
                waits = True
            time.sleep(1)
        if waits:
            logger.warning("%s %s.", work.name, words[1], extra=work.about())

    def _write_processed(
        self, place: Place, work: Work, duration: int, local: Local = (), began: datetime | None = None
    ) -> None:
        """Write the success; `began` tells this run's record from that of a copy."""
        was_new = place.is_new
        told: dict[str, Any] = {} if began is None else {"started_at": began}
        if not was_new:
            told["fingerprint"] = ""
        place.write(
            work.database,
            local=local,
            state=State.PROCESSED.value,  # plain text, which drivers take as it is
            processed_at=Now(),
            duration=duration,
            attempts=1 if was_new else F("attempts") + 1,  # a crash may have been counted meanwhile
            handler=work.handler.name[:255],
            worker=self._station.worker,
            error="",
            lease_token=None,
            leased_until=None,
            **told,
        )
        if not was_new:
            place.row.attempts += 1

    def _record(self, place: Place, failure: Failure, work: Work) -> None:
        """Record a failure. What was acknowledged already cannot be held, so it waits for the database here."""
        work.lift()

        def write() -> None:
            try:
                failures.record(place, failure, work.database, self._station.settings)
            except AlreadyRecorded:
                with transaction.atomic(using=work.database):
                    if not place.take_back(work.database, self._station.worker):
                        raise
                    failures.record(place, failure, work.database, self._station.settings)

        if work.acked:
            self._insist(work, write, WAITS_TO_BE_RECORDED)
        else:
            self._station.outages.steadily(work.database, write)
        kill_point("processor.recorded")


def _cause(row: ProcessedMessage, handler: Handler) -> uuid.UUID:
    """What the ids derive from that it publishes outside a transaction: this message in this queue, and this handler.

    Those of a message that the release before recorded stay what they were: it may have published some of them.
    """
    if row.derivation is None:
        return uuid.uuid5(row.key, handler.name)
    return uuid.uuid5(row.key, json.dumps([row.alias, row.queue, handler.name]))


def _refresh(error: Error, place: Place, database: str, *, is_last: bool) -> None:
    """Before another try at a record of ours that failed before its handler began: that is nobody's attempt.

    Raises the error where another try would be of no use.
    """
    if is_last or not (place.escape(error) or is_conflict(error) or is_unfit(error, database)):
        raise error
    reconnect(database)


def _worth_rerunning(error: BaseException, place: Place, database: str, took: float, *, is_first: bool) -> bool:
    """After a conflict, a connection that was lost while the database is up, or a value that can be written escaped.

    Not after a handler that took longer, in seconds, than the server lets a transaction be idle: that used its time up.
    So has one that is lost a second time, unless at once: somebody between it and the server may have such a limit.
    """
    if was_idle(error):
        return False
    connection = connections[database]
    is_open = connection.connection is not None  # which MySQL's cannot be asked otherwise
    if is_lost(error, database) or (is_database_error(error) and not (is_open and connection.is_usable())):
        reconnect(database)
        return (is_first or took < BRIEF) and not is_too_long(database, took)
    return is_conflict(error) or place.escape(error)


def is_near_limit(properties: Properties, queue: conf.QueueSettings) -> bool:
    """Whether the broker may soon give a message up for coming back so often: it goes round by the inbox then.

    That begins at half of the limit: each disconnect spends one for everything that a process holds, and one that
    dies at once again and again gets little done in between.
    """
    count = properties.headers.get(DELIVERY_COUNT)
    limit = queue.arguments.get("x-delivery-limit", DEFAULT_DELIVERY_LIMIT)
    if not isinstance(count, int) or not isinstance(limit, int) or limit < 0:
        return False
    return count >= max(1, limit // 2)
