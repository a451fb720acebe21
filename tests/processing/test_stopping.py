"""What a claim tells of its run, and what a stop does to it: on a real database, in one process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from pytest_django import Settings

from messaging.db.clock import Now
from messaging.db.patience import bound, note_line, sever
from messaging.exceptions import DatabaseUnavailable, ProcessDied
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage, Worker
from messaging.models.operations import STOPPED
from messaging.processing.processor import Processor
from messaging.processing.station import Claims
from messaging.processing.without_handler import AWAY, UNBEGUN, end_abandoned
from messaging.supervising.ledger import Entry
from messaging.testing.draining import Arrival
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, envelope_of, registered
from tests.options import set_options
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
Handle = Callable[..., Processor]


def nothing(*_: object) -> None:
    pass


@pytest.fixture
def handle(settings: Settings) -> Handle:
    """Builds a processor with one handler, that trusts the leases it finds. None runs out but where a test says so."""
    set_options(settings, LEASE=600)

    def build(function: Callable[..., Any] = nothing, **options: Any) -> Processor:
        registry = Registry()
        registered(registry, function, **options)
        processor = Processor("default", "worker-1", handlers=registry)
        processor.outages.up_since["default"] = -1e9
        return processor

    return build


class Over(BaseException):
    """Where a process would wait for its end."""


class Slow:
    """A handler that runs until it is told to end, on a thread."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def handle(self, message: ReceivedMessage) -> None:
        """The handler."""
        Effect.objects.create(key=message.id or "none", value="once")
        self.begun.set()
        self.end.wait(120)

    def run(self, processor: Processor, delivery: Arrived) -> None:
        """Have it run, and wait until it does."""

        def process() -> None:
            try:
                processor.process(delivery, nothing)
            except Over:
                pass
            finally:
                connections.close_all()

        self.thread = threading.Thread(target=process, daemon=True)
        self.thread.start()
        assert self.begun.wait(120)

    def finish(self) -> None:
        """Have it end, and wait until it is recorded."""
        self.end.set()
        if self.thread is not None:  # the test may have been skipped
            self.thread.join(120)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    def end_here(claims: Claims) -> None:
        if claims.are_over:
            raise Over

    monkeypatch.setattr(Claims, "end_here", end_here)
    slow = Slow()
    yield slow
    slow.finish()


def only_row() -> ProcessedMessage:
    return ProcessedMessage.objects.get()


def claimed(delivery: Arrived, **values: Any) -> ProcessedMessage:
    """A claim of another worker that ran out; begun, unless `values` say otherwise."""
    envelope = envelope_of(delivery)
    row = ProcessedMessage.objects.create(
        alias="default",
        queue=delivery.queue,
        key=envelope.key or uuid.uuid4(),
        digest=envelope.digest,
        message_id=envelope.message_id,
        state=State.PROCESSING,
        lease_token=uuid.uuid4(),
        wire=envelope.to_wire(),
        body=delivery.body.decode(),
        routing_key=delivery.routing_key,
        **{
            "worker": "worker-0",
            "leased_until": Now() - timedelta(seconds=1),
            "at_broker": False,
            "started_at": Now(),
            **values,
        },
    )
    return ProcessedMessage.objects.get(pk=row.pk)


def test_a_claim_says_when_its_handler_begins_and_not_before_the_acknowledgement(handle: Handle) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append(only_row().started_at)

    handle(look, atomic=False).process(arrived(), look)
    acknowledged, running = seen
    assert acknowledged is None
    assert running is not None
    assert only_row().state == State.PROCESSED


def test_a_claim_that_is_lost_before_its_handler_begins_runs_nothing(handle: Handle) -> None:
    runs: list[object] = []

    def lose() -> None:
        ProcessedMessage.objects.update(lease_token=uuid.uuid4())

    assert handle(runs.append, atomic=False).process(arrived(message_id=None), lose).action == "done"
    assert (runs, ProcessedMessage.objects.count()) == ([], 1)


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ({"started_at": None}, UNBEGUN),
        ({"interrupted": True}, STOPPED),
        ({"interrupted": True, "started_at": None}, STOPPED),
        ({}, ""),
        ({"at_broker": None, "started_at": None}, ""),  # by the release before, which never said so
        ({"at_broker": True}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["sweep", "redelivery"])
def test_only_what_began_and_was_not_interrupted_is_an_attempt(
    handle: Handle, claim: dict[str, Any], why: str, by: str
) -> None:
    processor, delivery = handle(atomic=False), arrived()
    claimed(delivery, **claim)
    if by == "sweep":
        assert processor.sweep() == 1
    else:
        delivery.redelivered = True
        processor.process(delivery, nothing)
    row = only_row()
    assert (row.state, row.round, PublishedMessage.objects.pending().count()) == (State.RETRYING, 2, 1)
    assert (row.attempts, Attempt.objects.count()) == ((0, 0) if why else (1, 1))
    assert row.error == why or (not why and "stopped renewing" in row.error)
    assert told() == ([why] if why else [])
    assert (row.at_broker, row.started_at, row.interrupted, row.lease_token) == (None, None, None, None)


