"""What holds on whatever database `TEST_DB` names, although databases differ there."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from messaging.checks import check_servers
from messaging.checks.databases import _check_variables, require_fit
from messaging.db.connections import brief_locks
from messaging.exceptions import ConfigurationError
from messaging.handlers import Registry
from messaging.message import Message, ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.inbox import AlreadyRecorded, fresh
from messaging.processing.processor import Processor
from messaging.publishing.publisher import publish_many
from messaging.wire.envelope import KEY, QUEUE, ROUND, hashed
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, envelope_of, registered

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
LOCK_LIMITS = {"postgresql": "SHOW lock_timeout", "mysql": "SELECT @@innodb_lock_wait_timeout"}


def effect(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.id, value=message.queue)


def processor_of(function: Any = effect, *, queues: tuple[str, ...] = ("work",), **options: Any) -> Processor:
    registry = Registry()
    for queue in queues:
        registered(registry, function, queue=queue, **options)
    return Processor("default", "worker-1", handlers=registry)


def process(processor: Processor, delivery: Arrived) -> str:
    return processor.process(delivery, lambda: None).action


def lock_limit() -> str:
    with connection.cursor() as cursor:
        cursor.execute(LOCK_LIMITS[connection.vendor])
        return str(cursor.fetchone()[0])


def test_any_hash_can_be_stored_and_found() -> None:
    keys = {hashed(str(number).encode()) for number in range(500)}
    rows = [ProcessedMessage(queue="work", key=key, digest=key, state=State.PROCESSED) for key in keys]
    ProcessedMessage.objects.bulk_create(rows)
    assert ProcessedMessage.objects.filter(key__in=keys).count() == 500


@pytest.mark.parametrize("key", ["27c35e6e-9373-877f-29e5-62464e46497e", "no uuid", 17])
def test_a_key_that_we_never_write_is_not_believed(key: Any) -> None:
    headers = {QUEUE: "work", ROUND: 2, KEY: key}
    delivery = arrived(headers=headers)
    delivery.exchange = ""
    assert process(processor_of(), delivery) == "ack"
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    assert Effect.objects.count() == 1


def test_headers_that_are_nested_as_deep_as_can_be_are_kept() -> None:
    headers: dict[str, Any] = {"x": "innermost"}
    for _ in range(60):
        headers = {"x": headers}
    for options in ({}, {"atomic": False}):
        delivery = arrived(headers=headers)
        assert process(processor_of(**options), delivery) in ("ack", "done")
        row = ProcessedMessage.objects.get(message_id=delivery.properties.message_id)
        assert row.state == State.PROCESSED
        assert row.envelope().properties.headers == headers


def test_a_message_that_fails_keeps_headers_that_are_nested_as_deep_as_can_be() -> None:
    headers: dict[str, Any] = {"x": "innermost"}
    for _ in range(60):
        headers = {"x": headers}

    def fail(message: ReceivedMessage) -> None:
        raise ValueError

    assert process(processor_of(fail), arrived(headers=headers)) == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.rounds.count()) == (State.RETRYING, 1)
    assert row.envelope().properties.headers == headers


@contextmanager
def narrow_body() -> Iterator[None]:
    """The body's column can hold Western European text alone."""
    alter = "ALTER TABLE messaging_processedmessage MODIFY body longtext CHARACTER SET {} NOT NULL"
    with connection.cursor() as cursor:
        cursor.execute(alter.format("latin1"))
    try:
        yield
    finally:
        ProcessedMessage.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(alter.format("utf8mb4"))


@pytest.mark.skipif("connection.vendor != 'mysql'", reason="others have one character set for all")
@pytest.mark.parametrize("options", [{}, {"atomic": False}])
def test_what_a_narrow_character_set_lacks_is_stored_escaped(options: dict[str, Any]) -> None:
    with narrow_body():
        assert process(processor_of(**options), arrived("żółw")) in ("ack", "done")
        row = ProcessedMessage.objects.get()
        assert (row.state, row.body_encoding, row.raw_body.decode()) == (State.PROCESSED, "base64", "żółw")


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="has no such limit")
def test_the_limit_on_waiting_for_locks_ends_with_its_block_even_after_an_error() -> None:
    before = lock_limit()
    delivery = arrived()
    place = fresh("default", "work", envelope_of(delivery))
    with transaction.atomic():
        place.write("default", state=State.PROCESSED)
        assert lock_limit() == before
    twin = fresh("default", "work", envelope_of(delivery))
    with pytest.raises(AlreadyRecorded), transaction.atomic():
        twin.write("default", state=State.PROCESSED)
    assert lock_limit() == before
    with transaction.atomic(), brief_locks(connection, 2.0):
        assert lock_limit().startswith("2")


