"""What a handler leaves in its database session costs no other message anything."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from messaging import publish
from messaging.db.connections import brief_locks
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing import durations
from messaging.processing.processor import Processor
from tests.app.models import Effect
from tests.deliveries import arrived, registered
from tests.settings import TEST_DB

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(TEST_DB == "sqlite", reason="a connection is a session of its own"),
]
postgres = pytest.mark.skipif(TEST_DB != "postgres", reason="about PostgreSQL's sessions")

LEFT_IN_POSTGRESQL = {
    "path": "SET search_path TO pg_catalog",
    "another path": "SET search_path TO pg_catalog, public",
    "role": "SET ROLE pg_monitor",
    "read-only": "SET default_transaction_read_only TO on",
    "statement timeout": "SET statement_timeout TO 30",
    "longer statement timeout": "SET statement_timeout TO 50",
    "prepared statements": "DEALLOCATE ALL",
    "isolation": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "time zone": "SET TIME ZONE 'Asia/Tokyo'",
    "lock timeout": "SET lock_timeout TO 1",
    "nothing": "SELECT 1",
}
SEEN_IN_POSTGRESQL = (
    "SELECT current_user, current_setting('search_path'), current_setting('TimeZone'), "
    "current_setting('statement_timeout')"
)
LEFT_IN_MARIADB = {
    "read-only": "SET SESSION TRANSACTION READ ONLY",
    "statement timeout": "SET SESSION max_statement_time = 0.09",
    "isolation": "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "time zone": "SET time_zone = '+09:00'",
    "mode": "SET SESSION sql_mode = ''",
    "lock timeout": "SET SESSION innodb_lock_wait_timeout = 1",
    "nothing": "SELECT 1",
}
LEFT, SLEEP, SEEN = (
    (LEFT_IN_MARIADB, "SELECT SLEEP(0.1)", "SELECT DATABASE(), @@time_zone, @@sql_mode, @@max_statement_time")
    if TEST_DB == "mariadb"
    else (LEFT_IN_POSTGRESQL, "SELECT pg_sleep(0.1)", SEEN_IN_POSTGRESQL)
)


def leave(message: ReceivedMessage) -> None:
    """Execute what the message says, and else look around."""
    with connection.cursor() as cursor:
        if message.type:
            cursor.execute(message.type)
            return
        cursor.execute(SLEEP)
        cursor.fetchall()
        cursor.execute(SEEN)
        Effect.objects.create(key=message.id, value=str(cursor.fetchone()))
        publish("seen", message.id)


@pytest.mark.mode(50)
@pytest.mark.parametrize("options", [{}, {"batch": 5}, {"atomic": False}], ids=["atomic", "batch", "claimed"])
@pytest.mark.parametrize("what", LEFT)
def test_what_a_handler_leaves_in_its_session_costs_nobody_anything(what: str, options: dict[str, Any]) -> None:
    registry = Registry()
    handler = registered(registry, run_batch if "batch" in options else leave, **options)
    processor = Processor("default", "worker-1", handlers=registry)

    def process(*deliveries: Any) -> None:
        if handler.batch:
            settlements = processor.process_batch(handler, deliveries)
        else:
            settlements = [processor.process(delivery, lambda: None) for delivery in deliveries]
        assert {settlement.action for settlement in settlements} <= {"ack", "done"}

    process(arrived(), arrived())
    process(arrived(type=LEFT[what]))
    process(*(arrived() for _ in range(4)))
    assert set(ProcessedMessage.objects.values_list("state", "attempts")) == {("processed", 1)}
    assert Attempt.objects.count() == 0
    assert (Effect.objects.count(), PublishedMessage.objects.count()) == (6, 6)
    assert len(set(Effect.objects.values_list("value", flat=True))) == 1


def run_batch(messages: list[ReceivedMessage]) -> None:
    for message in messages:
        leave(message)


@pytest.mark.mode(50)
@pytest.mark.parametrize("what", [LEFT["time zone"], "USE information_schema"])
def test_what_a_handler_leaves_that_fails_costs_nobody_anything(what: str) -> None:
    def fail(message: ReceivedMessage) -> None:
        leave(message)
        if message.type:
            raise ValueError

    registry = Registry()
    registered(registry, fail)
    processor = Processor("default", "worker-1", handlers=registry)
    processor.process(arrived(), lambda: None)
    processor.process(arrived(type=what), lambda: None)  # the second one fails at its record, or is no SQL
    processor.process(arrived(), lambda: None)
    assert sorted(ProcessedMessage.objects.values_list("state", flat=True)) == ["processed", "processed", "retrying"]
    assert len(set(Effect.objects.values_list("value", flat=True))) == 1


def test_a_round_that_was_recorded_before_finds_a_clean_session() -> None:
    registry = Registry()
    registered(registry, leave, backoff=0)
    processor = Processor("default", "worker-1", handlers=registry)
    processor.process(arrived(), lambda: None)
    processor.process(arrived(type=LEFT["time zone"]), lambda: None)
    processor.process(arrived(redelivered=True), lambda: None)
    assert len(set(Effect.objects.values_list("value", flat=True))) == 1


@postgres
def test_a_session_that_is_as_it_was_is_kept_and_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "BRIEF", 3600.0)
    registry = Registry()
    registered(registry, lambda message: None)
    processor = Processor("default", "worker-1", handlers=registry)
    processor.process(arrived(), lambda: None)
    before = connection.connection
    with CaptureQueriesContext(connection) as queries:
        processor.process(arrived(), lambda: None)
    assert connection.connection is before
    assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "INSERT", "COMMIT"]


@postgres
def test_a_record_of_ours_that_cannot_be_made_costs_no_attempt() -> None:
    """Neither the first time nor after a new connection: it is nobody's attempt."""
    registry = Registry()
    runs: list[int] = []
    registered(registry, lambda message: runs.append(1))
    processor = Processor("default", "worker-1", handlers=registry)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_processedmessage RENAME TO elsewhere")
    try:
        with pytest.raises(Exception, match="does not exist"):
            processor.process(arrived(), lambda: None)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO messaging_processedmessage")
    assert runs == []
    assert ProcessedMessage.objects.count() == 0


