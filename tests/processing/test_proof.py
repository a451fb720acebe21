"""A handler that ends its transaction itself: nothing is acknowledged as processed that is not recorded with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import Error, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from messaging import handler, publish
from messaging.exceptions import DatabaseUnavailable
from messaging.handlers import Registry, registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing import durations, execution, failures
from messaging.processing.processor import Processor
from messaging.testing import drain
from tests.app.models import Effect
from tests.deliveries import arrived, registered, sent
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="what PostgreSQL tells or is told")
State = ProcessedMessage.State
Make = Callable[..., Processor]


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def by_sql() -> None:
    execute("ROLLBACK")


def by_the_driver() -> None:
    connection.connection.rollback()


def to_begin_anew() -> None:
    execute("ROLLBACK")
    execute("BEGIN")


ENDS = pytest.mark.parametrize("end", [by_sql, by_the_driver, to_begin_anew])


@pytest.fixture
def make() -> Make:
    """Builds a processor with one handler."""

    def build(function: Callable[..., Any], **options: Any) -> Processor:
        known = Registry()
        registered(known, function, **options)
        return Processor("default", "worker-1", handlers=known)

    return build


def leaving(end: Callable[[], object], then: Callable[[], object] = lambda: None) -> Callable[..., None]:
    """A handler that does one half, ends its transaction, does the other half and returns."""

    def leave(message: ReceivedMessage) -> None:
        Effect.objects.create(key="before", value=message.id)
        end()
        Effect.objects.create(key="after", value=message.id)
        then()

    return leave


def effects() -> list[str]:
    return sorted(Effect.objects.values_list("key", flat=True))


def has_failed_once(row: ProcessedMessage) -> bool:
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    assert row.exception_type == "messaging.exceptions.CommitNotProven"
    assert "before" not in effects()
    assert Attempt.objects.count() == 1
    return True


# A rollback


@ENDS
@pytest.mark.parametrize("redelivered", [False, True])
def test_a_handler_that_rolled_back_itself_has_failed(make: Make, end: Any, redelivered: bool) -> None:
    assert make(leaving(end)).process(arrived(redelivered=redelivered), lambda: None).action == "ack"
    assert has_failed_once(ProcessedMessage.objects.get())


@ENDS
def test_an_async_handler_that_rolled_back_itself_has_failed(make: Make, end: Any) -> None:
    async def leave(message: ReceivedMessage) -> None:
        await Effect.objects.acreate(key="before")
        await sync_to_async(end)()
        await Effect.objects.acreate(key="after")

    make(leave).process(arrived(), lambda: None)
    assert has_failed_once(ProcessedMessage.objects.get())


@ENDS
def test_a_retry_that_rolled_back_itself_has_failed(make: Make, end: Any) -> None:
    def leave(message: ReceivedMessage) -> None:
        if message.round == 1:
            raise ValueError
        leaving(end)(message)

    processor = make(leave)
    processor.process(arrived(), lambda: None)
    again = sent(PublishedMessage.objects.get())
    processor.process(again, lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 2, 3)
    assert "before" not in effects()


@ENDS
def test_of_a_batch_that_rolled_back_itself_each_message_has_failed(make: Make, end: Any) -> None:
    def leave(messages: list[ReceivedMessage]) -> None:
        leaving(end)(messages[0])

    processor = make(leave, batch=2)
    deliveries = [arrived("one"), arrived("two")]
    handler = processor.route(deliveries[0])
    assert handler is not None
    processor.process_batch(handler, deliveries)
    assert set(ProcessedMessage.objects.values_list("state", "attempts")) == {(State.RETRYING, 1)}
    assert "before" not in effects()


@ENDS
def test_one_that_rolls_back_itself_each_time_rests_as_failed(make: Make, end: Any) -> None:
    processor = make(leaving(end), max_attempts=2)
    processor.process(arrived(), lambda: None)
    processor.process(sent(PublishedMessage.objects.get(state="pending")), lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts) == (State.FAILED, 2)
    assert "executed ROLLBACK or COMMIT itself" in row.error


def test_what_it_published_before_it_rolled_back_is_not_sent(make: Make) -> None:
    def leave(message: ReceivedMessage) -> None:
        publish("before", 1)
        by_sql()

    make(leave).process(arrived(), lambda: None)
    assert has_failed_once(ProcessedMessage.objects.get())
    assert not PublishedMessage.objects.filter(routing_key="before").exists()


# A commit


def commit() -> None:
    execute("COMMIT")


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="there the record is written last")
@pytest.mark.parametrize("redelivered", [False, True])
def test_a_handler_that_committed_itself_and_returns_is_processed(make: Make, redelivered: bool) -> None:
    processor, delivery = make(leaving(commit)), arrived(redelivered=redelivered)
    assert processor.process(delivery, lambda: None).action == "ack"
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    assert effects() == ["after", "before"]


def refuse() -> None:
    raise ValueError("too late")


def meet_a_deadlock() -> None:
    """Once; a rerun would find what the first run committed."""
    if not Effect.objects.filter(key="before").count() > 1:
        raise OperationalError(1213) from Conflict()


class Conflict(Exception):
    sqlstate = "40P01"
    args = (1213,)


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="there the record is written last")
@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("error", [refuse, lambda: transaction.set_rollback(True), meet_a_deadlock])
def test_a_handler_that_committed_itself_and_fails_has_failed(make: Make, error: Any, redelivered: bool) -> None:
    processor = make(leaving(commit, error))
    assert processor.process(arrived(redelivered=redelivered), lambda: None).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round, row.processed_at) == (State.RETRYING, 1, 2, None)
    assert row.lease_token is None
    assert Attempt.objects.count() == PublishedMessage.objects.count() == 1
    assert effects() == ["before"]


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="there the record is written last")
def test_a_retry_that_committed_itself_and_raises_has_failed(make: Make) -> None:
    def leave(message: ReceivedMessage) -> None:
        if message.round == 1:
            raise ValueError
        leaving(commit, refuse)(message)

    processor = make(leave)
    processor.process(arrived(), lambda: None)
    assert processor.process(sent(PublishedMessage.objects.get()), lambda: None).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, row.round, row.processed_at) == (State.RETRYING, 2, 3, None)
    assert effects() == ["before"]


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="there the record is written last")
def test_of_a_batch_that_committed_itself_and_raises_each_message_has_failed(make: Make) -> None:
    def leave(messages: list[ReceivedMessage]) -> None:
        leaving(commit, refuse)(messages[0])

    processor = make(leave, batch=2)
    deliveries = [arrived("one"), arrived("two")]
    settlements = processor.process_batch(processor.route(deliveries[0]), deliveries)  # type: ignore[arg-type]
    assert {settlement.action for settlement in settlements} == {"ack"}
    assert set(ProcessedMessage.objects.values_list("state", "attempts")) == {(State.RETRYING, 1)}


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="there the record is written last")
def test_the_record_of_a_copy_that_ran_meanwhile_is_not_taken_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def leave(message: ReceivedMessage) -> None:
        runs.append(message.round)
        if message.round == 1 or len(runs) == 2:
            raise ValueError

    processor = make(leave)
    processor.process(arrived(), lambda: None)
    again = sent(PublishedMessage.objects.get())
    record, is_first = failures.record, [True]

    def after_a_copy(*args: Any) -> Any:
        if is_first.pop() if is_first else False:
            processor.process(again, lambda: None)
        return record(*args)

    monkeypatch.setattr(failures, "record", after_a_copy)
    processor.process(again, lambda: None)
    assert (runs, ProcessedMessage.objects.get().state) == ([1, 2, 2], State.PROCESSED)


@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="elsewhere the record is written first")
def test_where_the_record_is_written_last_a_handler_that_committed_itself_has_failed(make: Make) -> None:
    make(leaving(commit)).process(arrived(), lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts) == (State.RETRYING, 1)


# What is none of this


def in_a_savepoint() -> None:
    savepoint = connection.savepoint()
    Effect.objects.create(key="rolled back")
    connection.savepoint_rollback(savepoint)


def around_an_error() -> None:
    with pytest.raises(Exception, match="no_such_table"), transaction.atomic():
        execute("SELECT * FROM no_such_table")


def by_naming_its_session() -> None:
    if connection.vendor == "postgresql":
        execute("SET application_name = 'nightly report'")


@pytest.mark.parametrize("deed", [in_a_savepoint, around_an_error, by_naming_its_session])
@pytest.mark.parametrize("redelivered", [False, True])
def test_whoever_stays_in_the_transaction_is_processed(make: Make, deed: Any, redelivered: bool) -> None:
    make(leaving(deed)).process(arrived(redelivered=redelivered), lambda: None)
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    assert effects() == ["after", "before"]
    connection.close()  # and with it the name


# What PostgreSQL tells


@on_postgresql
@pytest.mark.parametrize("options", [{}, {"timeout": 3.0}])
@pytest.mark.parametrize("name", ["", "shop", "x" * 63, "100 % ' \\"])
def test_the_driver_knows_without_a_statement(
    make: Make, options: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(execution, "stands", fail)
    with connection.cursor() as cursor:
        cursor.execute("SET application_name = %s", [name])
    processor = make(leaving(lambda: None), **options)
    processor.process(arrived(), lambda: None)
    processor.process(arrived(redelivered=True), lambda: None)
    processor.process_batch(processor.route(arrived()), [arrived(), arrived()])  # type: ignore[arg-type]
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {State.PROCESSED}
    with connection.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == (name,)
    connection.close()


@on_postgresql
@pytest.mark.parametrize("timeout", [None, 3.0])
def test_a_first_run_costs_one_statement_of_ours(
    make: Make, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "BRIEF", 3600.0)
    processor = make(lambda message: None, timeout=timeout)
    with CaptureQueriesContext(connection) as queries:
        processor.process(arrived(), lambda: None)
    assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "INSERT", "COMMIT"]


@on_postgresql
@pytest.mark.parametrize("known", [None, b"always the same"])
def test_where_the_driver_does_not_know_the_database_is_asked(
    make: Make, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_reported", lambda _: known)
    make(leaving(lambda: None)).process(arrived("whole"), lambda: None)
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    ProcessedMessage.objects.all().delete()
    Effect.objects.all().delete()
    make(leaving(by_sql)).process(arrived("half"), lambda: None)
    assert has_failed_once(ProcessedMessage.objects.get())


# What PostgreSQL is told: a machine that hangs does not keep its message


def idle_limit() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        return str(cursor.fetchone()[0])


@on_postgresql
@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize(
    ("own", "timeout", "limit"),
    [
        ("0", 3.0, "13s"),
        ("1min", 3.0, "13s"),
        ("5s", 3.0, "5s"),
        ("5s", None, "5s"),
        ("0", None, "0"),
        ("0", 1e9, None),
    ],
)
def test_the_server_ends_an_idle_transaction_after_the_timeout_and_a_margin(
    make: Make, own: str, timeout: float | None, limit: str, redelivered: bool
) -> None:
    seen: list[str] = []
    execute(f"SET idle_in_transaction_session_timeout = '{own}'")
    before = idle_limit()
    processor = make(lambda message: seen.append(idle_limit()), timeout=timeout)
    processor.process(arrived(redelivered=redelivered), lambda: None)
    assert seen == [limit or "2147483647ms"]
    assert idle_limit() == before
    connection.close()


@on_postgresql
def test_for_a_batch_too(make: Make) -> None:
    seen: list[str] = []
    processor = make(lambda messages: seen.append(idle_limit()), timeout=3.0, batch=2)
    processor.process_batch(processor.route(arrived()), [arrived(), arrived()])  # type: ignore[arg-type]
    assert seen == ["13s"]


@on_postgresql
def test_one_that_slept_past_it_has_made_one_attempt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "MARGIN", 0.0)
    runs: list[int] = []

    def sleep(message: ReceivedMessage) -> None:
        runs.append(connection.connection.info.backend_pid)
        with closing(connection.copy()) as other:
            wait_until(lambda: not is_running(other, runs[0]), what="the server to end the session")
        Effect.objects.create(key="after")

    make(sleep, timeout=0.2).process(arrived(), lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, len(runs)) == (State.RETRYING, 1, 1)
    assert "idle-in-transaction timeout" in row.error
    assert effects() == []


@on_postgresql
def test_one_that_slept_past_it_and_asks_nothing_more_has_failed_at_its_commit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MARGIN", 0.0)
    runs: list[int] = []

    def sleep(message: ReceivedMessage) -> None:
        runs.append(connection.connection.info.backend_pid)
        Effect.objects.create(key="before")
        with closing(connection.copy()) as other:
            wait_until(lambda: not is_running(other, runs[0]), what="the server to end the session")

    make(sleep, timeout=0.2).process(arrived(), lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, len(runs), effects()) == (State.RETRYING, 1, 1, [])


def is_running(other: Any, pid: int) -> bool:
    with other.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid])
        return cursor.fetchone() is not None


# Inside a test's transaction


@pytest.fixture
def in_test() -> Iterator[None]:
    """What `TestCase` does; but what is left behind is deleted all the same."""
    atomic = transaction.atomic()
    atomic._from_testcase = True  # type: ignore[attr-defined]
    atomic.__enter__()
    yield
    transaction.set_rollback(True)
    with suppress(Error):
        atomic.__exit__(None, None, None)
    connection.close()


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("end", [by_sql, by_the_driver, to_begin_anew, commit])
def test_a_test_whose_handler_ends_its_transaction_is_told(
    in_test: None, end: Any, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_handlers", {})
    handler("work", "work.#", atomic=atomic)(lambda message: end())
    publish("work.do", 1)
    with pytest.raises(DatabaseUnavailable, match=r"executed ROLLBACK or COMMIT itself.*use TransactionTestCase"):
        drain()


@on_postgresql
def test_in_a_test_no_limit_is_set(in_test: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_handlers", {})
    seen: list[str] = []
    handler("work", "work.#", timeout=3)(lambda message: seen.append(idle_limit()))
    publish("work.do", 1)
    drain()
    assert seen == [idle_limit()] == ["0"]
