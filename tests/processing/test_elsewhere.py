"""A message whose row is in another database than its handler's: two databases, and every order of events."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from messaging import Reject, operations
from messaging.consuming.deaths import Deaths
from messaging.db.clock import Now
from messaging.exceptions import DatabaseUnavailable, ProcessDied
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing import durations
from messaging.processing.elsewhere import Elsewhere
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Entry
from messaging.wire.envelope import NONCE
from tests.app.models import Effect
from tests.deliveries import Acks, Arrived, arrived, registered, sent
from tests.other import killed

pytestmark = [
    pytest.mark.usefixtures("second_database"),
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]

OLD, NEW = "default", "other"
BOTH = (OLD, NEW)
State = ProcessedMessage.State
BY = operations.Operator(name="op")


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "DATABASES": list(BOTH)}}


def nothing() -> None:
    pass


def consumer(database: str, function: Callable[[ReceivedMessage], Any] | None = None, **options: Any) -> Processor:
    """A process whose handler lives in one of the databases, and has its effects there."""

    def effect(message: ReceivedMessage) -> None:
        Effect.objects.using(database).create(key=message.id, value=database)

    registry = Registry()
    registered(registry, function or effect, database=database, **{"max_attempts": 9, **options})
    processor = Processor("default", f"in {database}", handlers=registry)
    processor.outages.up_since.update(dict.fromkeys(BOTH, -1e9))
    return processor


def fail(message: ReceivedMessage) -> None:
    raise ValueError("not yet")


def refuse(message: ReceivedMessage) -> None:
    raise Reject("never")


def nothing_of(message: ReceivedMessage) -> None:
    pass


def row(database: str) -> ProcessedMessage:
    return ProcessedMessage.objects.using(database).get()


def states() -> list[str]:
    """What each database has, the old one first."""
    return [
        " ".join(ProcessedMessage.objects.using(name).order_by("pk").values_list("state", flat=True)) for name in BOTH
    ]


def effects() -> list[str]:
    return [one.value for name in BOTH for one in Effect.objects.using(name).order_by("pk")]


def take(database: str) -> list[Arrived]:
    """Send what the outbox of a database holds, as a relay would."""
    rows = list(PublishedMessage.objects.using(database).filter(state="pending").order_by("pk"))
    PublishedMessage.objects.using(database).filter(pk__in=[one.pk for one in rows]).update(
        state="published", due_at=None
    )
    return [sent(one) for one in rows]


def waiting(delivery: Arrived | None = None, *, requeued: bool = False) -> Arrived:
    """A message that failed in the old database, as it comes again; or failed for good, and was requeued."""
    consumer(OLD, refuse if requeued else fail).process(delivery or arrived(), nothing)
    if requeued:
        operations.requeue(ProcessedMessage.objects.using(OLD), BY)
    (again,) = take(OLD)
    return again


def lapse(database: str) -> None:
    """Have every claim run out."""
    ProcessedMessage.objects.using(database).filter(lease_token__isnull=False).update(
        leased_until=Now() - timedelta(seconds=1)
    )


def go_on(processor: Processor, *deliveries: Arrived) -> None:
    """Redeliver these, then all that follows, until nothing is left to do; what is claimed lapses at last."""
    queue = list(deliveries)
    for _ in range(30):
        while queue:
            delivery = queue.pop(0)
            if processor.process(delivery, nothing).action == "set_aside":
                queue.append(again(delivery))
                lapse(OLD)
                lapse(NEW)
        for name in BOTH:
            lapse(name)
        processor.sweep()
        queue = [one for name in BOTH for one in take(name)]
        if not queue:
            return
    raise AssertionError("it goes round for ever")


def again(delivery: Arrived) -> Arrived:
    delivery.redelivered = True
    return delivery


def at_rest() -> bool:
    rows = [one for name in BOTH for one in ProcessedMessage.objects.using(name).all()]
    return all(one.state in (State.PROCESSED, State.SUPERSEDED) for one in rows)


# One database


@pytest.mark.parametrize("kind", ["first", "redelivered", "round", "without id", "batch", "dead", "unknown"])
def test_a_site_with_one_database_pays_nothing(kind: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MESSAGING = {"default": {"URL": "database://"}}
    monkeypatch.setattr(durations, "BRIEF", 3600.0)

    def statements() -> list[str]:
        options: dict[str, Any] = {"batch": 2} if kind == "batch" else {}
        if kind == "unknown":
            options["routing_keys"] = ("other.key",)
        delivery = waiting() if kind == "round" else arrived(message_id=None if kind == "without id" else "")
        delivery.redelivered = kind in ("redelivered", "without id")
        processor = consumer(OLD, lambda message: None, **options)
        with CaptureQueriesContext(connections[OLD]) as queries, CaptureQueriesContext(connections[NEW]) as others:
            if kind == "dead":
                delivery.queue = "work.dead"
                processor.record_dead(delivery)
            elif kind == "batch":
                handler = processor.route(delivery)
                assert handler is not None
                processor.process_batch(handler, [delivery, arrived()])
            else:
                processor.process(delivery, nothing)
        assert not others.captured_queries
        found = [query["sql"].split(" WHERE ")[0][:60] for query in queries.captured_queries]
        return [re.sub(r"\d+_x\d+", "", sql) for sql in found]  # the numbers of savepoints

    statements()  # the first look at the connection's session
    ProcessedMessage.objects.all().delete()
    found = statements()
    for name in ("find", "retire", "move"):
        monkeypatch.setattr(Elsewhere, name, lambda *args, **kwargs: [])
    monkeypatch.setattr(Elsewhere, "knows_any", lambda *args: False)
    ProcessedMessage.objects.all().delete()
    assert found == statements()


def test_a_queue_that_only_one_database_knows_costs_one_look_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.processing.elsewhere.GAINED", 3600.0)
    processor = consumer(NEW)
    with CaptureQueriesContext(connections[OLD]) as queries:
        for _ in range(5):
            processor.process(arrived(), nothing)
    assert len(queries.captured_queries) == 1


# Found elsewhere


@pytest.mark.parametrize("redelivered", [False, True])
def test_what_was_processed_in_one_database_does_not_run_in_another(redelivered: bool) -> None:
    delivery = arrived()
    consumer(OLD).process(delivery, nothing)
    delivery.redelivered = redelivered
    assert consumer(NEW).process(delivery, nothing).action == "ack"
    assert effects() == [OLD]
    assert states() == ["processed", ""]


def test_a_batch_runs_nothing_again_that_another_database_has_processed() -> None:
    done, fresh = arrived(), arrived()
    consumer(OLD).process(done, nothing)

    def effect(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            Effect.objects.using(NEW).create(key=message.id, value=NEW)

    processor = consumer(NEW, effect, batch=10)  # type: ignore[arg-type]
    handler = processor.route(done)
    assert handler is not None
    assert [one.action for one in processor.process_batch(handler, [fresh, done])] == ["ack", "ack"]
    assert effects() == [OLD, NEW]


@pytest.mark.parametrize("requeued", [False, True])
@pytest.mark.parametrize("atomic", [False, True])
def test_what_waits_in_one_database_goes_on_in_another(requeued: bool, atomic: bool) -> None:
    delivery = waiting(requeued=requeued)
    ProcessedMessage.objects.using(OLD).update(derivation=None)
    consumer(NEW, atomic=atomic).process(delivery, nothing)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]
    old, new = row(OLD), row(NEW)
    assert (new.key, new.round, new.attempts) == (old.key, 2, 1 if requeued else 2)
    assert new.derivation is None, "its runs derive ids as they did"
    assert '"other"' in old.error
    assert old.discarded_at is not None, "so that retention finds it"
    assert old.lease_token is None


def test_a_failure_after_the_move_goes_on_counting_and_its_retry_runs_there() -> None:
    delivery = waiting()
    consumer(NEW, fail).process(delivery, nothing)
    assert states() == ["superseded", "retrying"]
    assert (row(NEW).attempts, row(NEW).round) == (2, 3)
    assert Attempt.objects.using(NEW).get().number == 2
    consumer(NEW, fail, max_attempts=3).process(*take(NEW), nothing)
    assert states() == ["superseded", "failed"], "three attempts in all"


def test_the_old_row_is_retired_before_a_long_handlers_message_is_acknowledged() -> None:
    delivery = waiting()
    seen: list[list[str]] = []
    consumer(NEW, atomic=False).process(delivery, lambda: seen.append(states()))
    assert seen == [["superseded", "processing"]]


def test_an_id_that_another_database_has_seen_with_other_content_is_flagged_there() -> None:
    consumer(OLD).process(arrived("one", message_id="a"), nothing)
    consumer(NEW).process(arrived("two", message_id="a"), nothing)
    assert effects() == [OLD]
    assert states() == ["processed failed", ""]
    operations.requeue(ProcessedMessage.objects.using(OLD).failed(), BY)
    consumer(NEW).process(*take(OLD), nothing)
    assert effects() == [OLD, NEW]
    assert states() == ["processed superseded", "processed"]


def test_a_crash_that_another_database_knows_of_is_counted_there_and_the_message_goes_on_here() -> None:
    delivery = arrived()
    killed("processor.handled", lambda: consumer(OLD).process(again(delivery), nothing))
    lapse(OLD)
    processor = consumer(NEW)
    processor.process(delivery, nothing)
    assert states() == ["retrying", ""]
    assert row(OLD).attempts == 1
    go_on(processor)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_a_crash_whose_content_another_database_lacks_gets_it_there() -> None:
    delivery = arrived()
    envelope = delivery.envelope
    ProcessedMessage.objects.using(OLD).create(
        alias="default",
        queue="work",
        key=envelope.key,
        digest=envelope.digest,
        message_id=envelope.message_id,
        state=State.PROCESSING,
        attempts=1,
    )
    processor = consumer(NEW)
    processor.process(again(delivery), nothing)
    assert (row(OLD).state, row(OLD).raw_body) == (State.RETRYING, delivery.body)
    go_on(processor)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_what_another_database_runs_is_left_to_it() -> None:
    delivery = arrived()
    killed("processor.claimed", lambda: consumer(OLD).process(again(delivery), nothing))
    assert consumer(NEW).process(delivery, nothing).action == "ack"
    assert effects() == []
    assert states() == ["processing", ""], "its claim ends it, or is swept up"


def test_an_old_copy_of_what_waits_elsewhere_does_not_run() -> None:
    delivery = arrived()
    waiting(delivery)
    assert consumer(NEW).process(delivery, nothing).action == "ack"
    assert states() == ["retrying", ""]


# Handlers that are found later


def test_a_message_without_a_handler_goes_on_in_the_database_of_the_handler_that_is_found_later() -> None:
    delivery = arrived(routing_key="job.late")
    consumer(OLD, routing_keys=("job.x",)).process(delivery, nothing)
    assert states() == ["retrying", ""]
    operations.requeue(ProcessedMessage.objects.using(OLD), BY)
    consumer(NEW, routing_keys=("job.late",)).process(*take(OLD), nothing)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_a_message_whose_handler_is_gone_goes_round_where_it_is_recorded() -> None:
    consumer(NEW, fail, routing_keys=("work.do",)).process(arrived(), nothing)
    consumer(NEW, routing_keys=("job.x",)).process(*take(NEW), nothing)
    assert states() == ["", "retrying"]


# Dead letters and messages without ids


def dead(delivery: Arrived) -> Arrived:
    """A delivery as the broker gives it up."""
    keys = [delivery.routing_key]
    death = {"queue": "work", "reason": "expired", "exchange": delivery.exchange, "routing-keys": keys}
    properties = delivery.properties.edited(drop_headers=frozenset(), add_headers={"x-death": [death]})
    return Arrived("work.dead", "", "work.dead", properties, delivery.body)


def test_a_dead_letter_fails_where_it_is_recorded_and_runs_where_its_handler_is() -> None:
    delivery = waiting()
    processor = consumer(NEW)
    letter = dead(delivery)
    assert processor.record_dead(letter).action == "ack"
    assert states() == ["failed", ""]
    operations.requeue(ProcessedMessage.objects.using(OLD), BY)
    go_on(processor)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_a_dead_letter_of_what_another_database_processed_changes_nothing() -> None:
    delivery = arrived()
    consumer(OLD).process(delivery, nothing)
    assert consumer(NEW).record_dead(dead(delivery)).action == "ack"
    assert states() == ["processed", ""]


def test_a_dead_letter_of_what_has_moved_on_fails_where_it_is_now() -> None:
    delivery = waiting()
    consumer(NEW, fail).process(delivery, nothing)
    consumer(OLD).record_dead(dead(*take(NEW)))
    assert states() == ["superseded", "failed"]


def test_a_message_without_id_whose_worker_died_elsewhere_is_counted_there_and_goes_on_here() -> None:
    delivery = again(arrived(message_id=None))
    killed("processor.claimed", lambda: consumer(OLD).process(delivery, nothing))
    processor = consumer(NEW)
    assert processor.process(delivery, nothing).action == "set_aside", "perhaps its own last run"
    lapse(OLD)
    assert processor.process(delivery, nothing).action == "ack"
    assert states() == ["retrying", ""]
    go_on(processor)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_a_dead_letter_without_id_belongs_to_the_claim_that_another_database_has() -> None:
    delivery = again(arrived(message_id=None))
    killed("processor.claimed", lambda: consumer(OLD).process(delivery, nothing))
    lapse(OLD)
    letter = dead(delivery)
    consumer(NEW).record_dead(letter)
    assert states() == ["failed", ""]


def test_a_crash_without_id_is_counted_where_its_message_has_come_again_since() -> None:
    delivery, since = again(arrived(message_id=None)), time.monotonic() - 60
    key, digest = str(uuid.uuid4()), str(delivery.envelope.digest)
    entry = Entry("default", "work", key, digest, 1, "", OLD, "tests.die", 1_700_000_000.0)
    processor = consumer(NEW, fail)
    processor.process(delivery, nothing)
    for _ in range(2):
        assert processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"), since)
    assert states() == ["", "retrying"]
    assert row(NEW).attempts == 2


# Killed between any two commits


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("then", ["comes again", "is gone", "comes to the old one"])
@pytest.mark.parametrize("point", ["processor.claimed", "processor.moved", "processor.handled", "processor.committed"])
def test_killed_while_it_moves_a_message_runs_once_and_rests(point: str, then: str, atomic: bool) -> None:
    delivery = waiting(requeued=then == "is gone")
    killed(point, lambda: consumer(NEW, atomic=atomic).process(delivery, nothing))
    # Without a transaction, what was killed after its work runs again: the guide says so.
    expected = 2 if not atomic and point == "processor.handled" else 1
    if then == "comes again":
        go_on(consumer(NEW), again(delivery))
    elif then == "is gone":  # a purged queue, or one whose message was acknowledged
        processor = consumer(NEW)
        go_on(processor)
        if not at_rest():
            for name in BOTH:
                operations.requeue(ProcessedMessage.objects.using(name).filter(state="retrying"), BY)
            go_on(processor)
    else:
        old = consumer(OLD)
        go_on(old, again(delivery))
        go_on(consumer(NEW))
    assert len(effects()) == expected
    assert at_rest(), states()


def test_killed_before_the_old_row_was_retired_the_next_copy_retires_it() -> None:
    delivery = waiting()
    killed("processor.claimed", lambda: consumer(NEW).process(delivery, nothing))
    assert states() == ["retrying", "processing"]
    assert consumer(NEW).process(again(delivery), nothing).action == "ack"
    assert states() == ["superseded", "processing"], "a claim is durable: it ends, or is swept up"


# An operator, meanwhile


@pytest.mark.parametrize("verb", [operations.requeue, operations.discard])
def test_what_an_operator_does_to_the_old_row_meanwhile_stands(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery, processor = waiting(), consumer(NEW)
    retire = Elsewhere.retire

    def meanwhile(self: Elsewhere, rows: Any, database: str) -> None:
        monkeypatch.undo()
        assert verb(ProcessedMessage.objects.using(OLD), BY).done
        retire(self, rows, database)

    monkeypatch.setattr(Elsewhere, "retire", meanwhile)
    assert processor.process(delivery, nothing).action == "set_aside"
    assert effects() == [], "whoever changes the old row first has it"
    assert processor.process(again(delivery), nothing).action == "ack"
    assert effects() == [], "it is an old copy now"
    if verb is operations.discard:
        assert states() == ["discarded", "superseded"]
        operations.restore(ProcessedMessage.objects.using(OLD), BY)
        operations.requeue(ProcessedMessage.objects.using(OLD), BY)
    assert states() == ["requeued", "superseded"]
    go_on(processor)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


def test_what_an_operator_laid_aside_after_its_claimant_died_stays_laid_aside() -> None:
    delivery, processor = waiting(), consumer(NEW)
    killed("processor.claimed", lambda: consumer(NEW).process(delivery, nothing))
    assert operations.discard(ProcessedMessage.objects.using(OLD), BY).done
    lapse(NEW)
    go_on(processor)
    assert effects() == []
    assert states() == ["discarded", "superseded"]


# Moved back, and the old consumer beside the new one


def test_a_handler_that_moves_back_and_forth_takes_its_messages_along() -> None:
    delivery = waiting()
    for database in (NEW, OLD, NEW, OLD):
        consumer(database, fail).process(delivery, nothing)
        other = OLD if database == NEW else NEW
        assert (row(database).state, row(other).state) == (State.RETRYING, State.SUPERSEDED)
        (delivery,) = take(database)
    assert row(OLD).attempts == 5
    assert row(OLD).round == 6
    consumer(NEW).process(delivery, nothing)
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


@pytest.mark.parametrize("point", ["processor.claimed", "processor.moved", "processor.handled", "processor.committed"])
def test_killed_while_it_moves_back_a_message_runs_once_and_rests(point: str) -> None:
    consumer(NEW, fail).process(waiting(), nothing)
    (delivery,) = take(NEW)
    killed(point, lambda: consumer(OLD).process(delivery, nothing))
    go_on(consumer(OLD), again(delivery))
    go_on(consumer(NEW))
    assert len(effects()) == 1
    assert at_rest(), states()


@pytest.mark.parametrize("kind", ["first", "round"])
def test_what_the_old_consumer_is_running_is_not_run_by_the_new_one(kind: str) -> None:
    if connections[OLD].vendor == "sqlite":
        pytest.skip("needs row locks")
    consumer(OLD, nothing_of).process(arrived(), nothing)
    delivery = waiting() if kind == "round" else arrived()
    copy = Arrived(**{**vars(delivery), "redelivered": True})
    begun, go = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        begun.set()
        assert go.wait(60)
        Effect.objects.using(OLD).create(key=message.id, value=OLD)

    def run() -> None:
        try:
            consumer(OLD, slow).process(delivery, nothing)
        finally:
            connections.close_all()

    thread, processor = threading.Thread(target=run), consumer(NEW)
    thread.start()
    assert begun.wait(60)
    try:
        assert processor.process(copy, nothing).action == "set_aside"
    finally:
        go.set()
        thread.join(60)
    assert processor.process(copy, nothing).action == "ack"
    assert effects() == [OLD]
    assert not ProcessedMessage.objects.using(NEW).exclude(state="superseded").exists()


def test_what_both_consumers_have_claimed_one_of_them_runs() -> None:
    delivery = waiting()
    old, new = consumer(OLD), consumer(NEW)
    copies = [again(delivery), sent(PublishedMessage.objects.using(OLD).get(), redelivered=True)]
    killed("processor.claimed", lambda: new.process(copies[0], nothing))
    ProcessedMessage.objects.using(NEW).update(leased_until=Now() + timedelta(seconds=60))
    assert old.process(copies[1], nothing).action == "set_aside", "it may be running there"
    lapse(NEW)
    assert old.process(copies[1], nothing).action == "ack"
    assert effects() == [OLD]
    assert states() == ["processed", "superseded"]


def test_two_processes_cannot_take_a_message_over_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = waiting()
    old, new = consumer(OLD), consumer(NEW)
    mine, theirs = again(delivery), sent(PublishedMessage.objects.using(OLD).get(), redelivered=True)
    retire = Elsewhere.retire

    def meanwhile(self: Elsewhere, rows: Any, database: str) -> None:
        monkeypatch.undo()
        assert old.process(theirs, nothing).action == "set_aside"
        retire(self, rows, database)

    monkeypatch.setattr(Elsewhere, "retire", meanwhile)
    new.process(mine, nothing)
    assert sorted(states()).count("superseded") < 2
    go_on(new, mine)
    go_on(old, theirs)
    go_on(new)
    assert len(effects()) == 1
    assert at_rest(), states()


# A database that is away


class Away:
    """One of the databases cannot be reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
        def refuse_all(*args: Any) -> Any:
            raise OperationalError("it is away")

        self._stack = monkeypatch
        monkeypatch.setattr("messaging.db.connections.is_up", lambda name: name != database)
        wrapper = connections[database].execute_wrapper(refuse_all)
        wrapper.__enter__()
        self._wrapper = wrapper

    def end(self) -> None:
        self._wrapper.__exit__(None, None, None)
        self._stack.undo()


