"""A failure, the round that follows, and the end of all rounds."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from messaging import Reject, Retry, publish
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.signals import message_processed
from tests.app.models import Effect
from tests.deliveries import arrived, sent
from tests.processing.tools import Handle, effect, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


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


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Mute(), ValueError("half a character: \ud800")])
def test_an_error_whose_text_cannot_be_had_or_stored_is_a_failed_attempt(handle: Handle, error: Exception) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise error

    assert handle(fail).process(arrived(), nothing).action == "ack"
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 1)
