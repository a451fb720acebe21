"""How long handlers ran: what their records say of it, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection, transaction

from messaging.db.clock import Now
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.processing import durations
from messaging.signals import message_processed
from tests.app.models import Effect
from tests.deliveries import arrived, sent
from tests.processing.tools import Handle, claim_of, effect, ignore, next_round, nothing, only_row, statements

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
LONG = 0.15  # seconds: what a handler takes that is not brief
comes_first = pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="SQLite's records are written after their handlers"
)


def slow(message: ReceivedMessage) -> None:
    effect(message)
    time.sleep(LONG)


def microseconds(span: timedelta) -> float:
    return span / timedelta(microseconds=1)


def took(act: Callable[[], object]) -> float:
    """Microseconds; on a busy machine that may be long, whatever is done."""
    before = time.monotonic()
    act()
    return (time.monotonic() - before) * 1_000_000


def test_a_long_run_says_how_long_it_took_and_when_it_began_and_ended(handle: Handle) -> None:
    processor = handle(slow)
    at_most = took(lambda: processor.process(arrived(), nothing))
    row = only_row()
    assert row.duration is not None
    assert LONG * 1_000_000 <= row.duration <= at_most
    assert row.began_at is not None
    assert row.processed_at is not None
    assert row.processed_at - row.began_at == timedelta(microseconds=row.duration)
    # SQLite receives it when it is recorded; its clock has milliseconds.
    if connection.vendor != "sqlite":
        assert timedelta(0) <= row.began_at - row.received_at < timedelta(microseconds=at_most)


@comes_first
def test_a_brief_run_costs_no_statement_and_says_that_it_was_brief(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "BRIEF", 60.0)
    processor = handle(ignore)
    processor.process(arrived("first"), nothing)  # a new connection of MariaDB's is asked once how its session is
    found = statements(lambda: processor.process(arrived(), nothing))
    assert "UPDATE" not in found
    row = ProcessedMessage.objects.order_by("pk").last()
    assert row is not None
    assert row.duration == durations.UNMEASURED
    assert row.began_at == row.ended_at == row.processed_at


def test_where_the_record_comes_last_every_run_is_measured(handle: Handle) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the record comes first")
    processor = handle(ignore)
    at_most = took(lambda: processor.process(arrived(), nothing))
    assert 1 <= (only_row().duration or 0) <= at_most


def test_a_failed_attempt_says_how_long_it_took_however_late_it_is_recorded(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(message: ReceivedMessage) -> None:
        time.sleep(LONG)
        raise ValueError

    processor = handle(late)
    is_away = processor.outages.raise_if_away

    def ask(error: BaseException, database: str) -> None:
        is_away(error, database)
        time.sleep(1)  # as a database that answers slowly

    monkeypatch.setattr(processor.outages, "raise_if_away", ask)
    at_most = took(lambda: processor.process(arrived(), nothing)) - 1_000_000
    row = only_row()
    attempt = row.attempt_set.get()
    assert row.duration is not None
    assert attempt.started_at is not None
    assert LONG * 1_000_000 <= row.duration <= at_most
    assert microseconds(attempt.ended_at - attempt.started_at) == pytest.approx(row.duration, abs=20_000)


def test_a_retry_says_how_long_its_last_run_took(handle: Handle) -> None:
    def second(message: ReceivedMessage) -> None:
        if message.attempt == 1:
            raise ValueError
        time.sleep(LONG)

    processor = handle(second)
    at_most = took(lambda: processor.process(arrived(), nothing))
    first = only_row().duration
    assert 1 <= (first or 0) <= at_most
    due = only_row().retry_at
    processor.process(sent(next_round()), nothing)
    row = only_row()
    assert row.state == State.PROCESSED
    assert row.retry_at == due is not None, "when its retry was due is kept"
    assert row.duration is not None
    assert row.duration >= LONG * 1_000_000
    assert row.duration != first
    assert row.ended_at == row.processed_at


def test_a_handler_without_a_transaction_says_it_as_well(handle: Handle) -> None:
    processor = handle(ignore, atomic=False)
    at_most = took(lambda: processor.process(arrived(), nothing))
    row = only_row()
    assert row.duration is not None
    assert 1 <= row.duration <= at_most
    assert row.began_at == row.started_at


def test_a_crash_that_nobody_timed_does_not_say_how_long_it_took(handle: Handle) -> None:
    processor = handle(ignore)
    dead = arrived()
    lapsed = {"leased_until": Now() - timedelta(minutes=1), "started_at": Now(), "at_broker": False}
    ProcessedMessage.objects.create(**claim_of(dead), **lapsed)
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 1
    row = only_row()
    assert row.state == State.RETRYING
    assert row.duration is None


def test_a_batch_says_it_of_each_of_its_messages(handle: Handle) -> None:
    def many(messages: list[ReceivedMessage]) -> None:
        time.sleep(LONG)

    processor = handle(many, batch=10)
    deliveries = [arrived(str(number)) for number in range(3)]
    handler = processor.route(deliveries[0])
    assert handler is not None
    assert {one.action for one in processor.process_batch(handler, deliveries)} == {"ack"}
    found = set(ProcessedMessage.objects.values_list("duration", flat=True))
    assert len(found) == 1
    assert (found.pop() or 0) >= LONG * 1_000_000


def test_who_is_told_of_a_success_reads_how_long_it_took(handle: Handle) -> None:
    told: list[int | None] = []

    def hear(row: ProcessedMessage, **_: object) -> None:
        told.append(row.duration)

    message_processed.connect(hear)
    try:
        handle(slow).process(arrived(), nothing)
    finally:
        message_processed.disconnect(hear)
    assert told == [only_row().duration]


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="where the search path is set for a transaction")
@pytest.mark.parametrize("is_batch", [False, True])
def test_what_a_handler_leaves_in_its_transaction_costs_it_nothing(handle: Handle, is_batch: bool) -> None:
    def elsewhere(message: object) -> None:
        Effect.objects.create(key="done")
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL search_path TO pg_catalog")
        time.sleep(LONG)

    processor = handle(elsewhere, **({"batch": 10} if is_batch else {}))
    delivery = arrived()
    if is_batch:
        handler = processor.route(delivery)
        assert handler is not None
        processor.process_batch(handler, [delivery])
    else:
        processor.process(delivery, nothing)
    row = only_row()
    assert (row.state, row.attempts, Effect.objects.count()) == (State.PROCESSED, 1, 1)
    assert (row.duration or 0) >= LONG * 1_000_000  # said behind the commit


@comes_first
def test_a_rollback_after_a_long_run_is_still_a_failed_attempt(handle: Handle) -> None:
    def undone(message: ReceivedMessage) -> None:
        slow(message)
        transaction.set_rollback(True)

    handle(undone).process(arrived(), nothing)
    row = only_row()
    assert (row.state, Effect.objects.count()) == (State.RETRYING, 0)
    assert row.processed_at is None