@postgres
@pytest.mark.parametrize("at_end", [True, False], ids=["at its end", "at a statement"])
@pytest.mark.parametrize("silent", [True, False], ids=["cut without a word", "told"])
def test_a_transaction_that_was_idle_for_too_long_is_one_attempt(at_end: bool, silent: bool) -> None:
    runs: list[int] = []

    def sleep(message: ReceivedMessage) -> None:
        runs.append(message.attempt)
        began = time.monotonic()
        pid = connection.connection.info.backend_pid
        while not ended(pid) and time.monotonic() - began < 20:
            time.sleep(0.1)
        if silent:
            connection.connection.pgconn.finish()
        if not at_end:
            Effect.objects.create(key=message.id, value="late")

    registry = Registry()
    registered(registry, sleep)
    processor = Processor("default", "worker-1", handlers=registry)
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout TO 1100')
    connection.close()
    try:
        processor.process(arrived(), lambda: None)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" RESET idle_in_transaction_session_timeout')
        connection.close()
    assert runs == ([1, 1] if silent else [1]), "once more, where it may as well have been the network"
    assert ProcessedMessage.objects.values_list("state", "attempts").get() == ("retrying", 1)


def ended(pid: int) -> bool:
    """Whether a session is gone."""
    other = connections["default"].copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid])
            return cursor.fetchone() == (0,)
    finally:
        other.close()


@postgres
def test_a_lock_limit_of_ours_tells_of_another_session() -> None:
    with brief_locks(connection, 1):
        pass
    with connection.cursor() as cursor:
        cursor.execute(LEFT["time zone"])
    with pytest.raises(Exception, match="in another state"), brief_locks(connection, 1):
        pass
    connection.close()
