"""Processing one delivery: dedupe, run the handler, record; all in one transaction, acknowledged after its commit."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from django.db import InterfaceError, InternalError, OperationalError, connections, transaction

from messaging import conf, failures, inbox, signals, unrun
from messaging.claims import Claims
from messaging.clock import Now
from messaging.database import (
    batches,
    brief_locks,
    close_old,
    is_conflict,
    is_database_error,
    is_lock_wait,
    is_lost,
    reconnect,
)
from messaging.exceptions import DatabaseUnavailable, DeadLettered, HandlerNotFound, MessagingError, PayloadError
from messaging.execution import call, proven_commit, refuse_doomed
from messaging.failures import Failure
from messaging.handlers import Handler, Registry, registry
from messaging.inbox import TWIN_WAIT, AlreadyRecorded, Place, SetAside, Verdict
from messaging.killpoints import kill_point
from messaging.ledger import Entry
from messaging.logs import one_line
from messaging.message import Envelope, ReceivedMessage, Running, storable
from messaging.models import ProcessedMessage
from messaging.outages import Outages
from messaging.wire import Properties

logger = logging.getLogger("messaging.processor")

State = ProcessedMessage.State
RERUNS = 3  # immediate ones, after a deadlock or a serialization failure
DEFAULT_DELIVERY_LIMIT = 20  # RabbitMQ 4's, on queues whose limit we did not set


class Incoming(Protocol):
    """What the processor needs of a backend's delivery."""

    queue: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    redelivered: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do with a delivery.

    Attributes:
        action: "ack" it now; "done": it was acknowledged on the way; "set_aside": nothing was spent, process it again.
        after: seconds until then.
    """

    action: Literal["ack", "done", "set_aside"]
    after: float = 0.0


ACK = Settlement("ack")
DONE = Settlement("done")
ASIDE = Settlement("set_aside", after=TWIN_WAIT)


@dataclass
class _Work:
    """One delivery on its way through the processor; `lift` ends its handler's time limit."""

    envelope: Envelope
    queue: str
    handler: Handler
    redelivered: bool
    ack: Callable[[], object]
    acked: bool = False
    lift: Callable[[], None] = lambda: None

    @property
    def database(self) -> str:
        return self.handler.database


