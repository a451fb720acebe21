"""Processing one delivery: dedupe, run the handler, record; all in one transaction, acknowledged after its commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

from django.db import InterfaceError, OperationalError

from messaging import conf, inbox, stopping, unrun
from messaging.attempting import Attempts
from messaging.batching import run_batch
from messaging.claims import Claim, Claims
from messaging.crashes import Crash, came_again, record_crash
from messaging.database import close_old, is_conflict, is_lock_wait, is_lost
from messaging.elsewhere import Elsewhere, Standing, database_of, weigh
from messaging.envelope import Envelope
from messaging.exceptions import DeadLettered, HandlerNotFound, MessagingError, PayloadError
from messaging.execution import call
from messaging.handlers import Handler, Registry, registry
from messaging.inbox import TWIN_WAIT, AlreadyRecorded, Held, Place, SetAside, Verdict
from messaging.ledger import Entry
from messaging.models import ProcessedMessage
from messaging.outages import Outages
from messaging.station import Call, Incoming, RunningNow, Station, Work, inserts_first
from messaging.sweeping import sweep
from messaging.texts import storable


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do with a delivery.

    Attributes:
        action: "ack" it now; "done": it was acknowledged on the way; "set_aside": nothing was spent, process it again.
        after: seconds until then.
        held: whether it was set aside because an open transaction has its record.
    """

    action: Literal["ack", "done", "set_aside"]
    after: float = 0.0
    held: bool = False


READ_AHEAD = 64 * 1024  # bytes of a body; a larger one is not held twice before its turn comes

ACK = Settlement("ack")
DONE = Settlement("done")
ASIDE = Settlement("set_aside", after=TWIN_WAIT)
HELD = Settlement("set_aside", after=TWIN_WAIT, held=True)