@pytest.mark.parametrize("kind", ["first", "redelivered", "round", "dead", "batch"])
def test_with_the_other_database_away_what_it_may_know_is_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = waiting() if kind == "round" else arrived(redelivered=kind == "redelivered")
    processor = consumer(NEW, **({"batch": 2} if kind == "batch" else {}))
    handler = processor.route(delivery)
    assert handler is not None
    act: dict[str, Callable[[], object]] = {
        "dead": lambda: processor.record_dead(dead(delivery)),
        "batch": lambda: processor.process_batch(handler, [delivery, arrived()]),
    }
    away = Away(monkeypatch, OLD)
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            act.get(kind, lambda: processor.process(delivery, nothing))()
    finally:
        away.end()
    assert caught.value.database == OLD
    assert effects() == []
    assert states()[1] == ""


def test_a_database_that_held_nothing_of_a_queue_does_not_hold_it_up_when_it_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = consumer(NEW)
    processor.process(arrived(), nothing)
    monkeypatch.setattr("messaging.processing.elsewhere.GAINED", -1.0)
    processor._station.elsewhere._held.clear()
    processor.process(arrived(), nothing)
    away = Away(monkeypatch, OLD)
    try:
        assert processor.process(arrived(), nothing).action == "ack"
    finally:
        away.end()


