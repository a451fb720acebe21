"""The processor, on a real database: what runs, what is recorded, and what never happens twice."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from messaging import Reject, Retry, apublish, publish
from messaging.db.clock import Now
from messaging.exceptions import HandlerTimeout, ProcessDied, WireError
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from messaging.signals import message_processed
from messaging.supervising.ledger import Entry
from messaging.testing.draining import Arrival
from messaging.wire import envelope as envelope_module
from messaging.wire.envelope import DIED, Envelope
from tests.app.models import Effect
from tests.deliveries import Acks, Arrived, arrived, envelope_of, in_a_thread, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
Handle = Callable[..., Processor]


def effect(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.id, value=str(message.payload))


def ignore(message: ReceivedMessage) -> None:
    pass


def nothing() -> None:
    pass


@pytest.fixture
def handle() -> Handle:
    """Builds a processor with one handler."""

    def build(function: Callable[..., Any] = effect, **options: Any) -> Processor:
        registry = Registry()
        registered(registry, function, **options)
        return Processor("default", "worker-1", handlers=registry)

    return build


def only_row() -> ProcessedMessage:
    return ProcessedMessage.objects.get()


def next_round() -> PublishedMessage:
    return PublishedMessage.objects.get(state="pending")


def test_a_message_is_processed_and_recorded_in_one_row(handle: Handle) -> None:
    delivery = arrived({"order": 17}, headers={"tenant": "a"})
    assert handle().process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round, row.queue) == (State.PROCESSED, 1, 1, "work")
    assert row.message_id == delivery.properties.message_id
    assert row.headers == {"tenant": "a"}
    assert row.raw_body == delivery.body
    assert row.processed_at is not None
    assert Effect.objects.get().value == "{'order': 17}"
    assert Attempt.objects.count() == 0


def test_the_same_message_twice_has_one_effect(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    for redelivered in (False, True, False):
        delivery.redelivered = redelivered
        assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 1
    assert ProcessedMessage.objects.count() == 1


def test_messages_without_ids_are_not_deduped(handle: Handle) -> None:
    processor = handle()
    for _ in range(2):
        processor.process(arrived("Hello World", message_id=None), nothing)
    assert Effect.objects.count() == 2


def test_an_id_reused_for_other_content_is_kept_and_flagged(handle: Handle) -> None:
    processor = handle()
    processor.process(arrived("one", message_id="a"), nothing)
    for _ in range(2):  # its redelivery adds nothing
        assert processor.process(arrived("two", message_id="a"), nothing).action == "ack"
    assert Effect.objects.count() == 1
    flagged = ProcessedMessage.objects.get(state=State.FAILED)
    assert flagged.raw_body == b"two"
    assert "used before" in flagged.error


@pytest.mark.parametrize("ids", [("id", "ID"), ("a", "a "), ("\udcff", "\udcfe"), ("x" * 255, "x" * 254 + "y")])
def test_ids_that_a_collation_might_equate_are_different(handle: Handle, ids: tuple[str, str]) -> None:
    processor = handle(ignore)
    for identity in ids:
        processor.process(arrived("same", message_id=identity), nothing)
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 2


def test_a_failure_rolls_back_and_schedules_a_round(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        effect(message)
        publish("never", "sent")
        raise ValueError("no such order")

    delivery = arrived()
    assert handle(fail).process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    assert row.error == "ValueError: no such order"
    assert Effect.objects.count() == 0
    attempt = Attempt.objects.get()
    assert (attempt.number, attempt.round, attempt.exception_type) == (1, 1, "ValueError")
    assert "raise ValueError" in attempt.traceback
    assert "messaging/processing/processor.py" not in attempt.traceback
    retry = next_round()
    assert (retry.queue, retry.round, retry.inbox_id, retry.message_id) == ("work", 2, row.pk, row.message_id)
    assert timedelta(seconds=9) < retry.publish_at - retry.created_at < timedelta(seconds=11)


def test_a_retry_shows_the_original_message_to_the_byte(handle: Handle) -> None:
    seen: list[ReceivedMessage] = []

    def fail_once(message: ReceivedMessage) -> None:
        seen.append(message)
        if message.attempt == 1:
            raise ValueError

    processor = handle(fail_once)
    delivery = arrived(
        b"\x00\xff",
        routing_key="orders.\udcff",
        headers={"pi": 3.25, "CC": ["other"], "nested": {"a": [1, None, True]}},
        reply_to="answers",
        user_id="guest",
        expiration="60000",
    )
    processor.process(delivery, nothing)
    again = sent(next_round())
    assert (again.exchange, again.routing_key) == ("", "work")
    assert again.properties.expiration is None
    assert again.properties.user_id is None
    processor.process(again, nothing)
    first, second = seen
    assert (second.exchange, second.routing_key) == ("messaging", "orders.\udcff")
    assert second.headers == {"pi": 3.25, "nested": {"a": [1, None, True]}}
    assert (second.body, second.reply_to, second.attempt, second.round) == (first.body, "answers", 2, 2)
    assert only_row().state == State.PROCESSED
    assert only_row().attempts == 2


def test_it_rests_as_failed_after_max_attempts(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise SystemExit(1)

    processor, delivery = handle(fail), arrived()
    processor.process(delivery, nothing)
    for _ in range(2):
        retry = next_round()
        PublishedMessage.objects.update(state="published", due_at=None)
        processor.process(sent(retry), nothing)
    row = only_row()
    assert (row.state, row.attempts) == (State.FAILED, 3)
    assert row.failed_at is not None
    assert list(row.attempt_set.values_list("number", flat=True)) == [1, 2, 3]
    assert not PublishedMessage.objects.filter(state="pending").exists()


def test_an_old_copy_beside_its_pending_retry_does_not_run(handle: Handle) -> None:
    runs: list[int] = []

    def fail(message: ReceivedMessage) -> None:
        runs.append(message.round)
        raise ValueError

    processor, delivery = handle(fail), arrived()
    processor.process(delivery, nothing)
    delivery.redelivered = True
    assert processor.process(delivery, nothing).action == "ack"
    assert runs == [1]
    assert only_row().attempts == 1


def test_a_jump_of_the_hosts_clock_moves_no_time_of_an_attempt(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    real = time.time

    def jump(message: ReceivedMessage) -> None:
        hours = 3 if message.payload == "fail" else -3
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
        if message.payload == "fail":
            raise RuntimeError

    receive = lambda duration, **_: told.append(duration)  # noqa: E731
    message_processed.connect(receive, weak=False)
    try:
        processor = handle(jump)
        processor.process(arrived("fail"), nothing)
        processor.process(arrived("fine"), nothing)
    finally:
        message_processed.disconnect(receive)
    assert 0 < told[0] < 60
    attempt = Attempt.objects.get()
    assert attempt.started_at is not None
    assert timedelta(0) <= attempt.ended_at - attempt.started_at < timedelta(seconds=60)


def test_reject_fails_at_once_and_retry_names_its_pause(handle: Handle) -> None:
    def refuse(message: ReceivedMessage) -> None:
        if message.payload == "reject":
            raise Reject("unknown customer")
        raise Retry("later", after=3600)

    processor = handle(refuse)
    processor.process(arrived("reject"), nothing)
    assert only_row().state == State.FAILED
    assert only_row().error == "unknown customer"
    ProcessedMessage.objects.all().delete()
    processor.process(arrived("retry"), nothing)
    assert next_round().publish_at - next_round().created_at > timedelta(seconds=3500)


def swallow_error(message: ReceivedMessage) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM there_is_no_such_table")
    except Exception:  # noqa: BLE001  swallowing it is the point
        pass


def roll_back(message: ReceivedMessage) -> None:
    effect(message)
    transaction.set_rollback(True)


def close_connection(message: ReceivedMessage) -> None:
    effect(message)
    connection.close()


@pytest.mark.parametrize("leave", [roll_back, close_connection])
def test_a_handler_that_leaves_its_transaction_rolled_back_has_failed(handle: Handle, leave: Any) -> None:
    assert handle(leave).process(arrived(), nothing).action == "ack"
    row = only_row()
    assert row.state == State.RETRYING
    assert row.exception_type == "messaging.exceptions.CommitNotProven"
    assert Effect.objects.count() == 0


def test_a_swallowed_database_error_is_a_failed_attempt(handle: Handle) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL breaks the whole transaction")
    handle(swallow_error).process(arrived(), nothing)
    assert only_row().state == State.RETRYING


def test_a_commit_hook_that_raises_comes_after_the_commit(handle: Handle, caplog: pytest.LogCaptureFixture) -> None:
    def hooked(message: ReceivedMessage) -> None:
        def explode() -> None:
            raise RuntimeError("mail server away")

        effect(message)
        transaction.on_commit(explode)

    assert handle(hooked).process(arrived(), nothing).action == "ack"
    assert only_row().state == State.PROCESSED
    assert Effect.objects.count() == 1
    assert "mail server away" in caplog.text


def test_an_async_handler_stays_in_the_transaction(handle: Handle) -> None:
    async def work(message: ReceivedMessage) -> None:
        await asyncio.sleep(0)
        await Effect.objects.acreate(key=message.id)
        await apublish("effects.done", "x")
        if message.attempt == 1:
            raise ValueError("first")

    processor = handle(work)
    processor.process(arrived(), nothing)
    assert Effect.objects.count() == 0
    assert not PublishedMessage.objects.filter(routing_key="effects.done").exists()
    processor.process(sent(next_round()), nothing)
    assert Effect.objects.count() == 1
    assert PublishedMessage.objects.get(routing_key="effects.done").causation_id == only_row().message_id


def test_an_unknown_routing_key_goes_round_until_its_attempts_are_spent() -> None:
    """By the shortest back-off of the queue's handlers, as often as the most patient one and `RETRY` allow."""
    registry = Registry()
    registered(registry, effect, routing_keys=("work.do",), backoff=30, max_attempts=2)
    registered(registry, ignore, routing_keys=("work.more",), backoff=lambda attempt: 7 * attempt, max_attempts=9)
    processor = Processor("default", "worker-1", handlers=registry)
    delivery, pauses = arrived(routing_key="work.other"), []
    for attempt in range(1, 10):
        assert processor.process(delivery, nothing).action == "ack"
        assert only_row().attempts == attempt
        assert "No handler of the queue 'work' takes the routing key 'work.other'" in only_row().error
        if attempt < 9:
            assert only_row().state == State.RETRYING
            retry = next_round()
            pauses.append((retry.publish_at - retry.created_at).total_seconds())
            delivery = sent(retry)
            PublishedMessage.objects.update(state="published", due_at=None)
    assert only_row().state == State.FAILED
    assert pauses == pytest.approx([7, 14, 21, 28, 30, 30, 30, 30], rel=0.11), "but for their jitter"
    assert Attempt.objects.filter(exception_type="messaging.exceptions.HandlerNotFound").count() == 9