class Processor:
    """Processes the deliveries of one alias in one worker process; safe to call from several threads.

    Args:
        alias: alias of `MESSAGING`.
        worker: the name under which claims and attempts are recorded.
        running: enters an attempt into the process's ledger while it runs; yields what lifts its time limit.
        handlers: the registry to find handlers in.
        call: calls a handler.
        databases: those that may know a message; None for the settings' and the handlers'.
        settings: the alias's, unless given.
    """

    def __init__(
        self,
        alias: str,
        worker: str,
        *,
        running: RunningNow | None = None,
        handlers: Registry = registry,
        call: Call = call,
        databases: Sequence[str] | None = None,
        settings: conf.AliasSettings | None = None,
    ) -> None:
        self.alias = alias
        self.settings = settings or conf.get(alias)
        self.outages = Outages()
        claims = Claims(self.settings.lease, self.outages)
        running = running or (lambda _entry: nullcontext(_nothing))
        elsewhere = Elsewhere(alias, handlers, self.outages, databases)
        self._station = Station(alias, worker, self.settings, self.outages, claims, handlers, elsewhere, running, call)
        self._attempts = Attempts(self._station)

    def route(self, delivery: Incoming) -> Handler | None:
        """The handler that would take a delivery; None where there is none or its headers cannot be read.

        Called on arrival, it has what is read of the message read there, before a worker waits for it.
        """
        if delivery.properties.problem:
            return None
        envelope = delivery.envelope
        handler = self._station.handlers.find(self.alias, delivery.queue, envelope.routing_key)
        if handler is not None and len(delivery.body) <= READ_AHEAD:
            envelope.read()
        return handler

    # The road: process, settle, admit, attempt

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
        work = Work(delivery.envelope, delivery.queue, handler, delivery.redelivered, ack)
        with self.outages.watch(handler.database):
            return self._settle(work)

    def process_batch(self, handler: Handler, deliveries: Sequence[Incoming]) -> list[Settlement]:
        """Run a batch handler on deliveries in one transaction; singly where anything is in the way.

        Returns a settlement for each. Raises DatabaseUnavailable.
        """
        works = [Work(one.envelope, one.queue, handler, one.redelivered, _nothing) for one in deliveries]
        if run_batch(self._station, handler, works):
            return [ACK] * len(works)
        return [self.process(delivery, _nothing) for delivery in deliveries]

    def _settle(self, work: Work) -> Settlement:
        """Look at what is recorded, then act; look again whenever someone else was faster."""
        for _ in range(unrun.LOOKS):
            try:
                place = self._admit(work)
                if place is not None:
                    self._attempts.make(work, place)
                return DONE if work.acked else ACK
            except AlreadyRecorded:
                if work.acked:  # whoever took its claim answers for it
                    return DONE
                work.redelivered = True
            except SetAside as aside:
                return _aside(aside)
            except (OperationalError, InterfaceError) as error:
                if is_lock_wait(error):
                    return HELD
                if is_conflict(error):
                    break
                self.outages.raise_if_away(error, work.database)
                if not is_lost(error, work.database):
                    raise
                close_old()
                work.redelivered = True  # nobody knows what was committed
        return ASIDE

    def _admit(self, work: Work) -> Place | None:
        """The place to record it in, if it is to run; None when the inbox answers for it already."""
        envelope = work.envelope
        others = self._station.elsewhere.find(work.database, work.queue, envelope, redelivered=work.redelivered)
        is_first = not work.redelivered and envelope.row_key is None
        # Where inserting first decides who runs, a first delivery needs no look.
        if is_first and not others and inserts_first(work.database):
            return inbox.fresh(self.alias, work.queue, envelope)
        standing = weigh(self._find(work), others, envelope)
        if standing.decides is None:
            return inbox.fresh(self.alias, work.queue, envelope)
        return self._admit_known(work, standing, standing.decides)

    def _admit_known(self, work: Work, standing: Standing, row: ProcessedMessage) -> Place | None:
        claims, work.left_over = self._station.claims, standing.left_over
        is_ours = claims.is_idle(row.lease_token) and row.digest == work.envelope.digest
        will_run = inbox.gate(row, work.envelope) is Verdict.RUN
        if (is_ours or will_run) and any(not claims.is_idle(one.lease_token) for one in standing.claimed):
            raise SetAside  # it is being run in another database
        if is_ours and claims.take(row.lease_token):
            with claims.held(row.lease_token, work.database):
                if not row.renewed(self.settings.lease):
                    raise AlreadyRecorded
            return inbox.existing(row)
        if not will_run:
            self._admit_recorded(work, standing, row)
            return None
        if row is standing.home:
            unrun.bring_content(row, work.envelope, work.database)
            return inbox.existing(row)
        return self._move(work, standing, row)

    def _move(self, work: Work, standing: Standing, row: ProcessedMessage) -> Place:
        """Where a message is recorded that waits in another database, and is to run in its handler's."""
        home, elsewhere = standing.home, self._station.elsewhere
        work.left_over = [*(one for one in standing.left_over if one is not home), row]
        with self._held(home):
            return elsewhere.move(home, row, work.queue, work.envelope)

    def _let_go(self, standing: Standing, row: ProcessedMessage) -> None:
        """Have no other row wait for a message that this one answers for."""
        home, rows = standing.home, standing.replaceable
        if home is None or home is row or not self._station.claims.is_idle(home.lease_token):
            home = None
        else:  # it was claimed to run here, and went on there meanwhile
            rows = [*(one for one in rows if one is not home), home]
        with self._held(home):
            self._station.elsewhere.retire(rows, database_of(row))

    def _held(self, row: ProcessedMessage | None) -> AbstractContextManager[None]:
        """Forget a claim of ours that runs nothing, if this is one, unless the change that ends it fails."""
        claims = self._station.claims
        if row is None or not claims.is_idle(row.lease_token):
            return nullcontext()
        return claims.held(row.lease_token, database_of(row))

    def _find(self, work: Work) -> ProcessedMessage | None:
        if not work.redelivered or work.envelope.key is not None:
            return inbox.find(work.database, self.alias, work.queue, work.envelope, redelivered=work.redelivered)
        databases = (work.database, *self._station.elsewhere.others(work.database))
        found = (self._find_alike(work, database) for database in databases)
        return next((row for row in found if row is not None), None)

    def _find_alike(self, work: Work, database: str) -> ProcessedMessage | None:
        """The row that a redelivered message without an id belongs to; None where nothing like it is recorded.

        It looks once: between two looks a claim can become a counted crash, which neither of them would see.
        """
        with self.outages.watch(database):
            alike = inbox.alike(database, self.alias, work.queue, work.envelope)
        idle = (row for row in alike if self._station.claims.is_idle(row.lease_token))
        ours = next((row for row in idle if not inbox.was_acknowledged(row)), None)
        return ours or inbox.adopted(alike, work.handler)

    def _admit_recorded(self, work: Work, standing: Standing, row: ProcessedMessage) -> None:
        """Record what a row says about a delivery that is not to run, where that row is."""
        database, worker, settings = database_of(row), self._station.worker, self.settings
        verdict = inbox.gate(row, work.envelope)
        with self.outages.watch(database):
            if verdict is not Verdict.REUSED:
                unrun.bring_content(row, work.envelope, database)
            if verdict is Verdict.REUSED:
                unrun.record_reused(database, row, work.envelope, worker=worker, settings=settings)
            elif verdict is Verdict.COUNTED:
                unrun.record_counted(database, row, work.envelope, work.handler, worker=worker, settings=settings)
            elif verdict is Verdict.CRASHED:
                if not self.outages.leases_tell(database, settings.lease):
                    raise SetAside
                if not unrun.end_abandoned(database, row, work.handler, settings, self.outages):
                    raise AlreadyRecorded
            elif work.envelope.key is None:
                raise AlreadyRecorded  # another copy of its content took that row since
        if verdict in (Verdict.DONE, Verdict.REUSED):  # the others make another round, which comes here again
            self._let_go(standing, row)

    # What is recorded without running anything

    def record_dead(self, delivery: Incoming) -> Settlement:
        """Record a delivery from `<queue>.dead` as failed, with the broker's reason. Raises DatabaseUnavailable."""
        queue = delivery.queue.removesuffix(".dead")
        envelope, reason = unrun.revive(delivery, queue)
        handler = self._station.handlers.find(self.alias, queue, envelope.routing_key)
        database = handler.database if handler else self._station.database
        return self._record_unrun(database, queue, envelope, DeadLettered(reason), redelivered=True, handler=handler)

    def record_crash(self, entry: Entry, error: MessagingError | None, since: float | None = None) -> bool:
        """Record that a process died while it ran `entry`, of `error`; of something else's if None.

        Args:
            entry: what it ran.
            error: why it died.
            since: CLOCK_MONOTONIC of when that began; None where nobody knows.

        Returns whether that is done: not while another run of the message keeps its row locked; ask again then.
        Raises DatabaseUnavailable.
        """
        worker = self._station.worker
        if entry.batch > 1:
            return True  # nobody knows whose fault it was: redelivered, each runs alone
        crash = Crash.of(entry, error, worker, since) if error is not None else None
        try:
            if crash is None:
                self.outages.steadily(entry.database, lambda: unrun.record_spared(entry, worker))
            elif not any(map(partial(self._came_again, crash), self._station.elsewhere.others(entry.database))):
                self.outages.steadily(entry.database, lambda: record_crash(crash))
        except SetAside:
            return False
        except OperationalError as trouble:
            if is_lock_wait(trouble) or is_conflict(trouble):
                return False
            raise
        return True

    def _came_again(self, crash: Crash, database: str) -> bool:
        return self.outages.steadily(database, partial(came_again, crash, database))

    @property
    def databases(self) -> list[str]:
        """Where rows of the alias may be."""
        return self._station.databases

    def renew_claims(self, database: str | None = None) -> None:
        """Extend the leases of what this process runs. Call it every third of the lease. Raises DatabaseUnavailable.

        Args:
            database: where; None for all of them, one after the other.
        """
        for one in [database] if database else self.databases:
            self._station.claims.renew(one)

    def late_claims(self) -> list[Claim]:
        """Of what this process runs, the claims that could not be renewed and are about to lapse."""
        return self._station.claims.late()

    def sweep(self, database: str | None = None) -> int:
        """End the claims that ran out; see `sweeping.sweep()`."""
        return sum(sweep(self._station, one) for one in ([database] if database else self.databases))

    # A stop, in this order; see `stopping`

    def interrupt(self) -> None:
        """Mark what runs as cut short by a stop, in case it does not end in time."""
        stopping.interrupt(self._station)

    def give_up(self) -> None:
        """Hand over what runs: this process is about to end."""
        stopping.give_up(self._station)

    def leave(self) -> None:
        """Hand over what this process has claimed, when nothing runs any more."""
        stopping.leave(self._station)

    def _refuse(self, delivery: Incoming) -> Settlement:
        """Record what no handler can take as failed."""
        station, queue, envelope = self._station, delivery.queue, delivery.envelope
        error: MessagingError
        if delivery.properties.problem:
            error = PayloadError(f"Its properties cannot be read: {delivery.properties.problem}")
        else:
            known = [handler for handler in station.handlers.all(self.alias) if handler.queue == queue]
            patterns = ", ".join(sorted({key for handler in known for key in handler.routing_keys})) or "none"
            error = HandlerNotFound(
                f"No handler of the queue {queue!r} takes the routing key "
                f"{storable(envelope.routing_key)!r} (they take: {patterns}). Add a handler, then requeue the message."
            )
        return self._record_unrun(station.database, queue, envelope, error, redelivered=delivery.redelivered)

    def _record_unrun(
        self,
        database: str,
        queue: str,
        envelope: Envelope,
        error: MessagingError,
        *,
        redelivered: bool,
        handler: Handler | None = None,
    ) -> Settlement:
        """Record it where it is recorded already; else in `database`."""
        try:
            standing = self._stands(database, queue, envelope, redelivered=redelivered, handler=handler)
            row = standing.decides
            where = database_of(row) if row is not None else database

            def record() -> bool:
                return unrun.record_unrun(
                    where,
                    queue,
                    envelope,
                    error,
                    worker=self._station.worker,
                    settings=self.settings,
                    redelivered=redelivered,
                    handler=handler,
                )

            if not self.outages.steadily(where, record):
                return ASIDE
            if row is not None:
                self._let_go(standing, row)
            return ACK
        except AlreadyRecorded:
            return ASIDE
        except SetAside as aside:
            return _aside(aside)

    def _stands(
        self, database: str, queue: str, envelope: Envelope, *, redelivered: bool, handler: Handler | None
    ) -> Standing:
        """What is recorded of a message that is not to run; nothing where its own database alone may know it."""
        elsewhere = self._station.elsewhere

        def look(name: str) -> ProcessedMessage | None:
            find = partial(inbox.find, name, self.alias, queue, envelope, redelivered=redelivered, handler=handler)
            return self.outages.steadily(name, find)

        if envelope.key is None:
            others = elsewhere.others(database)
            found = (look(name) for name in ((database, *others) if others else ()))
            return Standing(None, next((row for row in found if row is not None), None))
        rows = elsewhere.find(database, queue, envelope, redelivered=True)
        return weigh(look(database), rows, envelope) if rows else Standing(None, None)


def _aside(reason: SetAside) -> Settlement:
    return HELD if isinstance(reason, Held) else ASIDE


def _nothing() -> None:
    """For a delivery that the caller acknowledges."""