def test_a_database_that_goes_away_before_the_old_row_is_retired_keeps_the_message_from_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delivery, processor, acks = waiting(), consumer(NEW, atomic=False), Acks()
    retire, found = Elsewhere.retire, []

    def meanwhile(self: Elsewhere, rows: Any, database: str) -> None:
        found.append(Away(monkeypatch, OLD))
        retire(self, rows, database)

    with monkeypatch.context() as patch:
        patch.setattr(Elsewhere, "retire", meanwhile)
        with pytest.raises(DatabaseUnavailable) as caught:
            processor.process(delivery, acks)
    found[0].end()
    assert caught.value.database == OLD
    assert (acks.times, effects()) == ([], [])
    assert processor.process(again(delivery), acks).action == "done"
    assert effects() == [NEW]
    assert states() == ["superseded", "processed"]


# Reports of crashes


def test_a_crash_after_the_move_is_counted_where_it_ran() -> None:
    delivery, processor = waiting(), consumer(NEW, fail)
    killed("processor.rolled_back", lambda: processor.process(delivery, nothing))
    claim = row(NEW)
    entry = Entry(
        alias="default",
        queue="work",
        key=str(claim.key),
        digest=str(claim.digest),
        round=claim.round,
        message_id=claim.message_id,
        database=NEW,
        handler="tests.die",
        started=1_700_000_000.0,
        token=str(claim.lease_token),
    )
    processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"))
    assert states() == ["superseded", "retrying"]
    assert row(NEW).attempts == 2


