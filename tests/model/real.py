"""The real road, moved step by step: Django's database, the embedded broker, a relay and a processor."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.utils import timezone

from messaging import operations, publish
from messaging.backends import get_backend
from messaging.backends.base import QueueSpec, Topology
from messaging.backends.database import letters
from messaging.db.clock import Now
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import (
    EmbeddedConnection,
    EmbeddedMessage,
    EmbeddedQueue,
    ProcessedMessage,
    PublishedMessage,
)
from messaging.models.embedded import key_of
from messaging.operations import Operator
from messaging.processing.processor import Processor
from messaging.relaying.relay import Relay
from tests.app.models import Effect
from tests.deliveries import Arrived, registered
from tests.model.acting import Actor, current
from tests.model.protocol import Step
from tests.model.states import (
    CLAIMED,
    IDLE,
    PENDING,
    Consumer,
    Copy,
    State,
)  # fmt: skip

BY = Operator(name="model")
RELAY_STOPS = frozenset({"relay.leased", "relay.confirmed"})
# Where the ledger still shows a run whose outcome is committed.
OUTCOMES = frozenset({"processor.committed", "processor.recorded"})
STOPS = {
    True: OUTCOMES | {"processor.claimed", "handler", "processor.rolled_back"},
    False: OUTCOMES | {"processor.claimed", "acked", "handler", "processor.handled", "processor.rolled_back"},
}


class Failure(Exception):
    """What a handler raises that is to fail."""


class Site:
    """One relay and one consumer, which do what a trace of the model says.

    Args:
        identified, atomic, attempts: as in a configuration.
    """

    def __init__(self, *, identified: bool, atomic: bool, attempts: int) -> None:
        self._identified, self._atomic = identified, atomic
        self._registry = Registry()
        registered(self._registry, self._handle, atomic=atomic, max_attempts=attempts, backoff=0)
        self._broker = get_backend("default")
        self._broker.declare(Topology((), (QueueSpec("work"),)))
        self._queue = EmbeddedQueue.objects.get(key=key_of("work"))
        self._relay: Actor | None = None
        self._worker: Actor | None = None
        self._holder = self._taken = 0
        self._processor = self._new_processor()
        self._began: dict[str, float] = {}
        self._reports: list[tuple[Any, float]] = []

    def close(self) -> None:
        """End what still stands somewhere."""
        for actor in (self._relay, self._worker):
            if actor is not None:
                actor.kill()

    def do(self, step: Step, before: State) -> None:
        """One step; `before` is the model's state in which it is taken."""
        name = "_" + step.action.name.replace(" ", "_").replace(",", "").replace("'", "")
        getattr(self, name)(before, step.state)

    @property
    def stands(self) -> str:
        """Where the consumer's thread is."""
        return self._worker.at if self._worker is not None else ""

    # The outbox

    def _publish(self, before: State, after: State) -> None:
        row = publish("work.do", {"order": 17}, queue="work")
        if not self._identified:
            PublishedMessage.objects.filter(pk=row.pk).update(message_id="")

    def _lease(self, before: State, after: State) -> None:
        number = after.relays[0].number
        rows = list(PublishedMessage.objects.order_by("pk").values_list("pk", flat=True))
        PublishedMessage.objects.filter(pk=rows[number - 1]).update(due_at=Now() - timedelta(days=2))
        self._relay = Actor(self._relay_once, RELAY_STOPS)
        assert self._relay.go() == "relay.leased"

    def _relay_once(self) -> None:
        relay = Relay("default", name="relay")
        for lease in relay._leases:
            lease._marker._has_failed = True  # it marks in this thread
        relay.run_once(timeout=0)

    def _send(self, before: State, after: State) -> None:
        assert self._relay is not None
        assert self._relay.go() == "relay.confirmed"

    def _mark_published(self, before: State, after: State) -> None:
        assert self._relay is not None
        assert self._relay.go() == "end"

    def _a_relay_dies(self, before: State, after: State) -> None:
        assert self._relay is not None
        self._relay.kill()
        PublishedMessage.objects.filter(state=PENDING).update(lease_token=None, lease_owner="", due_at=Now())

    def _a_lease_lapses(self, before: State, after: State) -> None:
        held = PublishedMessage.objects.filter(state=PENDING, lease_token__isnull=False)
        held.update(due_at=Now() - timedelta(minutes=1))

    # Deliveries

    def _deliver(self, before: State, after: State) -> None:
        wanted = after.consumers[0].copies[0]
        if not EmbeddedConnection.objects.filter(pk=self._holder).exists():
            until = Now() + timedelta(hours=1)
            self._holder = EmbeddedConnection.objects.create(process="model", leased_until=until).pk
        rows = EmbeddedMessage.objects.take(self._queue.pk, self._holder, 100)
        row = next(one for one in rows if _is_of(one, wanted, unseen=False))
        others = [one.pk for one in rows if one.pk != row.pk]
        EmbeddedMessage.objects.free(others, self._holder, unseen=True)
        self._taken, letter = row.pk, letters.delivered(bytes(row.wire), row.deliveries)
        self._delivery = Arrived("work", *letter, bytes(row.body), row.deliveries > 1)
        self._worker = None

    def _acknowledge(self, before: State, after: State) -> None:
        if before.consumers[0].phase == CLAIMED:
            self._proceed("acked")
        else:
            if self.stands in OUTCOMES:
                self._proceed("end")
            EmbeddedMessage.objects.remove([self._taken], self._holder)

    def _ack(self) -> None:
        EmbeddedMessage.objects.remove([self._taken], self._holder)
        current().passes("acked")

    def _a_channel_is_lost(self, before: State, after: State) -> None:
        EmbeddedConnection.objects.end(self._holder)

    # The inbox

    def _new_processor(self) -> Processor:
        made = Processor("default", "worker", handlers=self._registry, running=lambda entry: current().running(entry))
        made.outages.up_since["default"] = -1e9  # leases tell
        return made

    def _handle(self, message: ReceivedMessage) -> None:
        current().passes("handler")
        if current().order == "fail":
            raise Failure
        Effect.objects.create(key="model", value="")

    def _proceed(self, *places: str, order: str = "") -> None:
        """Let the consumer's thread go on, or begin, to one of these places."""
        if self._worker is None or self._worker.at == "end":
            self._worker = Actor(lambda: self._processor.process(self._delivery, self._ack), STOPS[self._atomic])
        reached = self._worker.go(order)
        assert reached in places, f"It is at {reached}, not at {places}: {self._worker.result}."

    def _claim(self, before: State, after: State) -> None:
        self._proceed("processor.claimed")

    def _run(self, before: State, after: State) -> None:
        self._proceed("handler")

    def _begin_the_claimed_run(self, before: State, after: State) -> None:
        if self.stands == "processor.claimed" and not self._atomic:  # its acknowledgement goes nowhere
            self._proceed("acked")
        self._proceed("handler")

    def _commit_the_handler(self, before: State, after: State) -> None:
        self._proceed("processor.committed")

    def _the_handler_ends(self, before: State, after: State) -> None:
        self._proceed("processor.handled")

    def _record_a_run_without_a_transaction(self, before: State, after: State) -> None:
        self._proceed("processor.committed")

    def _the_handler_fails(self, before: State, after: State) -> None:
        self._proceed("processor.rolled_back", order="fail")

    def _record_the_failure(self, before: State, after: State) -> None:
        self._proceed("processor.recorded")

    def _look_again(self, before: State, after: State) -> None:
        """Part of what follows: the code looks again within one call."""

    def _acknowledge_it_unrun(self, before: State, after: State) -> None:
        self._proceed("end")

    def _go_on_from_a_counted_crash(self, before: State, after: State) -> None:
        self._proceed("end")

    def _count_its_own_abandoned_claim(self, before: State, after: State) -> None:
        self._proceed("end")

    def _take_over_a_crash_that_was_counted(self, before: State, after: State) -> None:
        self._proceed("end")

    # Crashes

    def _a_process_dies(self, before: State, after: State) -> None:
        entry, since = (self._worker.entry, self._worker.since) if self._worker is not None else (None, 0.0)
        self._die()
        if len(after.reports) > len(before.reports):  # not where the model has looked again, which the code is about to
            assert entry is not None, "The ledger shows nothing of a run that the model reports."
            self._reports.append((entry, since))

    def _a_machine_dies(self, before: State, after: State) -> None:
        self._die()

    def _die(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        self._worker = None
        EmbeddedConnection.objects.end(self._holder)
        self._processor = self._new_processor()

    def _report_a_crash(self, before: State, after: State) -> None:
        from messaging.exceptions import ProcessDied

        entry, since = self._reports.pop(0)
        assert self._processor.record_crash(entry, ProcessDied("It was killed."), since)

    def _look_for_whose_a_crash_was(self, before: State, after: State) -> None:
        """Part of what goes before: the code looks within one call."""

    def _a_claim_lapses(self, before: State, after: State) -> None:
        ProcessedMessage.objects.filter(pk=_changed(before, after)).update(leased_until=Now() - timedelta(minutes=5))

    _a_claim_lapses_though_held = _a_claim_lapses

    def _sweep(self, before: State, after: State) -> None:
        others = ProcessedMessage.objects.filter(leased_until__lt=Now()).exclude(pk=_changed(before, after))
        lapsed = list(others.values_list("pk", flat=True))
        others.update(leased_until=Now() + timedelta(minutes=5))
        self._processor.sweep()
        ProcessedMessage.objects.filter(pk__in=lapsed).update(leased_until=Now() - timedelta(minutes=5))

    # Operators

    def _requeue(self, before: State, after: State) -> None:
        PublishedMessage.objects.filter(state="published").update(published_at=Now() - timedelta(minutes=11))
        assert operations.requeue(ProcessedMessage.objects.all(), BY).done

    def _discard(self, before: State, after: State) -> None:
        assert operations.discard(ProcessedMessage.objects.all(), BY).done

    def _restore(self, before: State, after: State) -> None:
        assert operations.restore(ProcessedMessage.objects.all(), BY).done

    def _replay(self, before: State, after: State) -> None:
        number = next(
            index
            for index, (one, other) in enumerate(
                zip(before.databases[0].outbox, after.databases[0].outbox, strict=False)
            )
            if one and other and one.epoch != other.epoch and one.state != other.state
        )
        rows = list(PublishedMessage.objects.order_by("pk").values_list("pk", flat=True))
        assert operations.replay(PublishedMessage.objects.filter(pk=rows[number]), BY).done

    def _the_broker_loses_what_is_ready(self, before: State, after: State) -> None:
        EmbeddedMessage.objects.filter(holder=None).delete()


def _changed(before: State, after: State) -> int:
    """The primary key of the inbox row that a step changes."""
    rows = list(ProcessedMessage.objects.order_by("pk").values_list("pk", flat=True))
    old, new = ([row for row in state.databases[0].inbox if row] for state in (before, after))
    return next(pk for pk, was, now in zip(rows, old, new, strict=True) if was != now)


def rows_of(site: Site) -> dict[str, Any]:
    """What is durable, as the code has it."""
    sent, now = PublishedMessage.objects.order_by("pk"), timezone.now()
    received = ProcessedMessage.objects.order_by("pk")
    ready = EmbeddedMessage.objects.filter(holder=None)
    return {
        "outbox": [(row.round, row.state, row.lease_token is not None and (row.due_at or now) > now) for row in sent],
        "inbox": [
            (row.round, row.state, row.attempts, row.lease_token is not None, row.wire is not None) for row in received
        ],
        "ready": sorted((_round_of(row), row.deliveries > 0) for row in ready),
        "held": EmbeddedMessage.objects.exclude(holder=None).count(),
        "effects": min(2, Effect.objects.count()),
    }


def rows_in(state: State) -> dict[str, Any]:
    """What is durable, as the model has it."""
    database = state.databases[0]
    held = [_held(one) for one in state.consumers]
    return {
        "outbox": [(one.round, one.state, one.token > 0 and not one.lapsed) for one in database.outbox if one],
        "inbox": [(one.round, one.state, one.attempts, one.token > 0, one.content) for one in database.inbox if one],
        "ready": sorted((one.round, one.redelivered) for one in state.broker),
        "held": sum(held),
        "effects": sum(database.effects),
    }


def _held(one: Consumer) -> int:
    return len(one.copies) - int(one.acked) if one.live and one.phase != IDLE else 0


def _is_of(row: EmbeddedMessage, copy: Copy, *, unseen: bool) -> bool:
    return (_round_of(row), row.deliveries > int(not unseen)) == (copy.round, copy.redelivered)


def _round_of(row: EmbeddedMessage) -> int:
    letter = letters.delivered(bytes(row.wire), 1)
    return Arrived("work", *letter, bytes(row.body)).envelope.round