def test_a_version_that_knows_the_routing_key_processes_what_another_one_did_not(handle: Handle) -> None:
    old = handle(effect, routing_keys=("work.do",))
    new = handle(effect, routing_keys=("work.do", "work.other"))
    for message_id in ("with an id", None):
        old.process(arrived(routing_key="work.other", message_id=message_id), nothing)
        again = sent(next_round())
        PublishedMessage.objects.update(state="published", due_at=None)
        new.process(again, nothing)
    assert set(ProcessedMessage.objects.values_list("state", "attempts")) == {(State.PROCESSED, 2)}
    assert Effect.objects.count() == 2


def test_broken_headers_become_failed_rows(handle: Handle) -> None:
    processor = handle()
    whole = arrived(headers={"a": 1})
    broken = Properties_with_problem(whole)
    assert processor.process(broken, nothing).action == "ack"
    assert only_row().state == State.FAILED
    assert "cannot be read" in only_row().error


def Properties_with_problem(delivery: Arrived) -> Arrived:  # noqa: N802
    import struct

    from messaging.wire.properties import Properties

    table = b"\x04goodS\x00\x00\x00\x02ok\x03badZ\x00"
    delivery.properties = Properties.decode(struct.pack(">HI", 1 << 13, len(table)) + table)
    assert delivery.properties.problem
    return delivery


