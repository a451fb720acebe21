"""Processing one delivery: dedupe, run the handler, record; all in one transaction, acknowledged after its commit."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Literal, Protocol

from asgiref.sync import async_to_sync
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now

from messaging import conf, failures, inbox, signals
from messaging.database import brief_locks, is_conflict, is_database_error, is_doomed, is_lock_wait, is_up, transaction_mode
from messaging.exceptions import (
    CommitNotProven,
    DatabaseUnavailable,
    DeadLettered,
    HandlerNotFound,
    IdReused,
    MessagingError,
    PayloadError,
    ProcessDied,
)
from messaging.failures import Failure
from messaging.handlers import Handler, Registry, registry
from messaging.inbox import TWIN_WAIT, AlreadyRecorded, Place, SetAside, Verdict
from messaging.killpoints import kill_point
from messaging.ledger import Entry
from messaging.message import Envelope, ReceivedMessage, Running, running, storable
from messaging.models import ProcessedMessage
from messaging.wire import Properties

logger = logging.getLogger("messaging.processor")

State = ProcessedMessage.State
RERUNS = 3  # immediate ones, after a deadlock or a serialization failure
LOOKS = 10  # at a row that others keep changing
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


@dataclass
class _Proof:
    """A commit hook registered before the handler runs: only that it ran proves the commit.

    A handler can leave its transaction normally and yet rolled back: by `set_rollback(True)`, by closing the
    connection, or by swallowing a database error.
    """

    given: bool = False

    def __call__(self) -> None:
        self.given = True


@dataclass
class _Work:
    """One delivery on its way through the processor."""

    envelope: Envelope
    queue: str
    handler: Handler
    redelivered: bool
    ack: Callable[[], object]
    acked: bool = field(default=False)

    @property
    def database(self) -> str:
        return self.handler.database


class Processor:
    """Processes the deliveries of one alias in one worker process; safe to call from several threads.

    Args:
        alias: alias of `MESSAGING`.
        worker: the name under which claims and attempts are recorded.
        running: enters an attempt into the process's ledger while it runs.
        handlers: the registry to find handlers in.
    """

    def __init__(
        self,
        alias: str,
        worker: str,
        *,
        running: Callable[[Entry], AbstractContextManager[None]] | None = None,
        handlers: Registry = registry,
    ) -> None:
        self.alias = alias
        self.worker = worker
        self.settings = conf.get(alias)
        self._running = running or (lambda entry: nullcontext())
        self._handlers = handlers
        self._claims: dict[uuid.UUID, str] = {}  # token to database, of claims that this process renews
        self._idle: set[uuid.UUID] = set()  # tokens of claims that run nothing now: the database went away
        self._lock = threading.Lock()
        self._up_since: dict[str, float] = {}

    # The road

    def route(self, delivery: Incoming) -> Handler | None:
        """The handler that would take a delivery; None where there is none or its headers cannot be read."""
        if delivery.properties.problem:
            return None
        return self._handlers.find(self.alias, delivery.queue, self._envelope(delivery).routing_key)

    def process(self, delivery: Incoming, ack: Callable[[], object]) -> Settlement:
        """Dedupe a delivery, run its handler and record how it ended. Raises DatabaseUnavailable: hold it."""
        handler = self.route(delivery)
        envelope = self._envelope(delivery)
        if handler is None:
            error = self._unhandled(delivery, envelope)
            return self._record_unrun(delivery.queue, envelope, error, self._database(), delivery.redelivered)
        work = _Work(envelope, delivery.queue, handler, delivery.redelivered, ack)
        with self._database_trouble(handler.database):
            return self._settle(work)

    def process_batch(self, handler: Handler, deliveries: list[Incoming]) -> list[Settlement]:
        """Run a batch handler on fresh deliveries in one transaction; singly where anything is in the way."""
        works = [_Work(self._envelope(one), one.queue, handler, one.redelivered, _nothing) for one in deliveries]
        places = [inbox.fresh(self.alias, work.queue, work.envelope) for work in works]
        keys = {place.row.key for place in places}
        plain = len(keys) == len(works) and all(work.envelope.round == 1 and not work.redelivered for work in works)
        if plain:
            with self._database_trouble(handler.database):
                if self._run_batch(handler, works, places):
                    return [ACK] * len(works)
        return [self.process(delivery, _nothing) for delivery in deliveries]

    def record_dead(self, delivery: Incoming) -> Settlement:
        """Record a delivery from `<queue>.dead` as failed, with the broker's reason."""
        queue = delivery.queue.removesuffix(".dead")
        envelope, reason = _from_dead_letter(self._envelope(delivery), queue)
        handler = self._handlers.find(self.alias, queue, envelope.routing_key)
        database = handler.database if handler else self._database()
        return self._record_unrun(queue, envelope, DeadLettered(reason), database, delivery.redelivered, dead=True)

    def record_crash(self, entry: Entry, error: MessagingError) -> None:
        """Record that a process died while it ran `entry`. Raises DatabaseUnavailable."""
        if entry.batch > 1:
            return  # nobody knows whose fault it was: redelivered, each runs alone
        with self._database_trouble(entry.database):
            failures.record_crash(entry, error, self.worker)

    # Claims

    def renew_claims(self) -> None:
        """Extend the leases of what this process runs. Call it every third of the lease. Raises DatabaseUnavailable."""
        with self._lock:
            claims = dict(self._claims)
        for database in set(claims.values()):
            tokens = [token for token, where in claims.items() if where == database]
            with self._database_trouble(database):
                ProcessedMessage.objects.using(database).filter(lease_token__in=tokens, state=State.PROCESSING).update(
                    leased_until=Now() + timedelta(seconds=self.settings.lease)
                )

    def sweep(self) -> int:
        """Count the crashes of workers whose claims ran out, and send their messages round again.

        After an outage every lease looks expired, so a database is swept only once it has been up for a whole lease.
        Returns how many were recorded. Raises DatabaseUnavailable.
        """
        count = 0
        for database in {handler.database for handler in self._handlers.all(self.alias)}:
            with self._database_trouble(database):
                abandoned = list(ProcessedMessage.objects.using(database).abandoned(self.alias)[:100])
                if self._leases_tell(database):
                    count += sum(self._crashed(row, database) for row in abandoned)
        return count

    # One delivery

    def _settle(self, work: _Work) -> Settlement:
        """Look at what is recorded, then act; look again whenever someone else was faster."""
        for _ in range(LOOKS):
            place = self._admit(work)
            if isinstance(place, Settlement):
                return place
            try:
                self._attempt(work, place)
                return DONE if work.acked else ACK
            except AlreadyRecorded:
                work.redelivered = True
                continue
            except SetAside:
                break
            except OperationalError as error:
                if not (is_lock_wait(error) or is_conflict(error)):
                    raise
                break
        return Settlement("set_aside", after=TWIN_WAIT)

    def _admit(self, work: _Work) -> Place | Settlement:
        """The place to record it in, if it is to run; else how to settle it."""
        # Where inserting first decides who runs, a first delivery needs no look.
        if not work.redelivered and work.envelope.row_key is None and _inserts_first(work.database):
            return inbox.fresh(self.alias, work.queue, work.envelope)
        row = inbox.find(work.database, self.alias, work.queue, work.envelope, redelivered=work.redelivered)
        if row is None:
            return inbox.fresh(self.alias, work.queue, work.envelope)
        if row.lease_token in self._idle:
            return inbox.existing(row)
        verdict = inbox.gate(row, work.envelope)
        if verdict is Verdict.RUN:
            return inbox.existing(row)
        if verdict is Verdict.REUSED:
            return self._record_reused(work.queue, work.envelope, row, work.database)
        if verdict is Verdict.COUNTED:
            return self._record_counted(work, row)
        if verdict is Verdict.CRASHED:
            if not self._leases_tell(work.database):
                return Settlement("set_aside", after=self.settings.lease / 3)
            self._crashed(row, work.database)
        return ACK

    def _attempt(self, work: _Work, place: Place) -> None:
        """Run the handler once, or a few times where only a conflict was in the way; record how it ended."""
        handler = work.handler
        if _near_limit(work.envelope, self.settings.queue(work.queue)):
            failures.send_round(place, self.worker, work.database)
            return
        if (work.redelivered or not handler.atomic) and place.token is None:
            place.claim(work.database, self.worker, self.settings.lease)
            kill_point("processor.claimed")
        with self._claimed(place, work.database):
            if not handler.atomic:
                work.ack()
                work.acked = True
            started = time.time()
            for rerun in range(RERUNS + 1):
                try:
                    self._run(work, place, started, last_resort=rerun > 0)
                    return
                except (AlreadyRecorded, SetAside, DatabaseUnavailable):
                    raise
                except BaseException as error:
                    kill_point("processor.rolled_back")
                    self._raise_if_away(error, work.database)
                    if rerun < RERUNS and self._worth_rerunning(error, place, work.database):
                        continue
                    failure = Failure(error, self.worker, handler, started)
                    self._record(place, failure, work)
                    return

    def _worth_rerunning(self, error: BaseException, place: Place, database: str) -> bool:
        """A conflict, a connection that was lost while the database is up, or a value that can be written escaped."""
        lost = is_database_error(error) and not connections[database].is_usable()
        return lost or is_conflict(error) or place.escape(error)

    def _record(self, place: Place, failure: Failure, work: _Work) -> None:
        """Record a failure; what was acknowledged already cannot be held, so it waits for the database here."""
        while True:
            try:
                with self._database_trouble(work.database):
                    failures.record(place, failure, work.database, self.settings)
                    kill_point("processor.recorded")
                    return
            except DatabaseUnavailable:
                if not work.acked:
                    raise
                time.sleep(1)

    def _run(self, work: _Work, place: Place, started: float, *, last_resort: bool) -> None:
        """The handler and its record in one transaction, proven to be committed."""
        if work.handler.atomic:
            self._run_atomic(work, place, started, last_resort=last_resort)
        else:
            self._run_claimed(work, place, started)

    def _run_atomic(self, work: _Work, place: Place, started: float, *, last_resort: bool) -> None:
        handler, database = work.handler, work.database
        proof = _Proof()
        message = self._message(work, place)
        first = _inserts_first(database)
        # On SQLite a reader that becomes a writer fails if others wrote meanwhile, while one that begins as a
        # writer locks everybody out: so the first run begins as a reader, and a rerun as a writer.
        mode = "IMMEDIATE" if last_resort else "DEFERRED"
        with self._running(self._entry(work, place, started)), place.tentative():
            try:
                with transaction_mode(connections[database], mode), transaction.atomic(using=database, durable=True):
                    transaction.on_commit(proof, using=database)
                    if first:
                        self._write_processed(place, database, handler)
                    self._call(handler, message, place, atomic=True)
                    kill_point("processor.handled")
                    _refuse_doomed(database)
                    if not first:
                        self._write_processed(place, database, handler)
            except BaseException as error:
                if not proof.given:
                    raise
                logger.error("%r is processed, but a commit hook failed: %s", message, error, exc_info=error)
            if not proof.given:
                raise CommitNotProven(_UNPROVEN)
        kill_point("processor.committed")
        self._processed(place.row, started)

    def _run_claimed(self, work: _Work, place: Place, started: float) -> None:
        """A handler without a transaction; its claim is durable, and only its end is recorded here."""
        with self._running(self._entry(work, place, started)):
            self._call(work.handler, self._message(work, place), place, atomic=False)
            kill_point("processor.handled")
            while True:
                try:
                    with self._database_trouble(work.database), transaction.atomic(using=work.database):
                        self._write_processed(place, work.database, work.handler)
                    break
                except DatabaseUnavailable:
                    time.sleep(1)  # the work is done: it must not run again
        kill_point("processor.committed")
        self._processed(place.row, started)

    def _write_processed(self, place: Place, database: str, handler: Handler) -> None:
        place.write(
            database,
            state=State.PROCESSED,
            processed_at=Now(),
            attempts=place.row.attempts + 1,
            handler=handler.name[:255],
            worker=self.worker,
            error="",
            retry_at=None,
            lease_token=None,
            leased_until=None,
        )

    def _run_batch(self, handler: Handler, works: list[_Work], places: list[Place]) -> bool:
        """Whether the whole batch was processed; if not, nothing happened and each is to run alone."""
        database, proof, started = handler.database, _Proof(), time.time()
        rows = [place.row for place in places]
        messages = [self._message(work, place) for work, place in zip(works, places, strict=True)]
        entry = self._entry(works[0], places[0], started, batch=len(works))
        for row in rows:
            row.state, row.attempts, row.processed_at = State.PROCESSED, 1, Now()
            row.handler, row.worker = handler.name[:255], self.worker
        try:
            with self._running(entry), transaction.atomic(using=database, durable=True):
                transaction.on_commit(proof, using=database)
                with brief_locks(connections[database], TWIN_WAIT):
                    ProcessedMessage.objects.using(database).bulk_create(rows)
                with _as_running(Running(None, database, True, uuid.uuid4())):
                    _call_function(handler, messages)
                kill_point("processor.handled")
                _refuse_doomed(database)
        except BaseException as error:
            if not proof.given:
                self._raise_if_away(error, database)
                return False
            logger.error("A batch is processed, but a commit hook of its handler failed: %s", error, exc_info=error)
        if proof.given:
            kill_point("processor.committed")
            for row in rows:
                self._processed(row, started)
        return proof.given

    def _call(self, handler: Handler, message: ReceivedMessage, place: Place, *, atomic: bool) -> None:
        cause = uuid.uuid5(place.row.key, handler.name)
        with _as_running(Running(message, handler.database, atomic, cause)):
            _call_function(handler, [message] if handler.batch is not None else message)

    # What is recorded without running anything

    def _record_unrun(
        self,
        queue: str,
        envelope: Envelope,
        error: MessagingError,
        database: str,
        redelivered: bool,
        *,
        dead: bool = False,
    ) -> Settlement:
        """Record a message that no handler can take, or that the broker gave up, as failed."""
        with self._database_trouble(database):
            for _ in range(LOOKS):
                row = inbox.find(database, self.alias, queue, envelope, redelivered=redelivered or dead)
                if row is None:
                    place = inbox.fresh(self.alias, queue, envelope)
                else:
                    verdict = inbox.gate(row, envelope)
                    if verdict is Verdict.REUSED:
                        return self._record_reused(queue, envelope, row, database)
                    if verdict is Verdict.DONE:
                        return ACK
                    if row.wire is None:
                        inbox.fill(row, envelope)
                        row.save(using=database)
                    place = inbox.existing(row)
                try:
                    failures.record(place, Failure(error, self.worker), database, self.settings)
                    return ACK
                except AlreadyRecorded:
                    redelivered = True
        return Settlement("set_aside", after=TWIN_WAIT)

    def _record_reused(self, queue: str, envelope: Envelope, row: ProcessedMessage, database: str) -> Settlement:
        """Keep and flag a message whose id another one took."""
        place = inbox.fresh(self.alias, queue, envelope, key=envelope.reused_key)
        error = IdReused(
            f"The message id was used before, by another message (row {row.pk}) with other content. "
            "Requeue it to process it all the same, or discard it."
        )
        try:
            failures.record(place, Failure(error, self.worker), database, self.settings)
        except AlreadyRecorded:
            pass
        return ACK

    def _record_counted(self, work: _Work, row: ProcessedMessage) -> Settlement:
        """A crash that was counted without knowing the content: now it is known, so it can go round again."""
        inbox.fill(row, work.envelope)
        row.save(using=work.database)
        last = row.attempt_set.order_by("-id").first()
        error = ProcessDied(last.exception_message if last else "The process that ran it died.")
        failure = Failure(error, self.worker, work.handler, time.time(), crashed=True, counted=True)
        try:
            failures.record(inbox.existing(row), failure, work.database, self.settings)
        except AlreadyRecorded:
            pass
        return ACK

    def _crashed(self, row: ProcessedMessage, database: str) -> bool:
        handler = self._handlers.find(self.alias, row.queue, row.envelope().routing_key)
        error = ProcessDied(f"The worker {row.worker} stopped renewing its claim: it died, or lost the database.")
        failure = Failure(error, row.worker, handler, time.time(), crashed=True)
        try:
            failures.record(inbox.existing(row), failure, database, self.settings)
            return True
        except AlreadyRecorded:
            return False

    # Small parts

    @contextmanager
    def _claimed(self, place: Place, database: str) -> Iterator[None]:
        """Have this place's claim renewed while it runs; keep it for the next try when the database goes away."""
        token = place.token
        if token is None:
            yield
            return
        with self._lock:
            self._claims[token] = database
            self._idle.discard(token)
        try:
            yield
        except (DatabaseUnavailable, SetAside):
            with self._lock:
                self._idle.add(token)
            raise
        except BaseException:
            self._drop(token)
            raise
        else:
            self._drop(token)

    def _drop(self, token: uuid.UUID) -> None:
        with self._lock:
            self._claims.pop(token, None)
            self._idle.discard(token)

    @contextmanager
    def _database_trouble(self, database: str) -> Iterator[None]:
        """Turn the errors of a database that is away into DatabaseUnavailable."""
        try:
            yield
        except Exception as error:
            self._raise_if_away(error, database)
            raise
        self._up_since.setdefault(database, time.monotonic())

    def _raise_if_away(self, error: BaseException, database: str) -> None:
        if is_database_error(error) and not is_up(database):
            self._up_since.pop(database, None)
            raise DatabaseUnavailable(f'The database "{database}" does not answer.') from error

    def _leases_tell(self, database: str) -> bool:
        since = self._up_since.get(database)
        return since is not None and time.monotonic() - since >= self.settings.lease

    def _envelope(self, delivery: Incoming) -> Envelope:
        return Envelope.received(delivery.exchange, delivery.routing_key, delivery.properties, delivery.body)

    def _database(self) -> str:
        return self.settings.databases[0] if self.settings.databases else "default"

    def _message(self, work: _Work, place: Place) -> ReceivedMessage:
        return ReceivedMessage(
            work.envelope, queue=work.queue, attempt=place.row.attempts + 1, redelivered=work.redelivered
        )

    def _entry(self, work: _Work, place: Place, started: float, *, batch: int = 1) -> Entry:
        return Entry(
            alias=self.alias,
            queue=work.queue,
            key=str(place.row.key),
            digest=str(work.envelope.digest),
            round=work.envelope.round,
            message_id=storable(work.envelope.message_id, 255),
            database=work.database,
            handler=work.handler.name,
            started=started,
            timeout=work.handler.timeout,
            token=str(place.token or ""),
            batch=batch,
        )

    def _unhandled(self, delivery: Incoming, envelope: Envelope) -> MessagingError:
        if delivery.properties.problem:
            return PayloadError(f"Its properties cannot be read: {delivery.properties.problem}")
        known = [handler for handler in self._handlers.all(self.alias) if handler.queue == delivery.queue]
        patterns = ", ".join(sorted({key for handler in known for key in handler.routing_keys})) or "none"
        return HandlerNotFound(
            f"No handler of the queue {delivery.queue!r} takes the routing key {storable(envelope.routing_key)!r} "
            f"(they take: {patterns}). Add a handler, then requeue the message."
        )

    def _processed(self, row: ProcessedMessage, started: float) -> None:
        signals.message_processed.send_robust(ProcessedMessage, row=row, duration=time.time() - started)