class Processor:
    """Processes the deliveries of one alias in one worker process; safe to call from several threads.

    Args:
        alias: alias of `MESSAGING`.
        worker: the name under which claims and attempts are recorded.
        running: enters an attempt into the process's ledger while it runs; yields what lifts its time limit.
        handlers: the registry to find handlers in.
    """

    def __init__(
        self,
        alias: str,
        worker: str,
        *,
        running: Callable[[Entry], AbstractContextManager[Callable[[], None]]] | None = None,
        handlers: Registry = registry,
    ) -> None:
        self.alias = alias
        self.worker = worker
        self.settings = conf.get(alias)
        self.outages = Outages()
        self.claims = Claims(self.settings.lease, self.outages)
        self._running = running or (lambda _entry: nullcontext(_nothing))
        self._handlers = handlers

    def route(self, delivery: Incoming) -> Handler | None:
        """The handler that would take a delivery; None where there is none or its headers cannot be read."""
        if delivery.properties.problem:
            return None
        return self._handlers.find(self.alias, delivery.queue, _envelope(delivery).routing_key)

    # The road: process, settle, admit, attempt, run

    def process(self, delivery: Incoming, ack: Callable[[], object]) -> Settlement:
        """Dedupe a delivery, run its handler and record how it ended.

        Args:
            delivery: what the broker delivered.
            ack: acknowledges it; called on the way for a handler with `atomic=False`, never twice.

        Returns what to do with the delivery now. Raises DatabaseUnavailable: hold it, and process it again.
        """
        handler = self.route(delivery)
        if handler is None:
            return self._refuse(delivery)
        work = _Work(_envelope(delivery), delivery.queue, handler, delivery.redelivered, ack)
        with self.outages.watch(handler.database):
            return self._settle(work)

    def _settle(self, work: _Work) -> Settlement:
        """Look at what is recorded, then act; look again whenever someone else was faster."""
        for _ in range(unrun.LOOKS):
            try:
                place = self._admit(work)
                if place is not None:
                    self._attempt(work, place)
                return DONE if work.acked else ACK
            except AlreadyRecorded:
                work.redelivered = True
            except SetAside:
                break
            except (OperationalError, InterfaceError) as error:
                if is_lock_wait(error) or is_conflict(error):
                    break
                self.outages.raise_if_away(error, work.database)
                if not is_lost(error, work.database):
                    raise
                close_old()
                work.redelivered = True  # nobody knows what was committed
        return ASIDE

    def _admit(self, work: _Work) -> Place | None:
        """The place to record it in, if it is to run; None when the inbox answers for it already."""
        # Where inserting first decides who runs, a first delivery needs no look.
        if not work.redelivered and work.envelope.row_key is None and _inserts_first(work.database):
            return inbox.fresh(self.alias, work.queue, work.envelope)
        row = inbox.find(work.database, self.alias, work.queue, work.envelope, redelivered=work.redelivered)
        if row is None and work.redelivered and work.envelope.key is None and work.handler.atomic:
            alike = inbox.claimed_alike(work.database, self.alias, work.queue, work.envelope)
            row = next((one for one in alike if self.claims.is_waiting(one.lease_token)), None)
            if alike and row is None:
                raise SetAside  # perhaps its own last run, whose crash is about to be recorded
        if row is None:
            return inbox.fresh(self.alias, work.queue, work.envelope)
        if self.claims.is_waiting(row.lease_token):
            if not row.renewed(self.settings.lease):
                raise AlreadyRecorded
            return inbox.existing(row)
        return self._admit_recorded(work, row)

    def _admit_recorded(self, work: _Work, row: ProcessedMessage) -> Place | None:
        verdict = inbox.gate(row, work.envelope)
        if verdict is Verdict.RUN:
            return inbox.existing(row)
        if verdict is Verdict.REUSED:
            unrun.record_reused(work.database, row, work.envelope, worker=self.worker, settings=self.settings)
        elif verdict is Verdict.COUNTED:
            unrun.record_counted(
                work.database, row, work.envelope, work.handler, worker=self.worker, settings=self.settings
            )
        elif verdict is Verdict.CRASHED:
            if not self.outages.leases_tell(work.database, self.settings.lease):
                raise SetAside
            unrun.record_abandoned(work.database, row, work.handler, self.settings)
        return None

    def _attempt(self, work: _Work, place: Place) -> None:
        """Run the handler once, or a few times where only a conflict was in the way; record how it ended."""
        if _near_limit(work.envelope, self.settings.queue(work.queue)):
            failures.send_round(place, self.worker, work.database)
            return
        if (work.redelivered or not work.handler.atomic) and place.token is None:
            place.claim(work.database, self.worker, self.settings.lease)
            kill_point("processor.claimed")
        started = time.time()
        # In the ledger until the attempt is recorded: a process that dies before has an attempt to be counted.
        with (
            self.claims.held(place.token, work.database),
            self._running(self._entry(work, place, started)) as work.lift,
        ):
            if not work.handler.atomic:
                work.ack()
                work.acked = True
            for rerun in range(RERUNS + 1):
                try:
                    self._run(work, place, started, last_resort=rerun > 0)
                    break
                except (AlreadyRecorded, SetAside, DatabaseUnavailable):
                    raise
                except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
                    kill_point("processor.rolled_back")
                    self.outages.raise_if_away(error, work.database)
                    if rerun == RERUNS or not _worth_rerunning(error, place, work.database):
                        self._record(place, Failure(error, self.worker, work.handler, started), work)
                        break
                    close_old()

    def _run(self, work: _Work, place: Place, started: float, *, last_resort: bool) -> None:
        """The handler and its record; for an atomic handler both in one transaction, proven to be committed."""
        message = ReceivedMessage(
            work.envelope, queue=work.queue, attempt=place.row.attempts + 1, redelivered=work.redelivered
        )
        if work.handler.atomic:
            self._run_atomic(work, place, message, last_resort=last_resort)
        else:
            self._call(work.handler, message, place)
            kill_point("processor.handled")
            self._finish_claimed(work, place)
        kill_point("processor.committed")
        self._processed([place.row], started)

    def _run_atomic(self, work: _Work, place: Place, message: ReceivedMessage, *, last_resort: bool) -> None:
        # On SQLite a reader that becomes a writer fails if others wrote meanwhile, while one that begins as a writer
        # locks everybody out: so the first run begins as a reader, and a rerun as a writer.
        mode = "IMMEDIATE" if last_resort else "DEFERRED"
        first = _inserts_first(work.database)
        with place.tentative(), proven_commit(work.database, message, mode=mode):
            if first:
                self._write_processed(place, work)
            self._call(work.handler, message, place)
            kill_point("processor.handled")
            refuse_doomed(work.database, place.row if first else None)
            if not first:
                self._write_processed(place, work)

    def _finish_claimed(self, work: _Work, place: Place) -> None:
        """Record the end of a handler without a transaction: its work is done and must not run again, so this waits."""

        def write() -> None:
            with transaction.atomic(using=work.database):
                self._write_processed(place, work)

        self._insist(work, write)

    def _insist(self, work: _Work, write: Callable[[], object]) -> None:
        """Commit what nothing but this thread knows, however long the database or a lock is in the way."""
        work.lift()
        waits = False
        while True:
            close_old()  # the connection may have been idle for hours, or left behind unfit by the handler
            try:
                with self.outages.watch(work.database):
                    write()
                break
            except (DatabaseUnavailable, SetAside, OperationalError, InterfaceError, InternalError) as error:
                if is_lost(error, work.database):
                    reconnect(work.database)
                if not waits:
                    logger.warning("%s has run and waits to be recorded: %s", _name(work), one_line(error))
                waits = True
            time.sleep(1)
        if waits:
            logger.warning("%s is recorded now.", _name(work))

    def _write_processed(self, place: Place, work: _Work) -> None:
        place.write(
            work.database,
            state=State.PROCESSED,
            processed_at=Now(),
            attempts=place.row.attempts + 1,
            handler=work.handler.name[:255],
            worker=self.worker,
            error="",
            retry_at=None,
            lease_token=None,
            leased_until=None,
        )

    def _record(self, place: Place, failure: Failure, work: _Work) -> None:
        """Record a failure. What was acknowledged already cannot be held, so it waits for the database here."""
        work.lift()

        def write() -> None:
            failures.record(place, failure, work.database, self.settings)

        if work.acked:
            self._insist(work, write)
        else:
            self.outages.steadily(work.database, write)
        kill_point("processor.recorded")

    # Batches

    def process_batch(self, handler: Handler, deliveries: Sequence[Incoming]) -> list[Settlement]:
        """Run a batch handler on deliveries in one transaction; singly where anything is in the way.

        Returns a settlement for each. Raises DatabaseUnavailable.
        """
        works = [_Work(_envelope(one), one.queue, handler, one.redelivered, _nothing) for one in deliveries]
        places = [inbox.fresh(self.alias, work.queue, work.envelope) for work in works]
        distinct = len({place.row.key for place in places}) == len(places)
        if distinct and all(work.envelope.row_key is None and not work.redelivered for work in works):
            with self.outages.watch(handler.database):
                if self._run_batch(handler, works, places):
                    return [ACK] * len(works)
        return [self.process(delivery, _nothing) for delivery in deliveries]

    def _run_batch(self, handler: Handler, works: list[_Work], places: list[Place]) -> bool:
        """Whether the whole batch was processed; if not, nothing happened."""
        database, started = handler.database, time.time()
        first = _inserts_first(database)
        rows = [place.row for place in places]
        messages = [ReceivedMessage(work.envelope, queue=work.queue) for work in works]
        for row in rows:
            row.state, row.attempts, row.processed_at = State.PROCESSED, 1, Now()
            row.handler, row.worker = handler.name[:255], self.worker
        try:
            with (
                self._running(self._entry(works[0], places[0], started, batch=len(works))),
                proven_commit(database, f"a batch of {len(works)}", mode="DEFERRED"),
            ):
                if first:
                    _insert_all(rows, database)
                call(handler, messages, Running(None, database, True, uuid.uuid4()))
                kill_point("processor.handled")
                refuse_doomed(database, rows[0] if first else None)
                if not first:
                    _insert_all(rows, database)
        except BaseException as error:  # noqa: BLE001  whatever it was, each message shows it alone
            self.outages.raise_if_away(error, database)
            return False
        kill_point("processor.committed")
        self._processed(rows, started)
        return True

    # What is recorded without running anything

    def record_dead(self, delivery: Incoming) -> Settlement:
        """Record a delivery from `<queue>.dead` as failed, with the broker's reason. Raises DatabaseUnavailable."""
        queue = delivery.queue.removesuffix(".dead")
        envelope, reason = unrun.revive(delivery, queue)
        handler = self._handlers.find(self.alias, queue, envelope.routing_key)
        database = handler.database if handler else self._database()
        return self._record_unrun(database, queue, envelope, DeadLettered(reason), redelivered=True)

    def record_crash(self, entry: Entry, error: MessagingError | None) -> None:
        """Record that a process died while it ran `entry`, of `error`; of something else's if None.

        Raises DatabaseUnavailable.
        """
        if entry.batch > 1:
            return  # nobody knows whose fault it was: redelivered, each runs alone
        if error is None:
            self.outages.steadily(entry.database, lambda: unrun.record_spared(entry, self.worker))
        else:
            self.outages.steadily(entry.database, lambda: failures.record_crash(entry, error, self.worker))

    def renew_claims(self) -> None:
        """Extend the leases of what this process runs. Call it every third of the lease. Raises DatabaseUnavailable."""
        self.claims.renew()

    def sweep(self) -> int:
        """Count the crashes of workers whose claims ran out, and send their messages round again.

        Returns how many were recorded. Raises DatabaseUnavailable.
        """
        count = 0
        for database in {handler.database for handler in self._handlers.all(self.alias)}:
            with self.outages.watch(database):
                abandoned = self._abandoned(database)
                if self.outages.leases_tell(database, self.settings.lease):
                    count += self._end_claims(database, abandoned)
        return count

    def _abandoned(self, database: str) -> list[ProcessedMessage]:
        rows = ProcessedMessage.objects.using(database).abandoned(self.alias)
        skips = connections[database].features.has_select_for_update_skip_locked
        with transaction.atomic(using=database) if skips else nullcontext():
            if skips:  # a locked one is being run, or recorded, right now
                rows = rows.select_for_update(skip_locked=True)
            anonymous = rows.filter(message_id="", round=1)[:1000]
            found = [row for row in anonymous if not inbox.comes_again(row, self._handler_of(row))]
            return found + list(rows.exclude(message_id="", round=1)[:100])

    def _handler_of(self, row: ProcessedMessage) -> Handler | None:
        return self._handlers.find(self.alias, row.queue, storable(row.routing_key))

    def _end_claims(self, database: str, abandoned: Sequence[ProcessedMessage]) -> int:
        """Record each; one that cannot be recorded, such as a damaged row, does not stop the others."""
        count, trouble = 0, None
        for row in abandoned:
            try:
                handler = self._handlers.find(self.alias, row.queue, row.envelope().routing_key)
                count += unrun.record_abandoned(database, row, handler, self.settings)
            except SetAside:
                continue
            except Exception as error:
                if is_database_error(error):
                    raise
                trouble = error
        if trouble is not None:
            raise trouble
        return count

    def _refuse(self, delivery: Incoming) -> Settlement:
        """Record what no handler can take as failed."""
        envelope = _envelope(delivery)
        error: MessagingError
        if delivery.properties.problem:
            error = PayloadError(f"Its properties cannot be read: {delivery.properties.problem}")
        else:
            known = [handler for handler in self._handlers.all(self.alias) if handler.queue == delivery.queue]
            patterns = ", ".join(sorted({key for handler in known for key in handler.routing_keys})) or "none"
            error = HandlerNotFound(
                f"No handler of the queue {delivery.queue!r} takes the routing key "
                f"{storable(envelope.routing_key)!r} (they take: {patterns}). Add a handler, then requeue the message."
            )
        return self._record_unrun(self._database(), delivery.queue, envelope, error, redelivered=delivery.redelivered)

    def _record_unrun(
        self, database: str, queue: str, envelope: Envelope, error: MessagingError, *, redelivered: bool
    ) -> Settlement:
        def record() -> bool:
            return unrun.record_unrun(
                database,
                queue,
                envelope,
                error,
                worker=self.worker,
                settings=self.settings,
                redelivered=redelivered,
            )

        try:
            return ACK if self.outages.steadily(database, record) else ASIDE
        except SetAside:
            return ASIDE

    # Small parts

    def _call(self, handler: Handler, message: ReceivedMessage, place: Place) -> None:
        context = Running(message, handler.database, handler.atomic, uuid.uuid5(place.row.key, handler.name))
        call(handler, [message] if handler.batch is not None else message, context)

    def _database(self) -> str:
        return self.settings.databases[0] if self.settings.databases else "default"

    def _entry(self, work: _Work, place: Place, started: float, *, batch: int = 1) -> Entry:
        return Entry(
            alias=self.alias,
            queue=work.queue,
            key=str(place.row.key),
            digest=str(work.envelope.digest),
            round=place.row.round,
            message_id=storable(work.envelope.message_id, 255),
            database=work.database,
            handler=work.handler.name,
            started=started,
            timeout=work.handler.timeout,
            token=str(place.token or ""),
            batch=batch,
        )

    def _processed(self, rows: list[ProcessedMessage], started: float) -> None:
        for row in rows:
            signals.message_processed.send_robust(ProcessedMessage, row=row, duration=time.time() - started)