def died_before_it_was_recorded(delivery: Arrived) -> Entry:
    """What the ledger has of a message whose process is killed in the old database's handler at its first delivery."""
    killed("processor.handled", lambda: consumer(OLD).process(delivery, nothing))
    envelope = delivery.envelope
    key, digest, message_id = str(envelope.key or uuid.uuid4()), str(envelope.digest), envelope.message_id
    return Entry("default", "work", key, digest, 1, message_id, OLD, "tests.die", 1_700_000_000.0)


@pytest.mark.parametrize("ends", [True, False])
def test_a_crash_is_counted_where_its_message_has_come_again_since(ends: bool) -> None:
    delivery, since = arrived(), time.monotonic()
    entry = died_before_it_was_recorded(delivery)
    assert states() == ["", ""]
    processor = consumer(NEW, None if ends else fail)
    processor.process(again(delivery), nothing)
    for _ in range(2):
        assert processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"), since)
    assert states() == ["", "processed" if ends else "retrying"]
    assert row(NEW).attempts == (1 if ends else 2)
    go_on(consumer(NEW))
    assert effects() == [NEW]


def test_a_crash_that_was_counted_counts_once_though_its_handler_moves_back() -> None:
    delivery, since = arrived(), time.monotonic()
    entry, error = died_before_it_was_recorded(delivery), ProcessDied("killed by signal 9 (SIGKILL)")
    there = consumer(NEW, fail)
    there.process(again(delivery), nothing)
    assert there.record_crash(entry, error, since)
    (retry,) = take(NEW)
    back = consumer(OLD, fail)
    back.process(retry, nothing)
    assert states() == ["retrying", "superseded"]
    assert back.record_crash(entry, error, since)
    assert row(OLD).attempts == 3


