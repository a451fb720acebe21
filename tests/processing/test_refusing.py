"""What is recorded without running: unknown routing keys, what cannot be read, and dead letters."""

from __future__ import annotations

import pytest

from messaging.handlers import Registry
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, registered, sent
from tests.processing.tools import Handle, effect, ignore, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


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