_UNPROVEN = (
    "The handler returned, but its transaction was rolled back: it called set_rollback(True), closed the database "
    "connection, or caught a database error without a savepoint of its own."
)


@contextmanager
def _as_running(context: Running) -> Iterator[None]:
    token = running.set(context)
    try:
        yield
    finally:
        running.reset(token)


def _call_function(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage]) -> None:
    if iscoroutinefunction(handler.function):
        async_to_sync(handler.function)(argument)
    else:
        handler.function(argument)


def _inserts_first(database: str) -> bool:
    """Whether a record inserted before the handler runs blocks only its twin, not every other writer (SQLite)."""
    return connections[database].vendor != "sqlite"


def _near_limit(envelope: Envelope, queue: conf.QueueSettings) -> bool:
    """Whether the broker is about to give a message up for being delivered so often: the inbox takes it then."""
    count = envelope.properties.headers.get("x-delivery-count")
    limit = queue.arguments.get("x-delivery-limit", DEFAULT_DELIVERY_LIMIT)
    if not isinstance(count, int) or not isinstance(limit, int) or limit < 0:
        return False
    return count >= max(1, limit - 4)


def _refuse_doomed(database: str) -> None:
    """Raise CommitNotProven where the transaction will be rolled back, whatever its commit says."""
    if is_doomed(connections[database]):
        raise CommitNotProven(_UNPROVEN)