def test_a_body_that_is_not_what_it_says_is_a_failed_row(handle: Handle) -> None:
    handle().process(arrived(b"{broken", content_type="application/json"), nothing)
    row = only_row()
    assert row.state == State.FAILED
    assert "not valid JSON" in row.error


def test_a_redelivered_message_is_claimed_before_it_runs(handle: Handle) -> None:
    seen: list[str] = []

    def look(message: ReceivedMessage) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT state FROM messaging_processedmessage")
            seen.append(cursor.fetchone()[0])

    handle(look).process(arrived(redelivered=True), nothing)
    assert seen in (["processing"], ["processed"])
    assert only_row().state == State.PROCESSED
    assert only_row().lease_token is None


def test_a_live_claim_owns_its_message(handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    ProcessedMessage.objects.create(**claim_of(delivery), leased_until=Now() + timedelta(seconds=60))
    assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 0
    assert only_row().state == State.PROCESSING


def claim_of(delivery: Arrived) -> dict[str, Any]:
    import uuid

    envelope = envelope_of(delivery)
    assert envelope.key is not None
    return {
        "alias": "default",
        "queue": delivery.queue,
        "key": envelope.key,
        "digest": envelope.digest,
        "message_id": envelope.message_id,
        "state": State.PROCESSING,
        "lease_token": uuid.uuid4(),
        "wire": envelope.to_wire(),
        "body": delivery.body.decode(),
        "worker": "worker-0",
    }


def test_an_expired_claim_is_a_crash_and_counts(handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    ProcessedMessage.objects.create(**claim_of(delivery), leased_until=Now() - timedelta(seconds=60))
    processor.outages.up_since["default"] = -1e9
    assert processor.process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    assert row.attempt_set.get().crashed
    assert Effect.objects.count() == 0


def test_the_sweep_sends_abandoned_claims_round_again_once(handle: Handle) -> None:
    processor = handle()
    for _ in range(2):
        ProcessedMessage.objects.create(**claim_of(arrived()), leased_until=Now() - timedelta(seconds=1))
    assert processor.sweep() == 0, "the leases tell nothing before the database was up for a whole lease"
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 2
    assert processor.sweep() == 0
    assert PublishedMessage.objects.pending().count() == 2


def entry_of(delivery: Arrived, **changes: Any) -> Entry:
    claim = claim_of(delivery)
    values: dict[str, Any] = {
        "alias": "default",
        "queue": delivery.queue,
        "key": str(claim["key"]),
        "digest": str(claim["digest"]),
        "round": 1,
        "message_id": claim["message_id"],
        "database": "default",
        "handler": "tests.effect",
        "started": 1_700_000_000.0,
    }
    return Entry(**{**values, **changes})


def test_a_crash_on_a_first_delivery_counts_and_its_redelivery_goes_round_again(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    processor.record_crash(entry_of(delivery), ProcessDied("killed by signal 9 (SIGKILL)"))
    row = only_row()
    assert (row.state, row.attempts, row.lease_token) == (State.PROCESSING, 1, None)
    delivery.redelivered = True
    assert processor.process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round, row.raw_body) == (State.RETRYING, 1, 2, delivery.body)
    assert "signal 9" in row.error
    assert Attempt.objects.count() == 1
    processor.process(sent(next_round()), nothing)
    assert only_row().state == State.PROCESSED
    assert only_row().attempts == 2


def test_a_retry_after_a_crash_says_so_until_it_ends_otherwise(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        assert DIED not in message.headers
        raise ValueError

    processor, delivery = handle(fail), arrived()
    processor.record_crash(entry_of(delivery), ProcessDied("killed"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    again = sent(next_round())
    assert DIED in again.properties.headers, "the release before asks the header"
    PublishedMessage.objects.update(state="published", due_at=None)
    processor.process(again, nothing)
    assert DIED not in sent(next_round()).properties.headers


def test_a_time_limit_that_ended_a_first_delivery_is_named(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    processor.record_crash(entry_of(delivery), HandlerTimeout("ran longer than its timeout of 1 s"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    assert only_row().exception_type == "messaging.exceptions.HandlerTimeout"
    assert DIED not in sent(next_round()).properties.headers


def test_a_claim_that_ended_on_another_one_s_account_spends_no_attempt(handle: Handle) -> None:
    processor, delivery = handle(atomic=False), arrived()
    claim = claim_of(delivery)
    ProcessedMessage.objects.create(**claim, leased_until=Now() + timedelta(seconds=60))
    for token in (uuid.uuid4(), claim["lease_token"], claim["lease_token"]):
        processor.record_crash(entry_of(delivery, token=str(token)), None)
    assert (only_row().state, only_row().attempts, only_row().round) == (State.RETRYING, 0, 2)
    assert Attempt.objects.count() == 0
    processor.process(sent(next_round()), nothing)
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)


def test_a_message_without_id_adopts_its_own_crash(handle: Handle) -> None:
    processor, delivery = handle(ignore), arrived(message_id=None)
    import uuid

    envelope = envelope_of(delivery)
    entry = Entry(
        alias="default",
        queue="work",
        key=str(uuid.uuid4()),
        digest=str(envelope.digest),
        round=1,
        message_id="",
        database="default",
        handler="x",
        started=1.0,
    )
    processor.record_crash(entry, ProcessDied("killed"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    assert only_row().state == State.RETRYING
    processor.process(sent(next_round()), nothing)
    assert only_row().state == State.PROCESSED


def test_a_crash_of_a_retry_counts_and_goes_round_again(handle: Handle) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    processor, delivery = handle(fail), arrived()
    processor.process(delivery, nothing)
    processor.record_crash(entry_of(delivery, round=2), ProcessDied("killed"))
    row = only_row()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 2, 3)


def test_a_crash_report_about_a_processed_message_changes_nothing(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    processor.process(delivery, nothing)
    processor.record_crash(entry_of(delivery), ProcessDied("killed after the commit"))
    assert only_row().state == State.PROCESSED
    assert Attempt.objects.count() == 0


def test_a_long_handler_is_acknowledged_once_its_claim_is_durable(handle: Handle) -> None:
    acks = Acks()
    seen: list[tuple[str, int]] = []

    def long(message: ReceivedMessage) -> None:
        seen.append((only_row().state, len(acks.times)))
        assert not connection.in_atomic_block
        effect(message)

    settlement = handle(long, atomic=False).process(arrived(), acks)
    assert settlement.action == "done"
    assert seen == [(State.PROCESSING, 1)]
    assert only_row().state == State.PROCESSED


def test_a_long_handler_that_runs_again_does_not_publish_twice(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("effects.first", {"attempt": message.attempt}, message_id=f"{message.id}-first")
        publish("effects.second", "same", headers={"a": 1, "b": b"2"})
        publish("effects.second", "same", headers={"b": b"2", "a": 1})
        publish("effects.second", "another")
        if message.attempt == 1:
            raise ValueError

    processor = handle(long, atomic=False)
    run_twice(processor)
    assert PublishedMessage.objects.filter(routing_key="effects.first").count() == 1
    assert PublishedMessage.objects.filter(routing_key="effects.second").count() == 3
    assert len(ids_of("effects.second")) == 3


def run_twice(processor: Processor, delivery: Arrived | None = None) -> None:
    """The second time as a retry of what failed the first time."""
    processor.process(delivery or arrived(), Acks())
    processor.process(sent(PublishedMessage.objects.get(inbox__isnull=False)), Acks())


def ids_of(routing_key: str) -> set[str]:
    return set(PublishedMessage.objects.filter(routing_key=routing_key).values_list("message_id", flat=True))


def test_a_long_handler_that_leaves_out_what_is_done_loses_no_message(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        for item in "abc":
            if not Effect.objects.filter(key=item).exists():
                publish("item.done", item)
                Effect.objects.create(key=item)
                if item == "a":
                    raise ValueError

    run_twice(handle(long, atomic=False))
    assert sorted(PublishedMessage.objects.filter(routing_key="item.done").values_list("body", flat=True)) == [*"abc"]
    assert len(ids_of("item.done")) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"routing_key": "item.other"}, {"queue": "other"}, {"exchange": "other"}, {"payload": "other"},
        {"headers": {"a": b"1"}}, {"type": "other"}, {"content_type": "text/other"}, {"reply_to": "other"},
        {"priority": 1}, {"expiration": 1}, {"mandatory": False}, {"delay": 0},
        {"at": datetime(2031, 5, 6, tzinfo=UTC)},
        {"correlation_id": "other"},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_each_difference_makes_another_message(handle: Handle, other: dict[str, Any]) -> None:
    common: dict[str, Any] = {"routing_key": "item.done", "payload": "a", "headers": {"a": "1"}}

    def long(message: ReceivedMessage) -> None:
        if message.attempt == 1:  # a second one must get an id that this one does not have
            publish(**common)
            raise ValueError
        publish(**{**common, **other})

    run_twice(handle(long, atomic=False))
    assert len(set(PublishedMessage.objects.filter(inbox=None).values_list("message_id", flat=True))) == 2


def test_one_function_of_two_queues_publishes_for_each(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("item.done", "a")

    registry = Registry()
    for queue in ("work", "other"):
        registered(registry, long, queue=queue, atomic=False)
    processor = Processor("default", "worker-1", handlers=registry)
    for queue in ("work", "other"):
        processor.process(arrived(queue=queue, message_id="the same"), Acks())
    assert len(ids_of("item.done")) == 2


def test_one_id_to_two_queues_from_a_long_handler_is_two_messages(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        for queue in ("one", "two"):
            publish("item.done", "a", queue=queue, message_id="the same")
        if message.attempt == 1:
            raise ValueError

    run_twice(handle(long, atomic=False))
    sent_to = PublishedMessage.objects.filter(routing_key="item.done").order_by("pk")
    assert list(sent_to.values_list("queue", flat=True)) == ["one", "two"]


def test_what_the_release_before_recorded_first_keeps_its_ids(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("item.done", "a")
        publish("item.done", "b", queue="other")
        if message.attempt == 1:
            ProcessedMessage.objects.update(derivation=None)
            PublishedMessage.objects.filter(inbox=None).delete()
            raise ValueError

    run_twice(handle(long, atomic=False))
    row = only_row()
    cause = uuid.uuid5(row.key, row.handler)
    assert ids_of("item.done") == {str(uuid.uuid5(cause, f"1:{to}:item.done")) for to in ("messaging:", ":other")}


def test_a_batch_is_one_transaction(handle: Handle) -> None:
    def many(messages: list[ReceivedMessage]) -> None:
        Effect.objects.create(key="batch", value=str(len(messages)))

    processor = handle(many, batch=10)
    deliveries = [arrived(str(number)) for number in range(5)]
    handler = processor.route(deliveries[0])
    assert handler is not None
    assert {one.action for one in processor.process_batch(handler, list(deliveries))} == {"ack"}
    assert Effect.objects.get().value == "5"
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 5


def test_of_each_message_of_a_batch_it_is_said_that_it_is_processed(handle: Handle) -> None:
    told: list[ProcessedMessage] = []

    def hear(row: ProcessedMessage, duration: float, **_: Any) -> None:
        assert duration > 0
        told.append(row)

    processor = handle(ignore, batch=10)
    deliveries = [arrived(str(number)) for number in range(3)]
    handler = processor.route(deliveries[0])
    assert handler is not None
    message_processed.connect(hear)
    try:
        processor.process_batch(handler, list(deliveries))
    finally:
        message_processed.disconnect(hear)
    assert [row.message_id for row in told] == [one.properties.message_id for one in deliveries]
    assert {(row.state, row.attempts, row.handler, row.worker) for row in told} == {
        (State.PROCESSED, 1, handler.name, "worker-1")
    }
    assert [row.raw_body for row in told] == [one.body for one in deliveries]


def test_a_bad_message_in_a_batch_is_isolated(handle: Handle) -> None:
    def many(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            if message.payload == "bad":
                raise ValueError("bad one")
            effect(message)

    processor = handle(many, batch=10)
    deliveries = [arrived("good"), arrived("bad"), arrived("good")]
    handler = processor.route(deliveries[0])
    assert handler is not None
    processor.process_batch(handler, list(deliveries))
    assert Effect.objects.count() == 2
    assert ProcessedMessage.objects.filter(state=State.PROCESSED, attempts=1).count() == 2
    assert ProcessedMessage.objects.get(state=State.RETRYING).attempts == 1


# What a message costs: guards against regressions that no clock would show reliably


def statements(run: Callable[[], object]) -> list[str]:
    """The statements that a call executes on Django's database, those that begin and end transactions left out."""
    with CaptureQueriesContext(connection) as queries:
        run()
    found = [query["sql"].split()[0] for query in queries]
    return [verb for verb in found if verb not in ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")]


def test_a_first_delivery_costs_one_statement_beside_its_handlers(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    processor.process(arrived(), nothing)  # connects
    expected = {
        "postgresql": ["INSERT", "INSERT"],
        "sqlite": ["SELECT", "INSERT", "INSERT"],  # looks first, since it records last
        "mysql": ["SET", "INSERT", "INSERT", "SELECT"],  # sees whether a deadlock took the record away
    }
    assert statements(lambda: processor.process(delivery, nothing)) == expected[connection.vendor]


def test_a_batch_costs_as_many_statements_whatever_its_size(handle: Handle) -> None:
    processor = handle(ignore, batch=500)

    def run(count: int) -> list[str]:
        deliveries = [arrived(str(number)) for number in range(count)]
        handler = processor.route(deliveries[0])
        assert handler is not None
        return statements(lambda: processor.process_batch(handler, deliveries))

    run(2)  # a new connection of MariaDB's is asked once how its session is
    few, many = run(2), run(300)
    assert len(few) <= 5
    if connection.vendor == "sqlite":  # takes 999 parameters
        assert len(many) <= 15
    else:
        assert few == many


def test_a_delivery_is_read_once(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    received = Envelope.received
    monkeypatch.setattr(Envelope, "received", lambda *all_: read.append("envelope") or received(*all_))
    pack = envelope_module.pack_body
    monkeypatch.setattr(envelope_module, "pack_body", lambda body: read.append("body") or pack(body))
    delivery = arrived()
    parcel = Arrival("work", "messaging", "work.do", delivery.properties, delivery.body)
    processor = handle()
    processor.route(parcel)  # on arrival
    assert read == ["envelope", "body"]
    assert processor.process(parcel, nothing).action == "ack"
    assert read == ["envelope", "body"]


def test_a_large_body_is_not_held_twice_before_its_turn_comes(handle: Handle) -> None:
    delivery = arrived(b"x" * 100_000, content_type="text/plain")
    parcel = Arrival("work", "messaging", "work.do", delivery.properties, delivery.body)
    processor = handle(ignore)
    assert processor.route(parcel) is not None
    assert "columns" not in parcel.envelope.__dict__
    assert processor.process(parcel, nothing).action == "ack"
    assert only_row().raw_body == delivery.body


def test_dead_letters_are_recorded_with_the_brokers_reason(handle: Handle) -> None:
    processor = handle()
    original = arrived("old news", routing_key="work.do")
    dead = arrived(
        "old news",
        queue="work.dead",
        routing_key="work.dead",
        message_id=original.properties.message_id,
        headers={
            "x-death": [
                {"queue": "work", "reason": "expired", "count": 1, "exchange": "messaging", "routing-keys": ["work.do"]}
            ]
        },
    )
    dead.exchange = ""
    for _ in range(2):
        assert processor.record_dead(dead).action == "ack"
    row = only_row()
    assert (row.queue, row.routing_key, row.state) == ("work", "work.do", State.FAILED)
    assert "expired in the queue" in row.error


def test_a_dead_letter_of_what_was_processed_changes_nothing(handle: Handle) -> None:
    processor = handle()
    original = arrived("x")
    processor.process(original, nothing)
    death = [{"queue": "work", "reason": "rejected", "exchange": "messaging", "routing-keys": ["work.do"]}]
    dead = arrived(
        "x",
        queue="work.dead",
        routing_key="work.dead",
        message_id=original.properties.message_id,
        headers={"x-death": death},
    )
    processor.record_dead(dead)
    assert only_row().state == State.PROCESSED


def test_a_message_near_the_brokers_delivery_limit_goes_round_by_the_inbox(handle: Handle) -> None:
    processor = handle()
    assert processor.process(arrived(redelivered=True, headers={"x-delivery-count": 17}), nothing).action == "ack"
    assert only_row().state == State.RETRYING
    assert only_row().attempts == 0
    again = sent(next_round())
    assert "x-delivery-count" not in again.properties.headers
    processor.process(again, nothing)
    assert only_row().state == State.PROCESSED
    assert Effect.objects.count() == 1


def test_twins_in_two_transactions_have_one_effect_and_spend_no_attempt(handle: Handle) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        effect(message)
        entered.set()
        leave.wait(60)

    processor, delivery = handle(slow), arrived()

    def first() -> None:
        try:
            processor.process(delivery, nothing)
        finally:
            connections.close_all()

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    if connection.vendor == "sqlite":
        leave.set()
        thread.join()
    settlement = processor.process(delivery, nothing)
    if connection.vendor != "sqlite":
        assert (settlement.action, settlement.after) == ("set_aside", 2.0)
    leave.set()
    thread.join()
    assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 1
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)


def test_a_slow_handler_does_not_lock_other_writers_out(handle: Handle) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        list(Effect.objects.all())
        entered.set()
        leave.wait(60)
        effect(message)

    def run() -> None:
        try:
            handle(slow).process(arrived(), nothing)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(60)
    Effect.objects.create(key="another writer")  # raises if the handler's transaction holds the only lock
    leave.set()
    thread.join()
    assert only_row().state == State.PROCESSED
    assert Effect.objects.count() == 2


DEADLOCKS = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$",
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'deadlock'",
}


def test_a_serialization_conflict_reruns_at_once_and_spends_one_attempt_at_most(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("provoked with a server's own error")
    runs: list[int] = []

    def conflict(message: ReceivedMessage) -> None:
        runs.append(1)
        if len(runs) < 3:
            with connection.cursor() as cursor:
                cursor.execute(DEADLOCKS[connection.vendor])
        effect(message)

    handle(conflict).process(arrived(), nothing)
    assert len(runs) == 3
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Mute(), ValueError("half a character: \ud800")])
def test_an_error_whose_text_cannot_be_had_or_stored_is_a_failed_attempt(handle: Handle, error: Exception) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise error

    assert handle(fail).process(arrived(), nothing).action == "ack"
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 1)


@pytest.fixture
def has_sessions(db: None) -> None:
    """Skips where no server ends connections."""
    if connection.vendor == "sqlite":
        pytest.skip("needs a server that ends connections")


def end_this_session() -> None:
    """Have the server end this thread's connection, as a failover does."""
    own, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(%s)"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL %s"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(own)
        (pid,) = cursor.fetchone()
    in_a_thread(lambda: connection.cursor().execute(end, [pid])).join()


@pytest.mark.parametrize("atomic", [True, False])
def test_a_connection_that_breaks_under_a_handler_spends_no_attempt(
    has_sessions: None, handle: Handle, atomic: bool
) -> None:
    runs: list[int] = []

    def lose_the_connection_once(message: ReceivedMessage) -> None:
        runs.append(1)
        if len(runs) == 1:
            end_this_session()
        effect(message)

    handle(lose_the_connection_once, atomic=atomic).process(arrived(), nothing)
    assert (only_row().state, only_row().attempts, len(runs)) == (State.PROCESSED, 1, 2)
    assert Effect.objects.count() == 1
    assert Attempt.objects.count() == 0


def test_a_connection_that_broke_before_the_handler_started_is_replaced(has_sessions: None, handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    end_this_session()
    assert processor.process(delivery, nothing).action == "ack"
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)


def test_a_crash_is_counted_where_the_connection_broke(has_sessions: None, handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    end_this_session()
    processor.record_crash(entry_of(delivery), ProcessDied("killed by signal 9 (SIGKILL)"))
    assert (only_row().state, only_row().attempts) == (State.PROCESSING, 1)


def test_what_no_handler_takes_is_recorded_where_the_connection_broke(has_sessions: None, handle: Handle) -> None:
    processor, delivery = handle(routing_keys=("work.else",)), arrived()
    end_this_session()
    assert processor.process(delivery, nothing).action == "ack"
    assert only_row().state == State.RETRYING


def test_a_long_handler_whose_connection_is_gone_at_its_end_does_not_run_again(
    has_sessions: None, handle: Handle
) -> None:
    runs: list[int] = []

    def lose_the_connection(message: ReceivedMessage) -> None:
        runs.append(1)
        end_this_session()

    assert handle(lose_the_connection, atomic=False).process(arrived(), nothing).action == "done"
    assert (only_row().state, only_row().attempts, len(runs)) == (State.PROCESSED, 1, 1)


def test_a_long_handler_whose_row_is_locked_at_its_end_does_not_run_again(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    runs: list[int] = []
    locked, waited = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            list(ProcessedMessage.objects.select_for_update())
            locked.set()
            waited.wait(60)

    def run(message: ReceivedMessage) -> None:
        runs.append(1)
        threads.append(in_a_thread(hold))
        locked.wait(60)

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waited.set()

    threads: list[threading.Thread] = []
    watch = Watch()
    logging.getLogger("messaging.processor").addHandler(watch)
    try:
        settlement = handle(run, atomic=False).process(arrived(), nothing)
    finally:
        logging.getLogger("messaging.processor").removeHandler(watch)
        waited.set()
        threads[0].join()
    assert (settlement.action, only_row().state, len(runs)) == ("done", State.PROCESSED, 1)


def test_renewing_claims_does_not_wait_for_a_handler_that_locks_its_row(handle: Handle) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        entered.set()
        leave.wait(60)

    processor = handle(slow)
    runner = in_a_thread(lambda: processor.process(arrived(redelivered=True), nothing))
    assert entered.wait(60)
    renewer = in_a_thread(processor.renew_claims)
    renewer.join(20)
    held_up = renewer.is_alive()
    processor.outages.up_since["default"] = -1e9
    swept = processor.sweep()
    leave.set()
    runner.join()
    renewer.join()
    assert (held_up, swept, only_row().state) == (False, 0, State.PROCESSED)


def test_twins_that_died_in_one_process_are_one_crash_and_keep_their_content(handle: Handle) -> None:
    processor, delivery = handle(max_attempts=2), arrived()
    for _ in range(2):  # one ran, the other waited for it
        processor.record_crash(entry_of(delivery), ProcessDied("killed"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    assert (only_row().state, only_row().attempts, only_row().raw_body) == (State.RETRYING, 1, delivery.body)


def test_a_failure_after_a_crash_that_was_counted_meanwhile_is_the_second_attempt(handle: Handle) -> None:
    delivery = arrived(redelivered=True)

    def fail(message: ReceivedMessage) -> None:
        in_a_thread(lambda: processor.record_crash(entry_of(delivery), ProcessDied("killed elsewhere"))).join()
        raise ValueError("the real one")

    processor = handle(fail, atomic=False)
    processor.process(delivery, nothing)
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 2)
    assert "the real one" in only_row().error


def test_a_crash_without_id_whose_redelivery_was_faster_leaves_no_row_behind(handle: Handle) -> None:
    processor, delivery = handle(), arrived(message_id=None, redelivered=True)
    entry = entry_of(arrived(), key=str(uuid.uuid4()), message_id="", started=time.time() - 1)
    processor.process(delivery, nothing)
    processor.record_crash(entry, ProcessDied("killed"))
    assert only_row().state == State.PROCESSED


def test_a_damaged_claim_does_not_keep_the_sweep_from_the_others(handle: Handle) -> None:
    processor = handle()
    for seconds, wire in ((9, b"\xff"), (1, None)):
        claim = claim_of(arrived())
        ProcessedMessage.objects.create(
            **{**claim, "wire": wire or claim["wire"]}, leased_until=Now() - timedelta(seconds=seconds)
        )
    processor.outages.up_since["default"] = -1e9
    with pytest.raises(WireError):
        processor.sweep()
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {State.PROCESSING, State.RETRYING}


def test_a_claim_of_what_the_database_refuses_is_written_escaped(handle: Handle) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("provoked with PostgreSQL's own error")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.body LIKE '%ż%' THEN "
            "RAISE EXCEPTION 'no equivalent' USING ERRCODE = '22P05'; END IF; RETURN NEW; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON messaging_processedmessage FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    try:
        handle(atomic=False).process(arrived("żółw"), nothing)
        assert (only_row().state, only_row().raw_body.decode()) == (State.PROCESSED, "żółw")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse CASCADE")


def test_recording_a_crash_does_not_wait_for_the_handler_that_runs_the_message_again(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        entered.set()
        leave.wait(60)

    processor, delivery = handle(slow), arrived(redelivered=True)
    runner = in_a_thread(lambda: processor.process(delivery, nothing))
    assert entered.wait(60)
    recorder = in_a_thread(lambda: processor.record_crash(entry_of(delivery), ProcessDied("killed")))
    recorder.join(20)
    held_up = recorder.is_alive()
    leave.set()
    runner.join()
    recorder.join()
    assert (held_up, only_row().state) == (False, State.PROCESSED)


@dataclass
class Anonymous:
    """A message without an id whose run is claimed, and its redelivery."""

    processor: Processor
    delivery: Arrived
    entry: Entry


@pytest.fixture
def anonymous(handle: Handle) -> Anonymous:
    """One of which nobody knows whether its last run still lives."""
    claim = {**claim_of(arrived()), "message_id": ""}  # the same content
    ProcessedMessage.objects.create(**claim, leased_until=Now() + timedelta(seconds=60))
    entry = entry_of(arrived(), key=str(claim["key"]), message_id="", token=str(claim["lease_token"]))
    return Anonymous(handle(), arrived(message_id=None, redelivered=True), entry)


def test_a_message_without_id_that_kills_again_and_again_stays_one_message(anonymous: Anonymous) -> None:
    processor, delivery = anonymous.processor, anonymous.delivery
    assert processor.process(delivery, nothing).action == "set_aside", "while its last run may still live"

    ProcessedMessage.objects.update(leased_until=Now() - timedelta(seconds=1))
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 0, "the broker has it, and only its redelivery may send it round"

    processor.record_crash(anonymous.entry, ProcessDied("killed"))
    assert (only_row().state, only_row().attempts, only_row().lease_token) == (State.PROCESSING, 1, None)

    assert processor.process(delivery, nothing).action == "ack"
    assert (only_row().state, only_row().attempts, only_row().round) == (State.RETRYING, 1, 2)


def test_a_crash_that_is_counted_while_its_message_is_looked_for_makes_no_second_row(anonymous: Anonymous) -> None:
    processor, delivery = anonymous.processor, anonymous.delivery
    looks = []

    def count_after_the_first_look(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if "processedmessage" in sql and sql.startswith("SELECT") and not looks:
            looks.append(sql)
            in_a_thread(lambda: processor.record_crash(anonymous.entry, ProcessDied("killed"))).join()
        return result

    with connection.execute_wrapper(count_after_the_first_look):
        assert processor.process(delivery, nothing).action == "set_aside"
    assert looks
    assert processor.process(delivery, nothing).action == "ack"
    assert (only_row().state, only_row().attempts, only_row().round) == (State.RETRYING, 1, 2)


def test_a_long_run_without_id_is_swept_because_it_was_acknowledged(handle: Handle) -> None:
    processor = handle(atomic=False)
    claim = {**claim_of(arrived()), "message_id": ""}
    ProcessedMessage.objects.create(**claim, leased_until=Now() - timedelta(seconds=1))
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 1
