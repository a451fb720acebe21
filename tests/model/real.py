"""The real road, moved step by step: Django's databases, the embedded broker, relays and processors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import OperationalError, connections, transaction

from messaging import operations, publish, retention
from messaging.backends import get_backend
from messaging.backends.base import ExchangeSpec, QueueSpec, Topology
from messaging.backends.database.sweeper import Sweeper
from messaging.db import connections as database_connections
from messaging.db.clock import Now
from messaging.exceptions import ProcessDied
from messaging.handlers import Handler, Registry
from messaging.message import ReceivedMessage
from messaging.models import EmbeddedMessage, EmbeddedQueue, ProcessedMessage, PublishedMessage
from messaging.operations import Operator
from messaging.operations.editing import Edit
from messaging.supervising.ledger import Entry
from tests.app.models import Effect
from tests.deliveries import registered
from tests.model import forgetting
from tests.model.acting import current
from tests.model.operating import _is_quiet
from tests.model.protocol import Configuration, Model, Step
from tests.model.rows import DATABASES, QUEUES, Names, copy_in, effect_key
from tests.model.seats import RelaySeat, Seat, lose_next_answer, settle_outages, stepped
from tests.model.states import (
    AWAITING,
    CLAIMED,
    DISCARDED,
    MOVING,
    PROCESSED,
    PUBLISHED,
    SUPERSEDED,
    Copy,
    Report,
    State,
)  # fmt: skip

BY = Operator(name="model")
LAPSED, LAPSED_AWAY = timedelta(minutes=5), timedelta(days=1)  # the latter within the outage that processors know of
OLD = timedelta(days=4000)


class Failure(Exception):
    """What a handler raises that is to fail."""


class Site:
    """Relays and consumers, which do what a trace of the model says.

    Args:
        world: how many there are, and of what kind.
    """

    def __init__(self, world: Configuration) -> None:
        self._world = world
        self.names = Names(world.databases, identified=world.identified)
        self._queues = QUEUES[: world.queues]
        bound = (("messaging", "work.do"),) if world.queues > 1 else ()
        queues = tuple(QueueSpec(name, bindings=bound) for name in self._queues)
        get_backend("default").declare(Topology((ExchangeSpec("messaging"),), queues))
        handlers = self._handlers(0)
        self._relays = [RelaySeat() for _ in world.relays]
        self._seats = [Seat(handlers, atomic=world.atomic, batch=self._batch) for _ in world.consumers]
        self._successor = stepped(handlers)
        self._reports: list[tuple[Report, Entry, float]] = []
        self._copy: forgetting.Kept | None = None
        self._failures = 0
        self._about = ""
        self._is_away = False
        self._is_up = database_connections.is_up

    def _handlers(self, home: int) -> Registry:
        registry, self._home, self._batch = Registry(), DATABASES[home], None
        for queue in self._queues:
            options: dict[str, Any] = {"queue": queue, "database": self._home, "atomic": self._world.atomic}
            options |= {"max_attempts": self._world.attempts, "backoff": 0, "batch": 2 if self._world.batch else None}
            handler: Handler = registered(registry, self._handle, **options)
            self._batch = handler if self._world.batch else None
        return registry

    def close(self) -> None:
        """End what still stands somewhere."""
        for seat in (*self._relays, *self._seats):
            if seat.actor is not None:
                seat.actor.kill()

    def do(self, step: Step, before: State) -> None:
        """One step; `before` is the model's state in which it is taken, and the step's own has not been renumbered."""
        self._about = step.about
        name = "_" + step.action.name.replace(" ", "_").replace(",", "").replace("'", "")
        getattr(self, name)(before, step.state)
        self._note_reports(before, step.state)
        self.names.learn(step.state)

    def can(self, step: Step, before: State) -> bool:
        """Whether the code can take a step of the model, or one that the model takes for the same."""
        name, of = step.action.name, self._world
        if name == "report a crash and die before telling":
            # Of a message without an id the code is in the midst of a call then; and of two alike nothing tells which.
            told = list(map(about, before.reports))
            return of.identified and len(told) == len(set(told))
        if name.startswith("a claim lapses"):  # time does it to a row that is locked, but no statement of ours can
            place, number = _changed_row(before, step.state)
            row = before.databases[place].inbox[number - 1]
            return not row or not Model(of).is_locked(before, place, row.queue, row.key)
        if before.consumers == step.state.consumers:
            return True
        place = _changed(before.consumers, step.state.consumers)
        one, seat = before.consumers[place], self._seats[place]
        if seat.is_answered:  # the model looks again at what it has acknowledged, the code does not
            return name in ("acknowledge it unrun", "acknowledge", "a process dies", "a machine dies")
        if name == "the database goes away":
            # Without a claim the code begins anew, while the model claims it now; and no id leads back to a claim.
            is_known = of.identified or one.acked or seat.deliveries[0].redelivered
            return one.token > 0 and is_known and not of.batch
        if name == "claim, its answer lost":  # once a call; and of a batch the model forgets that each is alone
            return not one.waiting and not of.batch
        if name == "take over a crash that was counted":  # the code looks for one behind each new claim alone
            return seat.at == "processor.claimed"
        if name == "look again" and not of.atomic:  # the code believes in an acknowledgement that went nowhere
            return one.acked or one.live
        if name == "release its claim and leave" and not of.atomic:
            # Between its claim and its acknowledgement a worker is not known to hold the claim, which lapses.
            return one.phase != CLAIMED or one.acked
        return True

    def _who(self, before: State, after: State) -> Seat:
        return self._seats[_changed(before.consumers, after.consumers)]

    def _phase(self, before: State, after: State) -> str:
        return after.consumers[_changed(before.consumers, after.consumers)].phase

    # The outbox

    def _publish(self, before: State, after: State) -> None:
        row = publish("work.do", {"order": 17}, **({} if len(self._queues) > 1 else {"queue": "work"}))
        if self._world.identified:
            self.names.ids.append(row.message_id)
        else:
            PublishedMessage.objects.filter(pk=row.pk).update(message_id="")

    def _relay(self, before: State, after: State) -> RelaySeat:
        return self._relays[_changed(before.relays, after.relays)]

    def _lease(self, before: State, after: State) -> None:
        place = _changed(before.relays, after.relays)
        row = after.relays[place]
        pk = self.names.pk(row.database, PublishedMessage, row.number)
        self._relays[place].lease(DATABASES[row.database], pk)

    def _send(self, before: State, after: State) -> None:
        self._relay(before, after).go("relay.sent")

    def _mark_published(self, before: State, after: State) -> None:
        self._relay(before, after).go("end")

    def _lose_the_confirm(self, before: State, after: State) -> None:
        self._relay(before, after).go("end", "lose the confirm")

    def _return_as_unroutable(self, before: State, after: State) -> None:
        """Part of what follows: what the broker says is written down within one call."""

    def _back_off(self, before: State, after: State) -> None:
        self._returned(self._relay(before, after), (60.0,) * 1000)

    def _fail_the_outgoing_row(self, before: State, after: State) -> None:
        self._returned(self._relay(before, after), ())

    def _returned(self, seat: RelaySeat, pauses: tuple[float, ...]) -> None:
        assert seat.relay is not None
        seat.relay._judge._unroutable_pauses = pauses
        EmbeddedQueue.objects.filter(name="work").update(name="away")
        seat.go("relay.sent")
        EmbeddedQueue.objects.filter(name="away").update(name="work")
        seat.go("end")

    def _a_relay_dies(self, before: State, after: State) -> None:
        seat = self._relay(before, after)
        seat.kill()
        for alias in self.names.databases:
            held = PublishedMessage.objects.using(alias).filter(state="pending", lease_owner=seat.name)
            held.update(lease_token=None, lease_owner="", due_at=Now())

    def _a_lease_lapses(self, before: State, after: State) -> None:
        alias, pk = self._outgoing(before, after)
        PublishedMessage.objects.using(alias).filter(pk=pk).update(due_at=Now() - timedelta(minutes=1))

    _a_lease_of_nobody_lapses = _a_lease_lapses

    def _outgoing(self, before: State, after: State) -> tuple[str, int]:
        """The outbox row that a step changes."""
        for place, (one, other) in enumerate(zip(before.databases, after.databases, strict=True)):
            for number, (was, now) in enumerate(zip(one.outbox, other.outbox, strict=False), 1):
                if was != now:
                    return DATABASES[place], self.names.pk(place, PublishedMessage, number)
        raise AssertionError("No row of the outbox changes.")

    # Deliveries

    def _deliver(self, before: State, after: State) -> None:
        place = _changed(before.consumers, after.consumers)
        pks: list[int] = []
        for copy in after.consumers[place].copies:
            pks.append(self._found(before, copy, pks))
        self._seats[place].take(pks)

    def _found(self, state: State, copy: Copy, but: list[int]) -> int:
        wanted = (*copy_in(state, copy, identified=self._world.identified), copy.redelivered)
        rows = EmbeddedMessage.objects.filter(holder=None).exclude(pk__in=but).select_related("queue").order_by("pk")
        return next(row.pk for row in rows if (*self.names.copy(row), row.deliveries > 0) == wanted)

    def _acknowledge(self, before: State, after: State) -> None:
        place = _changed(before.consumers, after.consumers)
        if before.consumers[place].phase == CLAIMED:
            self._seats[place].go("acked")
        else:
            one, other = before.consumers[place], after.consumers[place]
            self._seats[place].done(len(one.copies) - len(other.copies))

    def _a_channel_is_lost(self, before: State, after: State) -> None:
        self._who(before, after).lose_channel()

    def _the_broker_gives_a_message_up(self, before: State, after: State) -> None:
        copy = next(one for one in before.broker if before.broker.count(one) > after.broker.count(one))
        row = EmbeddedMessage.objects.filter(pk=self._found(before, copy, []))
        row.update(expires_at=Now() - timedelta(seconds=1))
        Sweeper("default")._bury_expired()

    # The inbox

    def _handle(self, argument: ReceivedMessage | list[ReceivedMessage]) -> None:
        messages = argument if isinstance(argument, list) else [argument]
        current().passes("handler")
        order = current().order
        if order == "fail":
            raise Failure
        if order == "roll back":
            transaction.set_rollback(True, using=self._home)
            return
        if order == "execute ROLLBACK":
            with connections[self._home].cursor() as cursor:
                cursor.execute("ROLLBACK")
            return
        if order == "away":
            self._is_away = True
            raise OperationalError("the connection is gone") from OperationalError()
        for one in messages:
            key = effect_key(one.queue, self.names.message(one.id) if self._world.identified else None)
            Effect.objects.using(self._home).create(key=key, value="")
        if order == "lose the commit's answer":
            current().order = ""
            lose_next_answer(self._home)

    def _claim(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.claimed")

    def _claim_its_answer_lost(self, before: State, after: State) -> None:
        self._who(before, after).go("look", order="lose the claim's answer")

    def _go_on_under_its_claim(self, before: State, after: State) -> None:
        # Where inserting decides who runs, a first delivery inserts before it looks.
        self._who(before, after).go("admitted", by=("look",))

    def _run(self, before: State, after: State) -> None:
        self._who(before, after).go("handler")

    def _begin_the_claimed_run(self, before: State, after: State) -> None:
        # The code acknowledges all the same where the channel is lost, and it goes nowhere.
        self._who(before, after).go("handler", by=("acked", "begin"))

    def _commit_the_handler(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.committed")

    def _commit_the_handler_the_answer_lost(self, before: State, after: State) -> None:
        by = ("processor.rolled_back", "handler")
        self._who(before, after).go("look", order="lose the commit's answer", by=by)

    def _the_database_goes_away(self, before: State, after: State) -> None:
        seat = self._who(before, after)
        database_connections.is_up = lambda database: self._is_up(database) and not self._is_away
        try:
            seat.go("end", order="away", by=("processor.rolled_back",))
        finally:
            self._is_away, database_connections.is_up = False, self._is_up
        settle_outages(seat.processor)
        seat.come_again()

    def _the_handler_ends(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.handled")

    def _record_a_run_without_a_transaction(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.committed")

    def _the_handler_fails(self, before: State, after: State) -> None:
        orders = ("execute ROLLBACK", "fail", "roll back") if self._world.atomic else ("fail",)
        order = orders[self._failures % len(orders)]
        self._failures += 1
        self._who(before, after).go("processor.rolled_back", order=order)

    def _record_the_failure(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.recorded")

    def _look_again(self, before: State, after: State) -> None:
        self._who(before, after).look()

    def _settled(self, before: State, after: State) -> None:
        """It is not run. A row elsewhere that waits for it is retired before its delivery is settled."""
        self._who(before, after).go("retire" if self._phase(before, after) == MOVING else "end", "look")

    _acknowledge_it_unrun = _go_on_from_a_counted_crash = _count_its_own_abandoned_claim = _settled
    _take_over_a_crash_that_was_counted = _record_a_dead_letter = _settled

    def _retire_its_row_elsewhere(self, before: State, after: State) -> None:
        place = _changed(before.consumers, after.consumers)
        if before.consumers[place].phase == MOVING:
            self._seats[place].go("end", "look")
        else:
            self._seats[place].go("processor.moved", by=("processor.claimed", "retire"))

    # Batches

    def _run_a_batch(self, before: State, after: State) -> None:
        self._who(before, after).go("handler")

    def _commit_a_batch(self, before: State, after: State) -> None:
        self._who(before, after).go("processor.committed")

    def _a_batch_fails(self, before: State, after: State) -> None:
        seat = self._who(before, after)
        seat.go("look", order="fail" if seat.at == "handler" else "")

    # Crashes

    def _a_process_dies(self, before: State, after: State) -> None:
        seat = self._who(before, after)
        entry, since = (seat.actor.entry, seat.actor.since) if seat.actor is not None else (None, 0.0)
        seat.die()
        if len(after.reports) > len(before.reports):
            assert entry is not None, "The ledger shows nothing of a run that the model reports."
            report = next(one for one in after.reports if _which(one) not in map(_which, before.reports))
            self._reports.append((report, entry, since))
        else:
            assert entry is None or entry.batch > 1, "The ledger shows a run that the model does not report."

    def _a_machine_dies(self, before: State, after: State) -> None:
        self._who(before, after).die()

    _hand_back_what_has_not_begun = _the_deadline_of_a_stop = _a_machine_dies

    def _note_reports(self, before: State, after: State) -> None:
        """Keep what was told in the order of the model's reports, which have other numbers after each step."""
        known = {_which(report): (entry, since) for report, entry, since in self._reports}
        self._reports = [(one, *known[_which(one)]) for one in after.reports]

    def renumber(self, state: State) -> None:
        """Take in the numbers that the model goes on with."""
        told = zip(state.reports, self._reports, strict=True)
        self._reports = [(one, entry, since) for one, (_, entry, since) in told]

    def _report_a_crash(self, before: State, after: State) -> None:
        left = [_which(one) for one in after.reports if not one.row]
        report = next(one for one in before.reports if _which(one) not in left)
        self._tell(report)

    def _report_a_crash_and_die_before_telling(self, before: State, after: State) -> None:
        self._tell(next(one for one in before.reports if self._about == about(one)))

    def _tell(self, report: Report) -> None:
        entry, since = next((entry, since) for one, entry, since in self._reports if one == report)
        assert self._successor.record_crash(entry, ProcessDied("It was killed."), since)

    def _look_for_whose_a_crash_was(self, before: State, after: State) -> None:
        """Part of what goes before: the code looks within one call."""

    def _a_claim_lapses(self, before: State, after: State) -> None:
        place, pk = self._incoming(before, after)
        ago = LAPSED_AWAY if self._lapsed(before, after) > 1 else LAPSED
        rows = ProcessedMessage.objects.using(DATABASES[place])
        rows.filter(pk=pk).update(leased_until=Now() - ago)

    _a_claim_lapses_though_held = _a_claim_lapses_in_an_outage = _a_claim_lapses

    def _lapsed(self, before: State, after: State) -> int:
        place, number = _changed_row(before, after)
        row = after.databases[place].inbox[number - 1]
        return row.lapsed if row else 0

    def _sweep(self, before: State, after: State) -> None:
        place, pk = self._incoming(before, after)
        rows = ProcessedMessage.objects.using(DATABASES[place])
        others = dict(rows.filter(leased_until__lt=Now()).exclude(pk=pk).values_list("pk", "leased_until"))
        rows.filter(pk__in=others).update(leased_until=Now() + timedelta(minutes=5))
        settle_outages(self._successor)
        self._successor.sweep(DATABASES[place])
        for other, until in others.items():
            rows.filter(pk=other).update(leased_until=until)

    def _incoming(self, before: State, after: State) -> tuple[int, int]:
        """The database and the primary key of the inbox row that a step changes."""
        place, number = _changed_row(before, after)
        return place, self.names.pk(place, ProcessedMessage, number)

    # Stops

    def _a_stop_signal(self, before: State, after: State) -> None:
        self._who(before, after).processor.interrupt()

    def _release_its_claim_and_leave(self, before: State, after: State) -> None:
        seat = self._who(before, after)
        processor = seat.processor
        if seat.at in ("processor.claimed", "processor.moved", "admitted", "acked"):
            seat.go("begin")  # from where on it is known to hold a claim
        if seat.actor is not None:  # cut off from its database first, as the code does it to what runs on
            seat.actor.kill()
        processor.give_up()
        seat.die()

    def _start_again(self, before: State, after: State) -> None:
        seat = self._who(before, after)
        seat.processor.leave()
        seat.die()

    # Operators

    def _rows(self, before: State, after: State) -> Any:
        place, pk = self._incoming(before, after)
        return ProcessedMessage.objects.using(DATABASES[place]).filter(pk=pk)

    def _requeue(self, before: State, after: State) -> None:
        for alias in self.names.databases:
            sent = PublishedMessage.objects.using(alias).filter(state=PUBLISHED)
            sent.update(published_at=Now() - timedelta(minutes=11))
        assert operations.requeue(self._rows(before, after), BY).done

    def _discard(self, before: State, after: State) -> None:
        assert operations.discard(self._rows(before, after), BY).done

    def _restore(self, before: State, after: State) -> None:
        assert operations.restore(self._rows(before, after), BY).done

    def _edit(self, before: State, after: State) -> None:
        """The copy is a message of its own, which the model leaves out."""
        row = self._rows(before, after).get()
        outcome = operations.edit(self._rows(before, after), Edit('{"order": 18}', {}, (), row.round), BY)
        assert outcome.done
        PublishedMessage.objects.using(row._state.db).filter(inbox__in=outcome.created).delete()
        ProcessedMessage.objects.using(row._state.db).filter(pk__in=outcome.created).delete()

    def _replay(self, before: State, after: State) -> None:
        place, number = _replayed(before, after)
        sent = PublishedMessage.objects.using(DATABASES[place]).filter(
            pk=self.names.pk(place, PublishedMessage, number)
        )
        outcome = operations.replay(sent, BY)
        # Of a round that is still to be sent it says that there is nothing to do.
        assert outcome.done or any(old and old.epoch != new.epoch for old, new in _pairs(before, after, place) if new)

    def _publish_again(self, before: State, after: State) -> None:
        alias, pk = self._outgoing(before, after)
        assert operations.release(PublishedMessage.objects.using(alias).filter(pk=pk), BY).done

    def _discard_the_outgoing_row(self, before: State, after: State) -> None:
        alias, pk = self._outgoing(before, after)
        assert operations.discard_published(PublishedMessage.objects.using(alias).filter(pk=pk), BY).done

    def _retention_deletes_it(self, before: State, after: State) -> None:
        place, table, number = _deleted(before, after)
        alias, pk = DATABASES[place], self.names.pk(place, table, number)
        _age(alias, table, [pk])
        for _, rows in retention.expired("default", alias):
            if rows.model is table:
                retention.prune(rows.filter(pk=pk))
        self.names.numbers[place, table][number - 1] = None

    def prune_what_is_needed(self, state: State) -> None:
        """Have retention try what it must leave, because the outbox has not done with it: nothing goes."""
        for place, one in enumerate(state.databases):
            pks = [
                self.names.pk(place, ProcessedMessage, number)
                for number, row in enumerate(one.inbox, 1)
                if row
                and row.state in (PROCESSED, DISCARDED, SUPERSEDED)
                and _is_quiet(state, row.message)
                and any(sent and sent.state in ("pending", "failed") and sent.key == row.key for sent in one.outbox)
            ]
            if pks:
                _age(DATABASES[place], ProcessedMessage, pks)
                for _, rows in retention.expired("default", DATABASES[place]):
                    if rows.model is ProcessedMessage:
                        retention.prune(rows.filter(pk__in=pks))

    # What happens out there

    def _the_broker_loses_what_is_ready(self, before: State, after: State) -> None:
        EmbeddedMessage.objects.filter(holder=None).delete()

    def _a_copy_of_the_database_falls_behind(self, before: State, after: State) -> None:
        self._copy = forgetting.keep(self.names)

    def _failover_to_the_copy(self, before: State, after: State) -> None:
        assert self._copy is not None
        for seat, one, other in zip(self._seats, before.consumers, after.consumers, strict=True):
            if one.phase != other.phase:  # its transaction is gone with the server
                seat.go("look" if one.phase == "batch" else "processor.rolled_back", order="fail")
        forgetting.set_back(self._copy, self.names)
        self._copy = None

    def _the_handler_moves_to_another_database(self, before: State, after: State) -> None:
        handlers = self._handlers(after.home)
        for seat in self._seats:
            seat.die()
            seat.batch = self._batch
            seat.start(handlers)
        self._successor = stepped(handlers)


