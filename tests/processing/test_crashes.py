"""Deaths: each costs its message one attempt, whoever runs it meanwhile, and a message without an id is never lost."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection

from messaging import operations
from messaging.consuming.deaths import Deaths
from messaging.db.clock import Now
from messaging.db.connections import Outages
from messaging.exceptions import DatabaseUnavailable, ProcessDied
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.operations import Operator
from messaging.processing import crashes, failures, inbox
from messaging.processing.failures import Failure
from messaging.processing.inbox import AlreadyRecorded, Place
from messaging.processing.processor import Processor
from messaging.processing.station import Claims, Work
from messaging.supervising.ledger import Entry
from tests.app.models import Effect
from tests.deliveries import Acks, Arrived, arrived, envelope_of, in_a_thread, registered, sent
from tests.processing.tools import Held

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
Handle = Callable[..., Processor]
KILLED = ProcessDied("The process that ran it was killed by signal 9 (SIGKILL).")


def effect(message: ReceivedMessage) -> None:
    Effect.objects.create(key="effect")


def nothing() -> None:
    pass


@pytest.fixture
def handle() -> Handle:
    """Builds a processor with one handler, whose leases tell at once who died."""

    def build(function: Callable[..., Any] = effect, **options: Any) -> Processor:
        registry = Registry()
        registered(registry, function, **options)
        built = Processor("default", "worker-1", handlers=registry)
        built.outages.up_since["default"] = -1e9
        return built

    return build


def claimed(delivery: Arrived, *, seconds: float = 60, **values: Any) -> ProcessedMessage:
    """The row of a delivery that another worker claimed; its lease ends in so many seconds."""
    envelope = envelope_of(delivery)
    place = inbox.fresh("default", delivery.queue, envelope)
    for name, value in values.items():
        setattr(place.row, name, value)
    place.claim("default", "worker-0", seconds, at_broker=values.get("at_broker", True))
    return ProcessedMessage.objects.get(pk=place.row.pk)


def dead_letter() -> Arrived:
    """A message without an id that the broker gave up, of the content that `arrived()` has."""
    death = [{"queue": "work", "reason": "delivery_limit", "exchange": "messaging", "routing-keys": ["work.do"]}]
    return arrived(queue="work.dead", routing_key="work.dead", message_id=None, headers={"x-death": death})


def entry_of(row: ProcessedMessage, **changes: Any) -> Entry:
    """What the ledger shows of a first run of a row's message."""
    values: dict[str, Any] = {
        "alias": "default",
        "queue": row.queue,
        "key": str(row.key),
        "digest": str(row.digest),
        "round": 1,
        "message_id": row.message_id,
        "database": "default",
        "handler": "tests.effect",
        "started": 1_700_000_000.0,
    }
    return Entry(**{**values, **changes})


def entry_without_id(delivery: Arrived) -> Entry:
    """What the ledger shows of a first run of a message without an id."""
    return entry_of(inbox.fresh("default", delivery.queue, envelope_of(delivery)).row)


