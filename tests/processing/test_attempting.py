"""One attempt: the handler's transaction, conflicts, and connections that break under it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.db import connection, connections, transaction

from messaging import apublish
from messaging.exceptions import ProcessDied
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from tests.app.models import Effect
from tests.deliveries import arrived, sent
from tests.processing.tools import Handle, effect, end_this_session, entry_of, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


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
