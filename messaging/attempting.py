"""One attempt at a message: its handler and its record, in one transaction where the handler shares one."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from django.db import InterfaceError, InternalError, OperationalError, connections, transaction
from django.db.models import F

from messaging import conf, failures, signals, unrun
from messaging.clock import Now
from messaging.database import close_old, is_conflict, is_database_error, is_lost, reconnect
from messaging.envelope import Envelope
from messaging.exceptions import DatabaseUnavailable
from messaging.execution import proven_commit, refuse_doomed
from messaging.failures import Failure
from messaging.inbox import AlreadyRecorded, Place, SetAside
from messaging.killpoints import kill_point
from messaging.logs import one_line
from messaging.message import ReceivedMessage, Running
from messaging.models import ProcessedMessage
from messaging.station import Station, Work, inserts_first

logger = logging.getLogger("messaging.processor")

State = ProcessedMessage.State
RERUNS = 3  # immediate ones, after a deadlock or a serialization failure
DEFAULT_DELIVERY_LIMIT = 20  # RabbitMQ 4's, on queues whose limit we did not set
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
        if _near_limit(work.envelope, station.settings.queue(work.queue)):
            with station.claims.held(place.token, work.database):
                failures.send_round(place, station.worker, work.database)
            return
        if place.token is None and self._needs_claim(work, place):
            was_new = place.is_new
            self._claim(work, place)
            kill_point("processor.claimed")
            if was_new and work.envelope.key is None and self._absorb(work, place):
                return
        started = time.time()
        # In the ledger until the attempt is recorded: a process that dies before has an attempt to be counted.
        with (
            station.claims.held(place.token, work.database),
            station.running(work.entry(station, place, started)) as work.lift,
        ):
            if not work.handler.atomic:
                work.ack()
                work.acked = True
            self._try(work, place, started)

    def _needs_claim(self, work: Work, place: Place) -> bool:
        """Whether it is to be known of a message that it runs, before it runs."""
        if work.redelivered or not work.handler.atomic:
            return True
        if place.is_new:
            return False
        # The last attempt: if it dies, no copy may run before that is reported. And a failed one runs where the inbox
        # was set back: its round has had its attempt.
        limit = work.handler.max_attempts or self._station.settings.retry.max_attempts
        return place.row.attempts + 1 >= limit or State.FAILED in place.sources

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
        station = self._station
        with station.claims.held(place.token, work.database):
            return unrun.absorb_crash(place, work.envelope, work.handler, station.worker, station.settings)

    def _try(self, work: Work, place: Place, started: float) -> None:
        for rerun in range(RERUNS + 1):
            try:
                self._run(work, place, started, last_resort=rerun > 0)
                return
            except (AlreadyRecorded, SetAside, DatabaseUnavailable):
                raise
            except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
                kill_point("processor.rolled_back")
                self._station.outages.raise_if_away(error, work.database)
                if rerun == RERUNS or not _worth_rerunning(error, place, work.database):
                    self._record(place, Failure(error, self._station.worker, work.handler, started), work)
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
            self._call(work, message, uuid.uuid5(place.row.key, work.handler.name))
            kill_point("processor.handled")
            self._finish_claimed(work, place)
        kill_point("processor.committed")
        signals.message_processed.send_robust(ProcessedMessage, row=place.row, duration=time.time() - started)

    def _run_atomic(self, work: Work, place: Place, message: ReceivedMessage, *, last_resort: bool) -> None:
        # On SQLite a reader that becomes a writer fails if others wrote meanwhile, while one that begins as a writer
        # locks everybody out: so the first run begins as a reader, and a rerun as a writer.
        mode = "IMMEDIATE" if last_resort else "DEFERRED"
        first = inserts_first(work.database)
        with place.tentative(), proven_commit(work.database, message, mode=mode):
            if first:
                self._write_processed(place, work)
            self._call(work, message, None)
            kill_point("processor.handled")
            refuse_doomed(work.database, place.row if first else None)
            if not first:
                self._write_processed(place, work)

    def _call(self, work: Work, message: ReceivedMessage, cause: uuid.UUID | None) -> None:
        handler = work.handler
        context = Running(message, handler.database, handler.atomic, cause)
        self._station.call(handler, [message] if handler.batch is not None else message, context)

    def _finish_claimed(self, work: Work, place: Place) -> None:
        """Record the end of a handler without a transaction: its work is done and must not run again, so this waits."""

        def write() -> None:
            with place.tentative(), transaction.atomic(using=work.database):
                self._write_processed(place, work)

        self._insist(work, write)

    def _insist(self, work: Work, write: Callable[[], object]) -> None:
        """Commit what nothing but this thread knows, however long the database or a lock is in the way."""
        work.lift()
        waits = False
        while True:
            close_old()  # the connection may have been idle for hours, or left behind unfit by the handler
            try:
                with self._station.outages.watch(work.database):
                    write()
                break
            except (DatabaseUnavailable, SetAside, OperationalError, InterfaceError, InternalError) as error:
                if is_lost(error, work.database):
                    reconnect(work.database)
                if not waits:
                    logger.warning("%s has run and waits to be recorded: %s", work.name, one_line(error))
                waits = True
            time.sleep(1)
        if waits:
            logger.warning("%s is recorded now.", work.name)

    def _write_processed(self, place: Place, work: Work) -> None:
        was_new = place.is_new
        place.write(
            work.database,
            state=State.PROCESSED.value,  # plain text, which drivers take as it is
            processed_at=Now(),
            attempts=1 if was_new else F("attempts") + 1,  # a crash may have been counted meanwhile
            handler=work.handler.name[:255],
            worker=self._station.worker,
            error="",
            retry_at=None,
            lease_token=None,
            leased_until=None,
        )
        if not was_new:
            place.row.attempts += 1

    def _record(self, place: Place, failure: Failure, work: Work) -> None:
        """Record a failure. What was acknowledged already cannot be held, so it waits for the database here."""
        work.lift()

        def write() -> None:
            failures.record(place, failure, work.database, self._station.settings)

        if work.acked:
            self._insist(work, write)
        else:
            self._station.outages.steadily(work.database, write)
        kill_point("processor.recorded")


def _worth_rerunning(error: BaseException, place: Place, database: str) -> bool:
    """After a conflict, a connection that was lost while the database is up, or a value that can be written escaped."""
    if is_lost(error, database):
        reconnect(database)
        return True
    lost = is_database_error(error) and not connections[database].is_usable()
    return lost or is_conflict(error) or place.escape(error)


def _near_limit(envelope: Envelope, queue: conf.QueueSettings) -> bool:
    """Whether the broker is about to give a message up for being delivered so often: the inbox takes it then."""
    count = envelope.properties.headers.get(DELIVERY_COUNT)
    limit = queue.arguments.get("x-delivery-limit", DEFAULT_DELIVERY_LIMIT)
    if not isinstance(count, int) or not isinstance(limit, int) or limit < 0:
        return False
    return count >= max(1, limit - 4)
