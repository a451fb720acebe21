"""What is believed of a message's headers: ours by a nonce that the row knows, the application's as part of it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from pytest_django import Settings

from messaging import publish
from messaging.db.clock import Now
from messaging.exceptions import ProcessDied
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.operations import Operator, requeue
from messaging.processing.processor import Processor
from messaging.processing.station import ALONE
from messaging.publishing.rows import seal
from messaging.wire import nonces
from messaging.wire.envelope import EXCHANGE, KEY, NONCE, OURS, QUEUE, ROUND, ROUTING_KEY, Envelope, key_of
from messaging.wire.properties import Properties
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, envelope_of, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def do(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.routing_key, value=str(message.payload))
    if message.payload == "fail":
        raise ValueError("no")


def delete(message: ReceivedMessage) -> None:
    Effect.objects.create(key="deleted", value=str(message.payload))


def nothing() -> None:
    pass


@pytest.fixture
def processor() -> Processor:
    """One with two handlers, one of which nobody is to reach without the right to publish to its exchange."""
    registry = Registry()
    registered(registry, do, routing_keys=("work.do",), max_attempts=2)
    registered(registry, delete, routing_keys=("admin.delete",))
    return Processor("default", "worker-1", handlers=registry)


def row_of(delivery: Arrived) -> ProcessedMessage:
    return ProcessedMessage.objects.get(key=key_of(delivery.properties.message_id or ""))


def pending() -> PublishedMessage:
    return PublishedMessage.objects.get(state="pending")


def written(original: Arrived, *, to: str = "work", **headers: Any) -> Arrived:
    """The same id and content, written straight to a queue with headers of ours."""
    ours = {name: value for name, value in headers.items() if value is not None}
    properties = original.properties.edited(drop_headers=OURS, add_headers=ours)
    return Arrived(to, "", to, properties, original.body)


def as_a_round(original: Arrived, round_: int, **changes: Any) -> Arrived:
    key = str(key_of(original.properties.message_id or ""))
    ours = {QUEUE: "work", ROUND: round_, KEY: key, EXCHANGE: "messaging", ROUTING_KEY: "work.do"}
    return written(original, **{**ours, **changes})


def failed(processor: Processor) -> Arrived:
    """A message that has failed for good."""
    original = arrived("fail")
    processor.process(original, nothing)
    processor.process(sent(pending()), nothing)
    assert row_of(original).state == State.FAILED
    PublishedMessage.objects.update(state="published", due_at=None)
    return original


@pytest.mark.mode(64)
@pytest.mark.parametrize("shown", [None, "", "0" * 32, "\udcff", str(uuid.UUID(int=0))])
def test_nobody_can_have_a_failed_message_run_again(processor: Processor, shown: str | None) -> None:
    original = failed(processor)
    nonce = shown.encode("utf-8", "surrogateescape") if shown is not None else None
    assert processor.process(as_a_round(original, 3, **{NONCE: nonce}), nothing).action == "ack"
    assert (row_of(original).state, row_of(original).round, row_of(original).attempts) == (State.FAILED, 2, 2)
    flagged = ProcessedMessage.objects.exclude(pk=row_of(original).pk).get()
    assert (flagged.state, flagged.routing_key, flagged.round) == (State.FAILED, "work", 1), "it is kept, and flagged"


@pytest.mark.mode(64)
def test_the_nonce_of_one_round_opens_no_other(processor: Processor) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    round_ = sent(pending())
    shown = round_.properties.headers[NONCE]
    processor.process(round_, nothing)
    processor.process(as_a_round(original, 3, **{NONCE: shown}), nothing)
    assert (row_of(original).state, row_of(original).attempts) == (State.FAILED, 2)


@pytest.mark.mode(64)
@pytest.mark.parametrize("round_", [2, 2**31 - 1])
def test_nobody_can_choose_a_handler_by_a_round_of_nothing(processor: Processor, round_: int) -> None:
    original = arrived("x")
    forged = as_a_round(original, round_, **{KEY: str(uuid.uuid4()), ROUTING_KEY: "admin.delete"})
    processor.process(forged, nothing)
    assert not Effect.objects.exists()
    row = row_of(original)
    assert (row.routing_key, row.state, row.round) == ("work", State.RETRYING, 2), "no handler takes the queue's name"


@pytest.mark.mode(64)
def test_nobody_can_choose_a_handler_of_what_is_written_straight_to_a_queue(processor: Processor) -> None:
    original = arrived("x")
    processor.process(written(original, **{ROUTING_KEY: "admin.delete"}), nothing)
    assert not Effect.objects.exists()
    assert row_of(original).routing_key == "work"


@pytest.mark.mode(64)
def test_what_this_site_publishes_straight_to_a_queue_has_its_handler(processor: Processor) -> None:
    publish("work.do", "x", queue="work")
    row = PublishedMessage.objects.get()
    delivery = sent(row)
    assert delivery.envelope.is_proven
    processor.process(delivery, nothing)
    assert Effect.objects.get().key == "work.do"
    # Its nonce is of no use for another message, key or queue.
    shown = delivery.properties.headers[NONCE]
    assert not written(arrived("y"), **{ROUTING_KEY: "work.do", NONCE: shown}).envelope.is_proven
    assert not written(delivery, **{ROUTING_KEY: "admin.delete", NONCE: shown}).envelope.is_proven
    assert not written(delivery, to="other", **{ROUTING_KEY: "work.do", NONCE: shown}).envelope.is_proven


@pytest.mark.mode(64)
@pytest.mark.parametrize("batch", [None, 5])
def test_what_the_release_before_published_straight_to_a_queue_has_its_handler(batch: int | None) -> None:
    """So has what was published before `SECRET_KEY` was another one."""
    registry = Registry()
    handler = registered(registry, lambda found: Effect.objects.create(key="x"), routing_keys=("work.do",), batch=batch)
    processor = Processor("default", "worker-1", handlers=registry)
    publish("work.do", "x", queue="work")
    delivery = sent(PublishedMessage.objects.get())
    delivery.properties = delivery.properties.edited(drop_headers={NONCE})
    assert not delivery.envelope.is_proven
    if batch is None:
        assert processor.process(delivery, nothing).action == "ack"
    else:
        assert [one.action for one in processor.process_batch(handler, [delivery, arrived("y")])] == ["ack", "ack"]
    assert {row.state for row in ProcessedMessage.objects.all()} == {State.PROCESSED}


@pytest.mark.mode(64)
@pytest.mark.parametrize("keep", [True, False])
def test_a_round_is_ours_whatever_secret_key_there_is_by_now(
    processor: Processor, settings: Settings, keep: bool
) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    round_ = sent(pending())
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY] if keep else []
    settings.SECRET_KEY = "another"
    processor.process(round_, nothing)
    assert ProcessedMessage.objects.get().attempts == 2


@pytest.mark.mode(64)
def test_a_round_whose_row_is_forgotten_is_ours_by_secret_key(processor: Processor, settings: Settings) -> None:
    """A database that was set back: its round is all that is left of the message."""
    original = arrived("fail")
    processor.process(original, nothing)
    round_ = sent(pending())
    PublishedMessage.objects.all().delete()
    ProcessedMessage.objects.all().delete()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    processor.process(round_, nothing)
    row = row_of(original)
    assert (row.routing_key, row.state, row.round) == ("work.do", State.RETRYING, 3)
    processor.process(sent(pending()), nothing)
    assert row_of(original).state == State.FAILED


@pytest.mark.mode(64)
def test_a_round_of_the_release_before_is_believed_where_its_row_waits_for_one(processor: Processor) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    without = as_a_round(original, 2)
    wire = envelope_of(original).to_wire()
    ProcessedMessage.objects.update(nonce=None, headers_digest=None)
    PublishedMessage.objects.update(wire=wire, state="published", due_at=None)
    processor.process(without, nothing)
    assert (row_of(original).state, row_of(original).attempts) == (State.FAILED, 2)


@pytest.mark.mode(64)
def test_a_round_that_the_release_before_sent_of_a_row_of_this_one_is_believed(processor: Processor) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    row = row_of(original)
    assert row.nonce is not None
    PublishedMessage.objects.update(wire=envelope_of(original).to_wire(), state="published", due_at=None)
    processor.process(as_a_round(original, 2), nothing)
    assert (row_of(original).state, row_of(original).attempts) == (State.FAILED, 2)
    assert ProcessedMessage.objects.count() == 1


def test_only_its_row_says_that_a_retry_is_to_run_alone(processor: Processor) -> None:
    original = arrived("x")
    processor.process(arrived("fail", message_id=original.properties.message_id), nothing)
    ProcessedMessage.objects.update(exception_type=f"{ProcessDied.__module__}.{ProcessDied.__qualname__}")
    round_ = sent(pending())
    assert processor.process(round_, nothing, alone=False) == ALONE
    assert row_of(original).state == State.RETRYING
    assert processor.process(round_, nothing).action == "ack"
    assert row_of(original).attempts == 2


def test_nonces_are_made_again_and_differ() -> None:
    key = uuid.uuid4()
    assert nonces.of_row("work", key) == nonces.of_row("work", key)
    assert len({nonces.of_row(queue, one) for queue in ("a", "b") for one in (key, uuid.uuid4())}) == 4
    assert nonces.of_round(key, 2) != nonces.of_round(key, 3)


# The digest


def same_but(original: Arrived, **headers: Any) -> Arrived:
    return Arrived(
        original.queue,
        original.exchange,
        original.routing_key,
        original.properties.edited(add_headers=headers),
        original.body,
    )


@pytest.mark.mode(65)
def test_a_forged_early_copy_with_other_headers_does_not_win_unseen(processor: Processor) -> None:
    original = arrived("x", headers={"tenant": "a"})
    processor.process(same_but(original, tenant="b"), nothing)
    processor.process(original, nothing)
    processor.process(original, nothing)
    assert row_of(original).headers == {"tenant": "b"}
    flagged = ProcessedMessage.objects.get(state=State.FAILED)
    assert flagged.headers == {"tenant": "a"}
    assert "used before" in flagged.error


@pytest.mark.mode(65)
def test_what_changes_from_copy_to_copy_is_no_part_of_a_message(processor: Processor) -> None:
    original = arrived("x", headers={"tenant": "a", "size": 7})
    processor.process(original, nothing)
    turned = original.properties.edited(add_headers={"size": 7})
    for properties in (
        turned,
        original.properties.edited(
            add_headers={
                "traceparent": "00-1",
                "tracestate": "a=1",
                "baggage": "b=2",
                "x-delivery-count": 3,
                "X-Request-Id": "1",
                "CC": ["other"],
                "timestamp_in_ms": 12,
                "x-messaging-row": "1",
            }
        ),
    ):
        copy = Arrived("work", "messaging", "work.do", properties, original.body)
        processor.process(copy, nothing)
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    assert Effect.objects.count() == 1


@pytest.mark.mode(65)
def test_a_retry_is_the_same_message_whatever_headers_it_drops(processor: Processor) -> None:
    original = arrived("fail", headers={"tenant": "a", "CC": ["b"], "x-death": [{"count": 1}]})
    processor.process(original, nothing)
    again = sent(pending())
    assert again.envelope.headers_digest == original.envelope.headers_digest
    processor.process(again, nothing)
    assert ProcessedMessage.objects.get().state == State.FAILED


@pytest.mark.mode(65)
def test_a_row_is_compared_by_the_version_of_the_digest_that_it_was_stored_with(processor: Processor) -> None:
    original = arrived("x", headers={"tenant": "a"})
    processor.process(original, nothing)
    assert row_of(original).digest_version == 2
    ProcessedMessage.objects.update(headers_digest=None)  # as the release before leaves it
    assert row_of(original).digest_version == 1
    processor.process(same_but(original, tenant="b"), nothing)
    assert ProcessedMessage.objects.get().state == State.PROCESSED


def claimed(delivery: Arrived, *, at_broker: bool) -> ProcessedMessage:
    """The lapsed claim of a delivery."""
    envelope = delivery.envelope
    own = {"queue": "work", "key": envelope.key or uuid.uuid4(), "state": State.PROCESSING, "worker": "worker-0"}
    claim = {"lease_token": uuid.uuid4(), "leased_until": Now(), "started_at": Now(), "at_broker": at_broker}
    return ProcessedMessage.objects.create(**own, **claim, **envelope.columns)


@pytest.mark.mode(65)
def test_a_message_without_id_adopts_no_row_of_other_headers(processor: Processor) -> None:
    first = arrived("x", message_id=None, headers={"tenant": "a"})
    row = claimed(first, at_broker=True)
    other = same_but(first, tenant="b")
    other.redelivered = True
    processor.process(other, nothing)
    row.refresh_from_db()
    assert row.worker == "worker-0"
    assert ProcessedMessage.objects.exclude(pk=row.pk).get().state == State.PROCESSED


# Dead letters


def buried(original: Arrived, **death: Any) -> Arrived:
    """What anyone can write who may write to the dead-letter queue."""
    said = {"queue": "work", "reason": "expired", "exchange": "messaging", "routing-keys": ["work.do"], **death}
    properties = original.properties.edited(add_headers={"x-death": [said]})
    return Arrived("work.dead", "", "work.dead", properties, original.body)


@pytest.mark.mode(66)
def test_an_early_dead_letter_does_not_end_what_is_still_in_its_queue(processor: Processor) -> None:
    original = arrived("x")
    processor.record_dead(buried(original))
    assert row_of(original).state == State.FAILED
    processor.process(original, nothing)
    assert (row_of(original).state, row_of(original).attempts) == (State.PROCESSED, 1)
    processor.record_dead(buried(original))
    processor.process(original, nothing)
    assert Effect.objects.count() == 1
    assert ProcessedMessage.objects.get().state == State.PROCESSED


@pytest.mark.mode(66)
@pytest.mark.parametrize("claimed", [True, False])
def test_a_dead_letter_does_not_end_a_message_that_waits_for_its_round(processor: Processor, claimed: bool) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    source = as_a_round(original, 2) if claimed else original
    processor.record_dead(buried(source, exchange="", **{"routing-keys": ["work"]} if claimed else {}))
    assert row_of(original).state == State.RETRYING
    processor.process(sent(pending()), nothing)
    assert row_of(original).attempts == 2


@pytest.mark.mode(66)
def test_a_round_that_the_broker_gave_up_ends_as_failed(processor: Processor) -> None:
    original = arrived("fail")
    processor.process(original, nothing)
    round_ = sent(pending())
    PublishedMessage.objects.update(state="published", due_at=None)
    processor.record_dead(buried(round_, exchange="", **{"routing-keys": ["work"]}))
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round) == (State.FAILED, 1, 2)
    assert "expired in the queue" in row.error
    assert requeue(ProcessedMessage.objects.all(), Operator(name="olga")).done == [row.pk]
    processor.process(round_, nothing)
    assert row_of(original).state == State.REQUEUED, "a copy of the round before does not run"


@pytest.mark.mode(66)
def test_a_dead_letter_leaves_a_lapsed_claim_to_the_sweep_that_has_the_message(processor: Processor) -> None:
    original = arrived("x")
    claimed(original, at_broker=False)
    processor.record_dead(buried(original))
    assert row_of(original).state == State.PROCESSING
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 1
    assert row_of(original).state == State.RETRYING


def test_an_envelope_without_our_headers_is_nobodys_claim() -> None:
    delivery = arrived("x")
    assert delivery.envelope.is_proven
    assert delivery.envelope.as_a_strangers() == delivery.envelope
    straight = Envelope.received("", "work", Properties.build(headers={ROUTING_KEY: "work"}), b"", "work")
    assert straight.is_proven, "it says what it is"


def test_a_draft_or_a_copy_is_sealed_when_it_is_sent(processor: Processor) -> None:
    row = publish("work.do", "x", queue="work", headers={"raw": b"\xff"})
    assert row.wire is not None
    copy = row.copied()
    copy.save()
    _, routing_key, properties, _ = seal(copy)
    delivery = Arrived("work", "", routing_key, Properties.decode(properties), copy.raw_body)
    processor.process(delivery, nothing)
    assert Effect.objects.get().key == "work.do", "the outbox knows it"