@pytest.mark.skipif("connection.vendor != 'mysql'", reason="only there a transaction goes on after a deadlock")
@pytest.mark.parametrize("options", [{}, {"batch": 10}])
def test_a_handler_that_swallows_a_deadlock_has_failed(options: dict[str, Any]) -> None:
    ours, theirs = (Effect.objects.create(key=key) for key in ("ours", "theirs"))

    def swallow(message: Any) -> None:
        Effect.objects.create(key="lost", value="in the deadlock")
        try:
            collide(ours, theirs)
        except OperationalError as error:
            seen.append(error.args[0])
        Effect.objects.create(key="half", value="after the deadlock")

    seen: list[int] = []
    processor, delivery = processor_of(swallow, **options), arrived()
    if options:
        handler = processor.route(delivery)
        assert handler is not None
        processor.process_batch(handler, [delivery, arrived()])
    else:
        assert process(processor, delivery) == "ack"
    assert set(seen) == {1213}
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {State.RETRYING}
    assert Effect.objects.filter(key__in=["lost", "half"]).count() == 0


def collide(ours: Effect, theirs: Effect) -> None:
    """Run into a deadlock with another transaction, which is the heavier one and so survives."""
    has_locked, is_over = threading.Event(), threading.Event()

    def other() -> None:
        try:
            with transaction.atomic():
                Effect.objects.bulk_create(Effect(key="weight") for _ in range(200))
                Effect.objects.filter(pk=theirs.pk).update(value="locked")
                has_locked.set()
                Effect.objects.filter(pk=ours.pk).update(value="waits")
                transaction.set_rollback(True)
        finally:
            is_over.set()
            connections.close_all()

    with connection.cursor() as cursor:
        cursor.execute("UPDATE app_effect SET value = 'locked' WHERE id = %s", [ours.pk])
        threading.Thread(target=other).start()
        assert has_locked.wait(60)
        try:
            cursor.execute("UPDATE app_effect SET value = 'waits' WHERE id = %s", [theirs.pk])
        finally:
            assert is_over.wait(60)


def test_many_messages_are_published_together_whatever_they_weigh() -> None:
    rows = publish_many([Message("heavy", "x" * 100_000) for _ in range(200)])
    assert PublishedMessage.objects.filter(pk__in=[row.pk for row in rows]).count() == 200


def test_messages_that_are_published_together_roll_back_together() -> None:
    heavy = [Message("heavy", "x" * 3_000_000) for _ in range(3)]
    with pytest.raises(DatabaseError), refusing_the_last(len(heavy)):
        publish_many(heavy)
    assert PublishedMessage.objects.count() == 0


@contextmanager
def refusing_the_last(count: int) -> Iterator[None]:
    """The database refuses the INSERT with this number."""
    inserts: list[str] = []

    def execute(run: Any, sql: str, *arguments: Any) -> Any:
        if sql.startswith("INSERT"):
            inserts.append(sql)
        return run("SELECT * FROM there_is_no_such_table" if len(inserts) == count else sql, *arguments)

    with connection.execute_wrapper(execute):
        yield
    assert len(inserts) == count


def test_the_servers_that_tests_use_are_fit() -> None:
    assert check_servers(databases=["default", "elsewhere"]) == []


@pytest.mark.skipif("connection.vendor != 'mysql'", reason="others cannot be set so")
@pytest.mark.parametrize(
    ("statement", "undo", "expected"),
    [
        ("SET SESSION sql_mode = ''", "SET SESSION sql_mode = DEFAULT", "messaging.E031"),
        (
            "SET SESSION default_storage_engine = MyISAM",
            "SET SESSION default_storage_engine = InnoDB",
            "messaging.E032",
        ),
        (
            "ALTER TABLE messaging_queuecontrol ENGINE = MyISAM",
            "ALTER TABLE messaging_queuecontrol ENGINE = InnoDB",
            "messaging.E032",
        ),
        (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "messaging.E033",
        ),
    ],
)
def test_a_server_that_would_lose_messages_is_an_error(statement: str, undo: str, expected: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        try:
            [problem] = check_servers(databases=["default"])
            with pytest.raises(ConfigurationError, match=re.escape(str(problem.msg))):
                require_fit("default")
        finally:
            cursor.execute(undo)
    assert problem.id == expected
    assert problem.is_serious()


def test_a_server_that_takes_only_small_statements_is_a_warning() -> None:
    [problem] = _check_variables("shop", {"max_allowed_packet": "1048576"})
    assert problem.id == "messaging.W006"
    assert "1,048,576 bytes" in problem.msg


def test_queues_whose_names_a_collation_would_equate_each_process_a_message() -> None:
    names = ("work", "Work", "WORK")
    processor, message_id = processor_of(queues=names), str(uuid.uuid4())
    for name in names:
        assert process(processor, arrived(queue=name, message_id=message_id)) == "ack"
    assert set(Effect.objects.values_list("value", flat=True)) == set(names)