@contextmanager
def once(verb: str, table: str, act: Callable[[], object]) -> Iterator[list[str]]:
    """Do something, in another thread, after a statement of a kind was executed for the first time."""
    done: list[str] = []

    def wrap(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if sql.startswith(verb) and table in sql and not done:
            done.append(sql)
            in_a_thread(act).join()
        return result

    with connection.execute_wrapper(wrap):
        yield done


# Messages without an id


@pytest.mark.parametrize(
    ("atomic", "values"),
    [(True, {"round": 2}), (False, {"round": 2}), (False, {"at_broker": False}), (True, {"at_broker": False})],
)
def test_a_message_without_id_adopts_no_claim_of_what_the_broker_has_no_more(
    handle: Handle, atomic: bool, values: dict[str, Any]
) -> None:
    delivery = arrived(message_id=None, redelivered=True)
    other = claimed(delivery, seconds=-1, **values)
    assert handle(atomic=atomic).process(delivery, Acks()).action in ("ack", "done")
    assert Effect.objects.count() == 1
    assert ProcessedMessage.objects.exclude(pk=other.pk).get().state == State.PROCESSED
    other.refresh_from_db()
    assert other.state == State.PROCESSING


def test_a_message_without_id_adopts_its_own_claim_whatever_its_handler_has_become(handle: Handle) -> None:
    delivery = arrived(message_id=None, redelivered=True)
    claimed(delivery, seconds=-1)
    assert handle(atomic=False).process(delivery, nothing).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.round) == (State.RETRYING, 2)


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("values", [{"round": 2}, {"at_broker": False}, {"at_broker": None}])
def test_a_dead_letter_without_id_ends_no_claim_of_what_the_broker_has_no_more(
    handle: Handle, values: dict[str, Any], lives: bool
) -> None:
    other = claimed(arrived(message_id=None), **values)
    ProcessedMessage.objects.update(started_at=Now())  # so that its end is a crash, and costs an attempt
    if not lives:
        ProcessedMessage.objects.update(leased_until=Now() - timedelta(seconds=1))
    processor = handle(atomic=False)
    assert processor.record_dead(dead_letter()).action == "ack"
    dead = ProcessedMessage.objects.exclude(pk=other.pk).get()
    assert (dead.state, dead.dead_lettered, dead.round) == (State.FAILED, True, 1)
    after = ProcessedMessage.objects.get(pk=other.pk)
    assert (after.state, after.lease_token, after.attempts) == (State.PROCESSING, other.lease_token, 0)
    processor.sweep()
    after.refresh_from_db()
    swept = (State.PROCESSING, other.round, 0) if lives else (State.RETRYING, other.round + 1, 1)
    assert (after.state, after.round, after.attempts) == swept, "what it held goes on by itself"


def test_a_dead_letter_without_id_waits_for_the_run_that_may_have_been_its_last(handle: Handle) -> None:
    last, dead = claimed(arrived(message_id=None)), dead_letter()
    assert handle().record_dead(dead).action == "set_aside"
    ProcessedMessage.objects.update(leased_until=Now() - timedelta(seconds=1))
    assert handle().record_dead(dead).action == "ack"
    last.refresh_from_db()
    assert last.state == State.FAILED


def test_of_two_copies_that_find_the_same_crash_one_goes_on_and_the_other_runs(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None, redelivered=True)
    processor.record_crash(entry_without_id(delivery), KILLED)
    with once("SELECT", "processedmessage", lambda: processor.process(delivery, nothing)) as done:
        processor.process(delivery, nothing)
    assert done
    assert sorted(ProcessedMessage.objects.values_list("state", flat=True)) == [State.PROCESSED, State.RETRYING]


def test_a_crash_that_is_counted_while_its_message_is_claimed_goes_over_into_the_claim(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None, redelivered=True)
    entry = entry_without_id(delivery)
    with once("SELECT", "processedmessage", lambda: processor.record_crash(entry, KILLED)) as done:
        assert processor.process(delivery, nothing).action == "ack"
    assert done
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round, row.raw_body) == (State.RETRYING, 1, 2, delivery.body)
    assert row.attempt_set.get().run == entry.run
    assert Effect.objects.count() == 0


def test_a_crash_whose_message_is_claimed_while_it_is_counted_goes_over_into_the_claim(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, delivery = handle(), arrived(message_id=None)
    entry, since = entry_without_id(delivery), time.monotonic() - 60
    insert = crashes._insert
    monkeypatch.setattr(crashes, "_insert", lambda crash: (claimed(delivery), insert(crash))[1])
    assert processor.record_crash(entry, KILLED, since)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.worker) == (State.PROCESSING, 1, "worker-0")
    assert row.lease_token is not None
    assert processor.record_crash(entry, KILLED, since)
    assert Attempt.objects.get().run == entry.run
    assert ProcessedMessage.objects.count() == 1