@pytest.mark.parametrize("away", BOTH)
@pytest.mark.parametrize("message_id", ["", None])
def test_a_crash_waits_for_the_database_that_is_away(
    message_id: str | None, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    since, processor = time.monotonic(), consumer(NEW)
    entry = died_before_it_was_recorded(arrived(message_id=message_id))
    gone = Away(monkeypatch, away)
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"), since)
    finally:
        gone.end()
    assert caught.value.database == away
    assert processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"), since)
    assert row(OLD).attempts == 1


def test_a_crash_is_recorded_where_the_connection_to_its_own_database_broke_meanwhile() -> None:
    if connections[OLD].vendor != "postgresql":
        pytest.skip("has no server that ends a session")
    since, processor = time.monotonic(), consumer(NEW)
    entry = died_before_it_was_recorded(arrived())
    with connections[OLD].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    with connections[NEW].cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert processor.record_crash(entry, ProcessDied("killed by signal 9 (SIGKILL)"), since)
    assert row(OLD).attempts == 1


def test_a_death_waits_beside_the_work_for_a_database_that_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, stopping, told = consumer(NEW), threading.Event(), threading.Event()
    entry = died_before_it_was_recorded(arrived())
    report = {"entry": entry.to_json(), "error": "ProcessDied", "text": "killed", "since": time.monotonic()}
    deaths, gone = Deaths([report], processor, told.set, stopping), Away(monkeypatch, NEW)  # for this thread
    held_up = threading.Timer(120, stopping.set)
    held_up.start()
    try:
        deaths.record()
        assert not stopping.is_set(), "it kept the work from beginning"
    finally:
        held_up.cancel()
        gone.end()
    assert told.wait(120)
    deaths.finish()
    assert row(OLD).attempts == 1


@pytest.mark.mode(64)
@pytest.mark.parametrize("unknown", [False, True])
def test_a_round_is_recognised_by_its_row_whichever_database_has_it(settings: Settings, unknown: bool) -> None:
    """By the processor where there is a handler, and by what records a message without one."""
    again = waiting()
    forged = Arrived(again.queue, "", again.routing_key, again.properties, again.body)
    forged.properties = again.properties.edited(add_headers={NONCE: "0" * 32})
    settings.SECRET_KEY = "another"
    at_new = consumer(NEW, routing_keys=("something.else",) if unknown else ())
    at_new.process(forged, nothing)
    assert states()[0].startswith("retrying"), "it is a stranger's, which ends on its own"
    at_new.process(again, nothing)
    if unknown:
        assert [one.attempts for one in ProcessedMessage.objects.filter(routing_key="work.do")] == [2]
    else:
        assert states()[0].startswith("superseded")
        assert "processed" in states()[1]
        assert len(effects()) == 1