def test_the_first_signal_marks_what_runs_and_what_begins_later(handle: Handle, slow: Slow) -> None:
    processor = handle(slow.handle, atomic=False)
    slow.run(processor, arrived())
    assert only_row().interrupted is None
    processor.interrupt()
    assert only_row().interrupted
    slow.finish()
    assert only_row().state == State.PROCESSED, "it was in time"

    ProcessedMessage.objects.all().delete()
    seen = []
    handle_later = handle(lambda _: seen.append(only_row().interrupted), atomic=False)
    handle_later.interrupt()
    handle_later.process(arrived(), nothing)
    assert seen == [True]


def test_marking_waits_for_a_database_that_is_away(
    handle: Handle, slow: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor = handle(slow.handle, atomic=False)
    slow.run(processor, arrived())
    is_away = threading.Event()
    is_away.set()
    real = processor.outages.steadily

    def steadily(database: str, act: Callable[[], object]) -> object:
        if is_away.is_set():
            raise DatabaseUnavailable("gone fishing", database)
        return real(database, act)

    monkeypatch.setattr(processor.outages, "steadily", steadily)
    marking = threading.Thread(target=processor.interrupt, daemon=True)
    marking.start()
    wait_until(lambda: "gone fishing" in caplog.text)
    assert only_row().interrupted is None
    is_away.clear()
    marking.join(120)
    assert only_row().interrupted
    assert caplog.text.count("gone fishing") == 1


def test_a_run_that_locks_its_row_is_known_by_what_its_worker_says(handle: Handle, slow: Slow) -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("needs row locks")
    processor = handle(slow.handle)
    delivery = arrived(redelivered=True)
    slow.run(processor, delivery)
    processor.interrupt()
    assert (Worker.objects.get().status, Worker.objects.get().is_stopping) == ("stopping", True)
    assert only_row().interrupted is None, "its own transaction locks it"
    slow.finish()
    assert only_row().state == State.PROCESSED

    ProcessedMessage.objects.all().delete()
    claimed(arrived(), at_broker=True, worker="worker-1")  # killed, as its next worker finds it
    assert handle().sweep() == 1
    assert (only_row().attempts, only_row().error) == (0, STOPPED)


def told() -> list[str]:
    """What the timelines say of interruptions, for good."""
    return list(AuditRecord.objects.filter(action="interrupt").values_list("reason", flat=True))


@pytest.mark.parametrize("atomic", [False, True])
def test_what_runs_at_the_deadline_goes_round_again_without_an_attempt(
    handle: Handle, slow: Slow, atomic: bool
) -> None:
    if atomic and connection.vendor == "sqlite":
        pytest.skip("its transaction locks the whole database")
    processor = handle(slow.handle, atomic=atomic)
    slow.run(processor, arrived(redelivered=True))
    processor.interrupt()
    processor.give_up()
    row = only_row()
    assert (row.state, row.round, row.attempts, row.error) == (State.RETRYING, 2, 0, STOPPED)
    assert (PublishedMessage.objects.pending().count(), Attempt.objects.count()) == (1, 0)
    assert Effect.objects.count() == (0 if atomic else 1), "its transaction was rolled back"
    assert told() == [STOPPED]
    slow.finish()
    assert (only_row().state, only_row().round) == (State.RETRYING, 2), "it ended too late"


def test_a_message_without_id_at_the_broker_waits_for_its_redelivery_which_counts_nothing(
    handle: Handle, slow: Slow
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("its transaction locks the whole database")
    processor, delivery = handle(slow.handle, max_attempts=1), arrived(message_id=None, redelivered=True)
    slow.run(processor, delivery)
    processor.give_up()
    row = only_row()
    assert (row.state, row.round, row.lease_token, row.interrupted) == (State.PROCESSING, 1, None, True)
    assert (row.error, PublishedMessage.objects.count()) == (STOPPED, 0)

    assert handle().process(arrived(message_id=None, redelivered=True), nothing).action == "ack"
    row = only_row()
    assert (row.state, row.round, row.attempts, row.interrupted) == (State.RETRYING, 2, 0, None)
    assert (row.error, Attempt.objects.count(), told()) == (STOPPED, 0, [STOPPED])


def away(monkeypatch: pytest.MonkeyPatch, processor: Processor) -> None:
    """Let the processor see an outage that begins now."""

    def fail() -> None:
        with processor.outages.watch("default"):
            raise OperationalError("gone fishing")

    in_an_outage(monkeypatch, fail)


def in_an_outage(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do what meets a database that is away."""
    with monkeypatch.context() as patch:
        patch.setattr("messaging.db.connections.is_up", lambda _: False)
        with pytest.raises(DatabaseUnavailable):
            act()


def test_claims_that_ran_out_in_an_outage_are_not_attempts_and_those_before_are(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = handle(atomic=False)
    before = claimed(arrived(), leased_until=Now() - timedelta(seconds=120))
    during = claimed(arrived(), leased_until=Now() - timedelta(seconds=10))
    processor.renew_claims()
    with processor.outages.watch("default"):
        pass
    processor.outages._seen["default"] -= 60  # since when it may have been away
    away(monkeypatch, processor)
    assert processor.sweep() == 0, "the others have not renewed theirs yet"
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 2
    for row in (before, during):
        row.refresh_from_db()
    assert (before.attempts, during.attempts, during.error) == (1, 0, AWAY)


def test_a_claim_that_ran_out_before_a_process_began_in_an_outage_is_excused_once(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Worker.objects.create(
        name="killed meanwhile", kind="consume", alias="default", pid=1, seen_at=Now() - timedelta(seconds=20)
    )
    before = claimed(arrived(), leased_until=Now() - timedelta(seconds=30))
    unseen = claimed(arrived(), leased_until=Now() - timedelta(seconds=10))
    for attempts in 0, 1:
        processor = handle(atomic=False)
        away(monkeypatch, processor)
        with processor.outages.watch("default"):
            pass
        processor.outages.up_since["default"] = -1e9
        assert processor.sweep() == 2 - attempts
        for row in (before, unseen):
            row.refresh_from_db()
        assert (before.attempts, unseen.attempts) == (1, attempts)
        claim = {"state": State.PROCESSING, "lease_token": uuid.uuid4(), "at_broker": False, "started_at": Now()}
        lapsed = Now() - timedelta(seconds=10)
        ProcessedMessage.objects.filter(pk=unseen.pk).update(leased_until=lapsed, **claim)
    assert told().count(AWAY) == 1


def test_a_claim_that_ran_out_before_a_process_began_is_an_attempt_where_it_saw_no_outage(handle: Handle) -> None:
    row = claimed(arrived(), leased_until=Now() - timedelta(seconds=10))
    processor = handle(atomic=False)
    with processor.outages.watch("default"):
        pass
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 1
    row.refresh_from_db()
    assert row.attempts == 1


@pytest.mark.parametrize("at_broker", [None, False])
def test_a_claim_that_is_renewed_while_others_are_swept_goes_on(handle: Handle, at_broker: bool | None) -> None:
    processor = handle(atomic=False)
    row = claimed(arrived(), at_broker=at_broker, started_at=None)
    (found,) = ProcessedMessage.objects.abandoned("default")
    assert row.renewed(60)
    assert not end_abandoned(processor._station, "default", found, None)
    assert (only_row().lease_token, only_row().round, Attempt.objects.count()) == (row.lease_token, 1, 0)


def test_a_claim_that_is_idle_when_its_process_leaves_is_handed_over(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_database(_: object) -> None:
        raise OperationalError("gone fishing")

    processor = handle(lose_the_database, atomic=False)
    in_an_outage(monkeypatch, lambda: processor.process(arrived(), nothing))
    assert only_row().state == State.PROCESSING
    processor.leave()
    assert (only_row().state, only_row().attempts, only_row().error) == (State.RETRYING, 0, STOPPED)


def cut_short(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> tuple[Processor, Arrival, list[object]]:
    """A message without id, acknowledged, whose first run loses the database; returns all its runs as well."""
    runs: list[object] = []

    def lose_the_database_once(message: object) -> None:
        runs.append(message)
        if len(runs) == 1:
            raise OperationalError("gone fishing")

    processor, made = handle(lose_the_database_once, atomic=False), arrived(message_id=None)
    delivery = Arrival(made.queue, made.exchange, made.routing_key, made.properties, made.body)
    in_an_outage(monkeypatch, lambda: processor.process(delivery, nothing))
    return processor, delivery, runs


def test_a_message_without_id_goes_on_under_its_own_claim_after_an_outage(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, delivery, runs = cut_short(handle, monkeypatch)
    assert processor.process(delivery, nothing).action == "done"
    assert (only_row().state, only_row().attempts, len(runs)) == (State.PROCESSED, 1, 2)


def test_a_twin_without_id_does_not_take_the_claim_of_what_was_acknowledged(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, delivery, runs = cut_short(handle, monkeypatch)
    assert processor.process(arrived(message_id=None, redelivered=True), nothing).action == "done"
    assert processor.process(delivery, nothing).action == "done"
    assert (ProcessedMessage.objects.filter(state=State.PROCESSED).count(), len(runs)) == (2, 3)


def test_nor_after_the_database_went_away_once_more(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []

    def lose_the_database(*arguments: object) -> None:
        runs.append(arguments)
        if len(runs) <= 2:
            raise OperationalError("gone fishing")

    processor, made = handle(lose_the_database, atomic=False), arrived(message_id=None)
    delivery = Arrival(made.queue, made.exchange, made.routing_key, made.properties, made.body)
    in_an_outage(monkeypatch, lambda: processor.process(delivery, nothing))
    with monkeypatch.context() as patch:
        patch.setattr(ProcessedMessage, "renewed", lose_the_database)
        in_an_outage(patch, lambda: processor.process(delivery, nothing))
    assert processor.process(arrived(message_id=None, redelivered=True), nothing).action == "done"
    assert processor.process(delivery, nothing).action == "done"
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 2


def test_another_message_of_the_same_id_does_not_go_on_under_the_claim_of_the_first(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads: list[object] = []

    def lose_the_database_once(message: ReceivedMessage) -> None:
        payloads.append(message.payload)
        if len(payloads) == 1:
            raise OperationalError("gone fishing")

    processor, first = handle(lose_the_database_once, atomic=False), arrived("first", message_id="m")
    in_an_outage(monkeypatch, lambda: processor.process(first, nothing))
    processor.process(arrived("other", message_id="m"), nothing)
    processor.process(first, nothing)
    assert payloads == ["first", "first"]
    assert sorted(ProcessedMessage.objects.values_list("state", flat=True)) == [State.FAILED, State.PROCESSED]


def test_a_message_that_was_cut_short_and_damaged_since_is_failed(handle: Handle) -> None:
    delivery = arrived(message_id=None, redelivered=True)
    row = claimed(delivery)
    ProcessedMessage.objects.update(wire=b"short", interrupted=True, lease_token=None, leased_until=None)
    assert handle().process(delivery, nothing).action == "ack"
    row.refresh_from_db()
    assert (row.state, row.attempts) == (State.FAILED, 0)


def test_a_claim_that_is_not_renewed_is_known_to_its_holder_before_it_lapses(handle: Handle, slow: Slow) -> None:
    processor = handle(slow.handle, atomic=False)
    slow.run(processor, arrived())
    assert processor.late_claims() == []
    (claim,) = processor._station.claims.of("default")
    claim.renewed_at = time.monotonic() - 0.7 * processor.settings.lease
    assert [late.name for late in processor.late_claims()] == [claim.name]
    processor.renew_claims("default")
    assert processor.late_claims() == []
    slow.finish()


def test_a_process_that_dies_of_its_handler_counts_although_it_was_asked_to_stop(handle: Handle, slow: Slow) -> None:
    processor = handle(slow.handle, atomic=False)
    slow.run(processor, arrived())
    processor.interrupt()
    (claim,) = processor._station.claims.of("default")
    row = only_row()
    entry = Entry(
        "default", "work", str(row.key), str(row.digest), 1, row.message_id, "default", "slow", time.time(),
        token=str(claim.token),
    )  # fmt: skip
    processor.record_crash(entry, ProcessDied("killed"))
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 1)


def test_connections_are_bounded_without_touching_the_sites_settings() -> None:
    before = repr(connections.settings["default"])
    bounded = connection.copy()
    bound(bounded, 7)
    options = bounded.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        assert (options["connect_timeout"], options["tcp_user_timeout"], options["keepalives_idle"]) == (5, 7000, 7)
        with bounded.cursor() as cursor:
            cursor.execute("SELECT 1")
        bounded.close()
    elif connection.vendor == "mysql":
        assert (options["connect_timeout"], options["read_timeout"], options["write_timeout"]) == (5, 7, 7)
    assert repr(connections.settings["default"]) == before


def test_a_connection_on_which_another_thread_waits_can_be_cut() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("there is none")
    own, sleep, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_sleep(120)", "SELECT pg_terminate_backend(%s)"),
        "mysql": ("SELECT CONNECTION_ID()", "SELECT SLEEP(120)", "KILL %s"),
    }[connection.vendor]
    waiting = connection.copy()
    with waiting.cursor() as cursor:
        cursor.execute(own)
        session = cursor.fetchone()
    note_line(waiting)
    cutter = threading.Timer(0.2, sever, [waiting])
    cutter.start()
    with pytest.raises(OperationalError), waiting.cursor() as cursor:
        cursor.execute(sleep)
    waiting.close()
    with suppress(OperationalError), connection.cursor() as cursor:  # it has ended already
        cursor.execute(end, session)
