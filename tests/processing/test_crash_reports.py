"""What a report that a process died does to the message that it ran."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from messaging.db.clock import Now
from messaging.exceptions import HandlerTimeout, ProcessDied
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Entry
from messaging.wire.envelope import DIED
from tests.deliveries import Arrived, arrived, envelope_of, in_a_thread, sent
from tests.processing.tools import Handle, Held, claim_of, entry_of, ignore, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


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
    entry = entry_of(arrived(), key=str(uuid.uuid4()), message_id="", started=time.time() - 60)
    processor.process(delivery, nothing)
    processor.record_crash(entry, ProcessDied("killed"))
    assert only_row().state == State.PROCESSED


def test_recording_a_crash_does_not_wait_for_the_handler_that_runs_the_message_again(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    held = Held()
    processor, delivery = handle(held.run), arrived(redelivered=True)
    runner = in_a_thread(lambda: processor.process(delivery, nothing))
    assert held.entered.wait(60)
    recorder = in_a_thread(lambda: processor.record_crash(entry_of(delivery), ProcessDied("killed")))
    recorder.join(60)
    held_up = recorder.is_alive()
    held.leave.set()
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