def test_a_crash_without_id_leaves_no_row_behind_whatever_the_clock_says(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None, redelivered=True)
    entry = entry_of(inbox.fresh("default", "work", envelope_of(delivery)).row, started=time.time() + 3600)
    since = time.monotonic()
    processor.process(delivery, nothing)
    assert processor.record_crash(entry, KILLED, since)
    assert ProcessedMessage.objects.get().state == State.PROCESSED


def test_a_crash_without_id_leaves_no_row_behind_however_slow_its_database_answers(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None, redelivered=True)
    entry, since = entry_without_id(delivery), time.monotonic()
    processor.process(delivery, nothing)

    def late(execute: Callable[..., Any], *statement: Any) -> Any:
        time.sleep(0.3)
        return execute(*statement)

    with connection.execute_wrapper(late):
        assert processor.record_crash(entry, KILLED, since)
    assert ProcessedMessage.objects.get().state == State.PROCESSED


def test_a_crash_without_id_leaves_no_row_behind_where_its_message_was_processed_in_a_later_round(
    handle: Handle,
) -> None:
    def fail_once(message: ReceivedMessage) -> None:
        if message.round == 1:
            raise ValueError

    processor, delivery = handle(fail_once), arrived(message_id=None, redelivered=True)
    entry, since = entry_without_id(delivery), time.monotonic()
    processor.process(delivery, nothing)
    processor.process(sent(PublishedMessage.objects.get()), nothing)
    assert processor.record_crash(entry, KILLED, since)
    assert ProcessedMessage.objects.get().state == State.PROCESSED


def test_a_first_delivery_of_the_same_content_is_not_taken_for_the_redelivery(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None)
    processor.process(delivery, nothing)
    processor.record_crash(entry_without_id(delivery), KILLED, time.monotonic() - 5)
    delivery.redelivered = True
    processor.process(delivery, nothing)
    assert sorted(ProcessedMessage.objects.values_list("state", "attempts")) == [
        (State.PROCESSED, 1),
        (State.RETRYING, 1),
    ]


# What counts, and how often


def test_a_crash_that_is_reported_again_counts_once(handle: Handle) -> None:
    processor, row = handle(), claimed(arrived())
    for _ in range(3):
        assert processor.record_crash(entry_of(row), KILLED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.attempt_set.count()) == (State.PROCESSING, 1, 1)


@pytest.mark.parametrize("swept_first", [True, False])
def test_a_crash_that_is_swept_and_reported_counts_once(handle: Handle, swept_first: bool) -> None:
    processor, row = handle(), claimed(arrived(), seconds=-1)
    entry = entry_of(row, token=str(row.lease_token))
    acts: list[Callable[[], object]] = [processor.sweep, lambda: processor.record_crash(entry, KILLED)]
    for act in acts if swept_first else acts[::-1]:
        act()
    row.refresh_from_db()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    assert row.attempt_set.get().run == uuid.UUID(entry.token)