def _changed(before: tuple[Any, ...], after: tuple[Any, ...]) -> int:
    return next(place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)


def _changed_row(before: State, after: State) -> tuple[int, int]:
    for place, (one, other) in enumerate(zip(before.databases, after.databases, strict=True)):
        for number, (was, now) in enumerate(zip(one.inbox, other.inbox, strict=False), 1):
            if was != now:
                return place, number
    raise AssertionError("No row of the inbox changes.")


def _deleted(before: State, after: State) -> tuple[int, type, int]:
    for place, (one, other) in enumerate(zip(before.databases, after.databases, strict=True)):
        tables = ((PublishedMessage, one.outbox, other.outbox), (ProcessedMessage, one.inbox, other.inbox))
        for table, old, new in tables:
            for number, (was, now) in enumerate(zip(old, new, strict=True), 1):
                if was and not now:
                    return place, table, number
    raise AssertionError("No row is deleted.")


def _replayed(before: State, after: State) -> tuple[int, int]:
    """The published row that a replay was asked for: it, or a round of the same message, is sent anew."""
    for place, (one, other) in enumerate(zip(before.databases, after.databases, strict=True)):
        for number, (was, now) in enumerate(zip(one.outbox, other.outbox, strict=False), 1):
            if was and now and was.state == PUBLISHED != now.state:
                return place, number
    for place, (one, other) in enumerate(zip(before.databases, after.databases, strict=True)):
        new = [row for row in other.outbox if row and row not in one.outbox]
        for number, sent in enumerate(one.outbox, 1):
            if sent and sent.inbox and sent.state == PUBLISHED:
                row = one.inbox[sent.inbox - 1]
                waits = row and row.key == sent.key and row.round == sent.round and row.state in AWAITING
                if waits and any(fresh.inbox == sent.inbox for fresh in new):
                    return place, number
    raise AssertionError("Nothing is sent anew.")


def _pairs(before: State, after: State, place: int) -> list[tuple[Any, Any]]:
    return list(zip(before.databases[place].outbox, after.databases[place].outbox, strict=False))


def about(report: Report) -> str:
    """What the model calls a report."""
    return f"message {report.message}, round {report.round}"


def _which(report: Report) -> tuple[int, ...]:
    """What tells it from others, whatever is noted on it."""
    return (report.database, report.queue, report.message, report.key, report.round, report.token, report.run)


def _age(alias: str, table: type, pks: list[int]) -> None:
    """Have rows have ended long ago."""
    rows = table.objects.using(alias).filter(pk__in=pks)  # type: ignore[attr-defined]
    if table is PublishedMessage:
        rows.update(created_at=Now() - OLD)
        rows.filter(published_at__isnull=False).update(published_at=Now() - OLD)
        rows.filter(state=DISCARDED).update(discarded_at=Now() - OLD)
        return
    rows.update(received_at=Now() - OLD)
    rows.filter(state=PROCESSED).update(processed_at=Now() - OLD)
    rows.exclude(state=PROCESSED).update(discarded_at=Now() - OLD)