def _nothing() -> None:
    """For a delivery that the caller acknowledges."""


def _from_dead_letter(envelope: Envelope, queue: str) -> tuple[Envelope, str]:
    """A dead letter as it was first published, and why the broker gave it up."""
    deaths = envelope.properties.headers.get("x-death")
    death = next(
        (one for one in deaths or () if isinstance(one, dict) and one.get("queue") == queue),
        {},
    ) if isinstance(deaths, list) else {}
    reason = death.get("reason") or envelope.properties.headers.get("x-first-death-reason") or "unknown"
    text = {
        "expired": "it expired in the queue",
        "maxlen": "the queue was full",
        "delivery_limit": "it was delivered too often",
        "rejected": "a consumer rejected it",
    }.get(str(reason), f"reason: {storable(str(reason), 100)}")
    if envelope.target or not death:
        return envelope, f"The broker gave it up: {text}."
    keys = death.get("routing-keys")
    restored = Envelope(
        exchange=str(death.get("exchange", envelope.exchange)),
        routing_key=str(keys[0]) if isinstance(keys, list) and keys else envelope.routing_key,
        properties=envelope.properties,
        body=envelope.body,
        round=envelope.round,
        row_key=envelope.row_key,
    )
    return restored, f"The broker gave it up: {text}."