def test_a_process_that_dies_after_it_recorded_its_failure_counts_once(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    processor, delivery = handle(fail), arrived()
    processor.process(delivery, nothing)
    row = ProcessedMessage.objects.get()
    processor.record_crash(entry_of(row), KILLED)
    row.refresh_from_db()
    assert (row.attempts, row.attempt_set.count()) == (1, 1)


def test_a_death_that_is_reported_in_a_later_round_counts_and_may_be_the_last(handle: Handle) -> None:
    processor, row = handle(max_attempts=2), claimed(arrived())
    processor.record_crash(entry_of(row, token=str(row.lease_token)), KILLED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    for _ in range(2):
        processor.record_crash(entry_of(row), KILLED)
    row.refresh_from_db()
    assert (row.state, row.attempts, row.round) == (State.FAILED, 2, 2)
    assert list(row.attempt_set.values_list("number", "round")) == [(1, 1), (2, 1)]
    assert processor.process(sent(PublishedMessage.objects.get()), nothing).action == "ack"
    assert Effect.objects.count() == 0


def test_a_death_before_an_operator_requeued_is_not_held_against_the_fresh_attempts(handle: Handle) -> None:
    processor, row = handle(), claimed(arrived())
    processor.record_crash(entry_of(row, token=str(row.lease_token)), KILLED)
    operations.requeue(ProcessedMessage.objects.all(), Operator(name="ann"))
    processor.record_crash(entry_of(row), KILLED, time.monotonic() - 60)
    processor.process(sent(PublishedMessage.objects.get(state="pending")), nothing)
    row.refresh_from_db()
    assert (row.state, row.attempts) == (State.PROCESSED, 1)


def test_success_keeps_a_crash_that_was_counted_meanwhile(handle: Handle) -> None:
    delivery = arrived(redelivered=True)

    def work(message: ReceivedMessage) -> None:
        row = ProcessedMessage.objects.get()
        in_a_thread(lambda: processor.record_crash(entry_of(row), KILLED)).join()

    processor = handle(work, atomic=False)
    processor.process(delivery, nothing)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts) == (State.PROCESSED, 2)


def test_a_failure_counts_from_what_is_recorded_at_that_moment(handle: Handle) -> None:
    processor, row = handle(max_attempts=2), claimed(arrived())
    place = inbox.existing(row)
    ProcessedMessage.objects.update(attempts=1)
    failure = Failure(ValueError("no"), "worker-0", processor.route(arrived()), time.monotonic())
    assert failures.record(place, failure, "default", processor.settings).state == State.FAILED
    row = ProcessedMessage.objects.get()
    assert (row.attempts, row.attempt_set.get().number) == (2, 2)


def test_what_fails_again_after_the_inbox_was_set_back_is_recorded(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    running = handle(fail)
    running.process(arrived(), nothing)
    retry = sent(PublishedMessage.objects.get())
    ProcessedMessage.objects.update(state=State.FAILED, round=1)
    assert running.process(retry, nothing).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.attempt_set.count()) == (State.RETRYING, 2, 2)


def test_a_row_number_that_is_another_message_s_now_changes_nothing() -> None:
    row = claimed(arrived())
    ProcessedMessage.objects.update(key=uuid.uuid4())
    assert not row.move(State.PROCESSING, round=1, token=row.lease_token, state=State.FAILED)
    with pytest.raises(AlreadyRecorded):
        failures.send_round(inbox.existing(row), "worker-0", "default")


def test_a_death_waits_to_be_counted_while_its_message_runs_elsewhere(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    held = Held(ValueError())
    processor, delivery = handle(held.run), arrived(redelivered=True)
    runner = in_a_thread(lambda: processor.process(delivery, nothing))
    assert held.entered.wait(60)
    entry = entry_of(ProcessedMessage.objects.get())
    assert not processor.record_crash(entry, KILLED)
    held.leave.set()
    runner.join()
    assert processor.record_crash(entry, KILLED)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 2, 2)


def test_a_crash_that_takes_long_to_record_still_knows_the_redelivery_that_came_at_once(handle: Handle) -> None:
    processor = handle()
    delivery = arrived(message_id=None)
    crash = crashes.Crash.of(processor._station, entry_without_id(delivery), KILLED, time.monotonic())
    row = claimed(delivery)  # such as before the connection of whoever records the crash is open
    crashes.record_crash(crash)
    assert ProcessedMessage.objects.get().pk == row.pk
    assert ProcessedMessage.objects.get().attempts == 1


def test_a_redelivery_within_the_same_tick_of_the_databases_clock_is_known(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = handle()
    delivery = arrived(message_id=None)
    row = claimed(delivery)
    moment = datetime.fromtimestamp(1_790_000_000, UTC)
    ProcessedMessage.objects.update(received_at=moment)
    began = moment + timedelta(microseconds=500)  # by a clock that cuts off less than that of the run's beginning
    monkeypatch.setattr(crashes, "read_clock", lambda *_: began)
    crash = crashes.Crash.of(processor._station, entry_without_id(delivery), KILLED, time.monotonic() + 60)
    crashes.record_crash(crash)
    assert ProcessedMessage.objects.get().pk == row.pk


def test_a_claim_that_is_spared_while_its_row_is_locked_is_spared_later(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    processor, row = handle(), claimed(arrived())
    entry, other = entry_of(row, token=str(row.lease_token)), connection.copy()
    with closing(other):
        other.set_autocommit(False)
        with other.cursor() as cursor:  # the transaction of the dead process, whose end the server has yet to notice
            cursor.execute("SELECT 1 FROM messaging_processedmessage WHERE id = %s FOR UPDATE", [row.pk])
        assert not processor.record_crash(entry, None)
        other.rollback()
    assert processor.record_crash(entry, None)
    after = ProcessedMessage.objects.get()
    assert (after.state, after.attempts, after.round) == (State.RETRYING, 0, 2)


@pytest.mark.parametrize("state", [State.FAILED, State.SUPERSEDED])
def test_a_row_that_rested_where_the_inbox_was_set_back_takes_another_attempt(handle: Handle, state: State) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    processor = handle(fail)
    processor.process(arrived(), nothing)
    ProcessedMessage.objects.update(state=state, round=1)
    processor.process(sent(PublishedMessage.objects.get()), nothing)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.attempt_set.count()) == (State.RETRYING, 2, 2)


def test_a_row_that_nobody_held_is_left_alone_once_somebody_does(handle: Handle) -> None:
    claimed(arrived())
    ProcessedMessage.objects.update(lease_token=None, leased_until=None)
    before = ProcessedMessage.objects.get()
    ProcessedMessage.objects.update(lease_token=uuid.uuid4(), leased_until=Now() + timedelta(seconds=60))
    with pytest.raises(AlreadyRecorded):
        failures.send_round(inbox.existing(before), "worker-1", "default")


def test_no_copy_of_a_last_attempt_runs_before_its_death_is_reported(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    handle(fail, max_attempts=2).process(arrived(), nothing)
    retry = sent(PublishedMessage.objects.get())
    row = ProcessedMessage.objects.get()
    place = inbox.existing(row)
    running = handle(max_attempts=2)
    work = Work(retry.envelope, "work", running.route(retry), False, nothing)  # type: ignore[arg-type]
    assert running._attempts._needs_claim(work, place)
    place.claim("default", "worker-0", 60, at_broker=True)  # and dies

    retry.redelivered = True
    assert running.process(retry, nothing).action == "ack"
    assert running.record_crash(entry_of(row, round=2, token=str(place.token)), KILLED)
    row.refresh_from_db()
    assert (row.state, row.attempts, Effect.objects.count()) == (State.FAILED, 2, 0)


class Recorder:
    """A processor that answers as told."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers

    def record_crash(self, entry: Entry, error: Any, since: float | None) -> bool:
        assert since == 5.0
        answer = self.answers[entry.handler].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)


def test_deaths_are_told_of_in_their_order_once_they_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.consuming.deaths.PAUSE", 0.01)
    row, told, stopping = claimed(arrived()), [], threading.Event()
    answers = {"a": [True], "b": [False, False, True], "c": [DatabaseUnavailable("away", "default"), True]}
    reports = [
        {"entry": entry_of(row, handler=name).to_json(), "error": "ProcessDied", "text": "", "since": 5.0}
        for name in answers
    ]
    deaths = Deaths(reports, Recorder(**answers), lambda: told.append(len(told)), stopping)  # type: ignore[arg-type]
    deaths._try_each()
    assert len(told) == 1, "the second is locked"
    deaths.record()
    deaths.finish()
    assert (len(told), answers) == (3, {"a": [], "b": [], "c": []})


# The lost answer to a claim's commit


@pytest.mark.parametrize("message_id", ["", None])
def test_a_claim_whose_commit_was_not_answered_is_gone_on_with(
    handle: Handle, monkeypatch: pytest.MonkeyPatch, message_id: str | None
) -> None:
    claim, lost = Place.claim, list[int]()

    def lose_the_answer(place: Place, *arguments: Any, **options: Any) -> None:
        claim(place, *arguments, **options)
        if not lost:
            lost.append(place.row.pk)
            place.row.pk, place.token = None, None
            raise DatabaseUnavailable("nobody knows", "default")

    monkeypatch.setattr(Place, "claim", lose_the_answer)
    running, acks, delivery = handle(atomic=False), Acks(), arrived(message_id=message_id)
    with pytest.raises(DatabaseUnavailable):
        running.process(delivery, acks)
    assert running.process(delivery, acks).action == "done"
    row = ProcessedMessage.objects.get()
    assert (row.pk, row.state, row.attempts, acks.times) == (lost[0], State.PROCESSED, 1, ["ack"])


def test_a_claim_of_a_first_delivery_without_id_is_gone_on_with_after_an_outage(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed since its connection was stale, so that it is looked at twice; then the database goes away."""
    gone = [True, True]

    def break_once(_: ReceivedMessage) -> None:
        if gone:
            gone.pop()
            raise OperationalError("gone") from OperationalError()

    admit = Processor._admit

    def admit_at_second_look(processor: Processor, work: Any) -> Any:
        if len(gone) == 2:
            gone.pop()
            raise OperationalError("stale") from OperationalError()
        return admit(processor, work)

    monkeypatch.setattr(Processor, "_admit", admit_at_second_look)
    running, delivery = handle(break_once), arrived(message_id=None)
    with monkeypatch.context() as patch:
        patch.setattr("messaging.db.connections.is_up", lambda _: len(gone) != 0)
        with pytest.raises(DatabaseUnavailable):
            running.process(delivery, nothing)
    claimed_row = ProcessedMessage.objects.get()
    assert claimed_row.state == State.PROCESSING
    assert running.process(delivery, nothing).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.pk, row.state, row.attempts) == (claimed_row.pk, State.PROCESSED, 1)


def test_a_waiting_claim_is_gone_on_with_by_one_delivery() -> None:
    claims, token = Claims(15.0, Outages()), uuid.uuid4()
    with pytest.raises(ZeroDivisionError), claims.held(token, "default"):
        raise ZeroDivisionError
    assert claims.is_idle(token)
    assert [claims.take(token), claims.take(token), claims.is_idle(token)] == [True, False, False]


# A way out


def test_content_that_arrives_late_is_kept_whatever_became_of_its_row(handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    processor.record_crash(entry_of(inbox.fresh("default", "work", envelope_of(delivery)).row), KILLED)
    rows, ann = ProcessedMessage.objects.all(), Operator(name="ann")
    assert operations.requeue(rows, ann).done == []
    assert len(operations.discard(rows, ann).done) == 1
    processor.process(delivery, nothing)
    assert rows.get().raw_body == delivery.body
    operations.restore(rows, ann)
    assert len(operations.requeue(rows, ann).done) == 1
    processor.process(sent(PublishedMessage.objects.get()), nothing)
    assert (rows.get().state, Effect.objects.count()) == (State.PROCESSED, 1)


@pytest.mark.parametrize("act", [operations.requeue, operations.discard])
def test_operators_take_what_is_in_processing_once_nobody_holds_it(handle: Handle, act: Any) -> None:
    row = claimed(arrived())
    outcome = act(ProcessedMessage.objects.all(), Operator(name="ann"))
    assert outcome.skipped == {"it is processing": [row.pk]}
    ProcessedMessage.objects.update(leased_until=Now() - timedelta(seconds=1))
    assert act(ProcessedMessage.objects.all(), Operator(name="ann")).done == [row.pk]
    after = ProcessedMessage.objects.get()
    assert (after.round, after.lease_token, after.at_broker) == (2, None, None)
    with pytest.raises(AlreadyRecorded):  # whoever held it
        failures.send_round(inbox.existing(row), "worker-0", "default")
