"""Processing one delivery: dedupe, run the handler, record; all in one transaction, acknowledged after its commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from django.db import Error, OperationalError

from messaging import conf
from messaging.db.connections import Outages, is_conflict, is_lock_wait, is_lost, is_unfit, reconnect
from messaging.db.session import end_orphan
from messaging.exceptions import DatabaseUnavailable, MessagingError
from messaging.handlers import Handler, Registry, registry
from messaging.models import ProcessedMessage
from messaging.models.spools import Spool
from messaging.processing import inbox, stopping, without_handler
from messaging.processing.attempting import Attempts, is_near_limit
from messaging.processing.batching import run_batch
from messaging.processing.crashes import Crash, came_again, record_crash
from messaging.processing.elsewhere import Elsewhere, Standing, database_of, weigh
from messaging.processing.execution import call
from messaging.processing.inbox import AlreadyRecorded, NeedsToBeAlone, Place, SetAside, Unrecognised, Verdict
from messaging.processing.recognition import Recognition, is_ours
from messaging.processing.refusing import Refusals
from messaging.processing.station import (
    ACK,
    ALONE,
    ASIDE,
    DONE,
    HELD,
    Call,
    Claim,
    Claims,
    EnterLedger,
    Incoming,
    Settlement,
    Station,
    Work,
    inserts_first,
    set_aside,
)
from messaging.processing.surrounding import Surroundings
from messaging.processing.sweeping import sweep
from messaging.supervising.ledger import Entry
from messaging.wire.envelope import Envelope

READ_AHEAD = 64 * 1024  # bytes of a body; a larger one is not held twice before its turn comes


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
        running: EnterLedger | None = None,
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
        if self.settings.middleware:
            call = Surroundings(self.settings, handlers.all(alias), call)
        self._station = Station(alias, worker, self.settings, self.outages, claims, handlers, elsewhere, running, call)
        self._attempts = Attempts(self._station)
        self._recognition = Recognition(self._station)
        self._refusals = Refusals(self._station, self._recognition)

    def route(self, delivery: Incoming) -> Handler | None:
        """The handler that would take a delivery; None where there is none or its headers cannot be read.

        Called on arrival, it has what is read of the message read there, before a worker waits for it.
        """
        if delivery.properties.problem:
            return None
        envelope = delivery.envelope
        handler = self._handler(delivery, envelope)
        if handler is not None and len(delivery.body) <= READ_AHEAD:
            envelope.read()
        return handler

    def is_near_limit(self, delivery: Incoming) -> bool:
        """Whether a delivery that came again will not be run, but sent round, before the broker gives it up."""
        if delivery.properties.problem:
            return False
        return is_near_limit(delivery.properties, self._station.settings.queue(delivery.queue))

    def _handler(self, delivery: Incoming, envelope: Envelope) -> Handler | None:
        if delivery.properties.problem:
            return None
        return self._station.handlers.find(self.alias, delivery.queue, envelope.routing_key)

    # The road: process, settle, admit, attempt

    def process(self, delivery: Incoming, ack: Callable[[], object], *, alone: bool = True) -> Settlement:
        """Dedupe a delivery, run its handler and record how it ended.

        Args:
            delivery: what the broker delivered.
            ack: acknowledges it; called on the way for a handler with `atomic=False`, never twice.
            alone: whether no other atomic handler runs in this process meanwhile.

        Returns what to do with the delivery now. Raises DatabaseUnavailable: hold it, and process it again.
        """
        handler, envelope = self.route(delivery), delivery.envelope
        # A round is recognised by the row that is looked up for it anyway.
        if not envelope.is_proven and (envelope.row_key is None or handler is None):
            envelope = self._recognition.of(delivery.queue, envelope)
            handler = self._handler(delivery, envelope)
        try:
            return self._process(delivery, envelope, handler, ack, alone=alone)
        except Unrecognised:
            envelope = envelope.as_a_strangers()
            return self._process(delivery, envelope, self._handler(delivery, envelope), ack, alone=alone)

    def _process(
        self, delivery: Incoming, envelope: Envelope, handler: Handler | None, ack: Callable[[], object], *, alone: bool
    ) -> Settlement:
        if handler is None:
            return self._refusals.record_unknown(delivery, envelope)
        work = Work(envelope, delivery.queue, handler, delivery.redelivered, ack, alone=alone)
        try:
            with self.outages.watch(handler.database):
                return self._settle(work)
        except DatabaseUnavailable:
            work.redelivered |= not handler.atomic  # nobody knows whether it was claimed
            raise
        finally:
            if envelope.key is None:  # so that the claim which it may have made is found
                delivery.redelivered = work.redelivered

    def process_batch(self, handler: Handler, deliveries: Sequence[Incoming]) -> list[Settlement]:
        """Run a batch handler on deliveries in one transaction; singly where anything is in the way.

        Returns a settlement for each. Raises DatabaseUnavailable.
        """
        works = [Work(one.envelope, one.queue, handler, one.redelivered, _nothing) for one in deliveries]
        if all(work.envelope.is_proven for work in works) and run_batch(self._station, handler, works):
            return [ACK] * len(works)
        return [self.process(delivery, _nothing) for delivery in deliveries]

    def _settle(self, work: Work) -> Settlement:
        """Look at what is recorded, then act; look again whenever someone else was faster."""
        is_renewed = False
        for _ in range(without_handler.LOOKS):
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
                return set_aside(aside)
            except NeedsToBeAlone:
                return ALONE
            except Error as error:
                if is_lock_wait(error):
                    return HELD
                if is_conflict(error):
                    break
                self._renew(error, work, is_renewed=is_renewed)
                is_renewed = work.redelivered = True  # nobody knows what was committed
        return ASIDE

    def _renew(self, error: Error, work: Work, *, is_renewed: bool) -> None:
        """Have another connection for another look; raise the error where a new one has not helped, or would not."""
        self.outages.raise_if_away(error, work.database)
        if not (is_lost(error, work.database) or (is_unfit(error, work.database) and not is_renewed)):
            raise error
        reconnect(work.database)

    def _admit(self, work: Work) -> Place | None:
        """The place to record it in, if it is to run; None when the inbox answers for it already."""
        envelope = work.envelope
        others = self._station.elsewhere.find(work.database, work.queue, envelope, redelivered=work.redelivered)
        is_first = not work.redelivered and envelope.row_key is None
        # Where inserting first decides who runs, a first delivery needs no look.
        if is_first and not others and inserts_first(work.database) and envelope.former_key is None:
            return inbox.fresh(self.alias, work.queue, envelope)
        home = self._find(work)
        if envelope.row_key is not None and not is_ours([row for row in (home, *others) if row is not None], envelope):
            raise Unrecognised
        standing = weigh(home, others, envelope)
        if standing.decides is None:
            return inbox.fresh(self.alias, work.queue, envelope)
        return self._admit_known(work, standing, standing.decides)

    def _admit_known(self, work: Work, standing: Standing, row: ProcessedMessage) -> Place | None:
        claims, work.left_over = self._station.claims, standing.left_over
        is_held_here = claims.is_idle(row.lease_token) and row.is_of(work.envelope)
        will_run = inbox.gate(row, work.envelope) is Verdict.RUN
        if (is_held_here or will_run) and any(not claims.is_idle(one.lease_token) for one in standing.claimed):
            raise SetAside  # it is being run in another database
        if is_held_here and claims.take(row.lease_token):
            with claims.held(row.lease_token, work.database):
                if not row.renewed(self.settings.lease):
                    raise AlreadyRecorded
            return inbox.existing(row)
        if not will_run:
            self._admit_recorded(work, standing, row)
            return None
        if not work.alone and work.handler.atomic and row.may_kill:
            raise NeedsToBeAlone  # a retry is no redelivery: only its row knows what became of the last run
        if row is standing.home:
            without_handler.bring_content(row, work.envelope, work.database)
            return inbox.existing(row)
        return self._move(work, standing, row)

    def _move(self, work: Work, standing: Standing, row: ProcessedMessage) -> Place:
        """Where a message is recorded that waits in another database, and is to run in its handler's."""
        home, elsewhere = standing.home, self._station.elsewhere
        work.left_over = [*(one for one in standing.left_over if one is not home), row]
        with self._refusals.held(home):
            return elsewhere.move(home, row, work.queue, work.envelope)

    def _find(self, work: Work) -> ProcessedMessage | None:
        if not work.redelivered or work.envelope.key is not None:
            row = inbox.find(work.database, self.alias, work.queue, work.envelope, redelivered=work.redelivered)
            if row is not None or not (work.redelivered and work.envelope.was_without_id):
                return row
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
        station, database = self._station, database_of(row)
        verdict = inbox.gate(row, work.envelope)
        with self.outages.watch(database):
            if verdict is not Verdict.REUSED:
                without_handler.bring_content(row, work.envelope, database)
            if verdict is Verdict.REUSED:
                without_handler.record_reused(station, database, row, work.envelope)
            elif verdict is Verdict.COUNTED:
                without_handler.record_counted(station, database, row, work.envelope, work.handler)
            elif verdict is Verdict.CRASHED:
                if not self.outages.leases_tell(database, self.settings.lease):
                    raise SetAside
                if not without_handler.end_abandoned(station, database, row, work.handler):
                    raise AlreadyRecorded
            elif row.key != work.envelope.key and not row.message_id:
                raise AlreadyRecorded  # another copy of its content took that row since
        if verdict in (Verdict.DONE, Verdict.REUSED):  # the others make another round, which comes here again
            self._refusals.let_go(standing, row)

    # What is recorded without running anything

    def record_dead(self, delivery: Incoming) -> Settlement:
        """Record a delivery from `<queue>.dead` as failed, with the broker's reason. Raises DatabaseUnavailable."""
        return self._refusals.record_dead(delivery)

    def record_failed(self, delivery: Incoming, error: BaseException, *, is_dead: bool) -> Settlement:
        """Record as failed what the consumer itself fails on, again and again. Raises DatabaseUnavailable.

        Args:
            delivery: from its queue.
            error: why it fails.
            is_dead: whether that is a dead-letter queue.
        """
        return self._refusals.record_failed(delivery, error, is_dead=is_dead)

    def record_too_large(self, delivery: Incoming, spool: Spool, *, is_dead: bool) -> Settlement:
        """Record as failed what is too large to be held here, with its body. Raises DatabaseUnavailable.

        Args:
            delivery: from its queue.
            spool: has its body.
            is_dead: whether that is a dead-letter queue.
        """
        return self._refusals.record_too_large(delivery, spool, is_dead=is_dead)

    def record_crash(self, entry: Entry, error: MessagingError | None, since: float | None = None) -> bool:
        """Record that a process died while it ran `entry`, of `error`; of something else's if None.

        Args:
            entry: what it ran.
            error: why it died.
            since: CLOCK_MONOTONIC of when that began; None where nobody knows.

        Returns whether that is done: not while another run of the message keeps its row locked; ask again then.
        Raises DatabaseUnavailable.
        """
        if entry.batch > 1:
            return True  # nobody knows whose fault it was: redelivered, each runs alone
        crash = Crash.of(self._station, entry, error, since) if error is not None else None
        try:
            if crash is None:
                self.outages.steadily(entry.database, lambda: without_handler.record_spared(self._station, entry))
            elif not any(map(partial(self._came_again, crash), self._station.elsewhere.others(entry.database))):
                self.outages.steadily(entry.database, lambda: record_crash(crash))
        except SetAside:
            pass
        except OperationalError as trouble:
            if not (is_lock_wait(trouble) or is_conflict(trouble)):
                raise
        else:
            return True
        if since is not None:  # perhaps by what is left of itself
            age = time.monotonic() - since
            self.outages.steadily(entry.database, lambda: end_orphan(entry.database, entry.session, age))
        return False

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


def _nothing() -> None:
    """For a delivery that the caller acknowledges."""