def _envelope(delivery: Incoming) -> Envelope:
    return Envelope.received(
        delivery.exchange, delivery.routing_key, delivery.properties, delivery.body, delivery.queue
    )


def _insert_all(rows: list[ProcessedMessage], database: str) -> None:
    with brief_locks(connections[database], TWIN_WAIT):
        for batch in batches(rows, lambda row: len(row.body)):
            ProcessedMessage.objects.using(database).bulk_create(batch)


def _inserts_first(database: str) -> bool:
    """Whether a record inserted before the handler runs blocks only its twin, not every other writer (SQLite)."""
    return connections[database].vendor != "sqlite"


def _worth_rerunning(error: BaseException, place: Place, database: str) -> bool:
    """After a conflict, a connection that was lost while the database is up, or a value that can be written escaped."""
    if is_lost(error, database):
        reconnect(database)
        return True
    lost = is_database_error(error) and not connections[database].is_usable()
    return lost or is_conflict(error) or place.escape(error)


def _near_limit(envelope: Envelope, queue: conf.QueueSettings) -> bool:
    """Whether the broker is about to give a message up for being delivered so often: the inbox takes it then."""
    count = envelope.properties.headers.get("x-delivery-count")
    limit = queue.arguments.get("x-delivery-limit", DEFAULT_DELIVERY_LIMIT)
    if not isinstance(count, int) or not isinstance(limit, int) or limit < 0:
        return False
    return count >= max(1, limit - 4)


def _name(work: _Work) -> str:
    return one_line(f"Message {work.envelope.message_id or 'without id'} of the queue {work.queue}")


def _nothing() -> None:
    """For a delivery that the caller acknowledges."""
