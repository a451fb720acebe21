"""Statements that are kept prepared: only in a session of one's own, and without a difference for what they do."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test.utils import CaptureQueriesContext

from messaging.db.clock import Now
from messaging.db.insert_one import insert
from messaging.db.session import can_prepare
from messaging.models import ProcessedMessage
from messaging.processing import inbox
from tests.deliveries import arrived, envelope_of
from tools.proxy import Proxy, _Pipe

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor != 'postgresql'", reason="only PostgreSQL is asked to prepare anything"),
]
OURS = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT INTO \"messaging_processedmessage\"%'"
BACKEND_KEY = re.compile(rb"K\x00\x00\x00\x0c....", re.DOTALL)


class Pooler(Proxy):
    """Says of a session what a pooler says: a process id of its own making."""

    def _read(self, pipe: _Pipe) -> None:
        super()._read(pipe)
        if pipe.downstream and pipe.queue:
            due, data = pipe.queue.pop()
            pipe.queue.append((due, BACKEND_KEY.sub(b"K\x00\x00\x00\x0c\x00\x00\x00\x01", data)))


def row() -> ProcessedMessage:
    made = inbox.fresh("default", "work", envelope_of(arrived(headers={"n": 1}))).row
    made.state, made.processed_at = ProcessedMessage.State.PROCESSED, Now()
    return made


def kept() -> int:
    with connection.cursor() as cursor:
        cursor.execute(OURS)
        return int(cursor.fetchone()[0])


def through(proxy: Proxy) -> BaseDatabaseWrapper:
    other: Any = connection.copy()
    other.settings_dict = {**other.settings_dict, "HOST": "127.0.0.1", "PORT": str(proxy.port)}
    other.connect()
    return other  # type: ignore[no-any-return]


def test_the_statement_of_each_message_is_kept() -> None:
    connection.close()
    for _ in range(3):
        insert(row(), "default", lock_wait=2.0)
    assert kept() == 1
    assert connection.connection.prepare_threshold is None, "nobody else's statements are"


def test_behind_a_pooler_nothing_is_prepared() -> None:
    address = connection.settings_dict["HOST"], int(connection.settings_dict["PORT"] or 5432)
    with Proxy(*address) as proxy, closing(through(proxy)) as other:
        assert can_prepare(other)
    with Pooler(*address) as proxy, closing(through(proxy)) as other:
        assert not can_prepare(other)


def test_in_a_pool_that_may_discard_what_a_session_knows_nothing_is_prepared() -> None:
    other: Any = connection.copy()
    other.settings_dict = {
        **other.settings_dict,
        "OPTIONS": {"pool": {"min_size": 1, "max_size": 1}},
        "CONN_MAX_AGE": 0,
    }
    other.connect()
    assert not can_prepare(other)
    other.close()
    other.close_pool()


def test_who_watches_the_statements_sees_ours() -> None:
    with CaptureQueriesContext(connection) as queries:
        insert(row(), "default")
    assert len(queries) == 1


def test_a_cursor_that_does_more_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Tenants(DatabaseWrapper):
        """Sets the schema with each cursor."""

        def _cursor(self, name: str | None = None) -> Any:
            asked.append(True)
            return super()._cursor(name)

    with closing(Tenants(connection.settings_dict)) as other:
        other.connect()
        assert not can_prepare(other)
        assert asked == []
    insert(row(), "default")
    assert can_prepare(connections["default"])
    monkeypatch.setattr(connections["default"], "cursor", lambda: None)  # as tests forbid a database
    assert not can_prepare(connections["default"])


def test_an_error_of_a_prepared_statement_is_djangos_and_ends_nothing_else() -> None:
    first, second = row(), row()
    second.key = first.key
    insert(first, "default", lock_wait=2.0)
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(second, "default", lock_wait=2.0)
    insert(row(), "default", lock_wait=2.0)
    assert ProcessedMessage.objects.count() == 2


def test_a_connection_whose_health_is_to_be_checked_is_checked() -> None:
    insert(row(), "default")
    insert(row(), "default")
    mine = connections["default"]
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [mine.connection.info.backend_pid])
    mine.health_check_enabled, mine.health_check_done = True, False  # as a request begins under CONN_HEALTH_CHECKS
    insert(row(), "default")
    assert ProcessedMessage.objects.count() == 3


def test_a_new_session_has_statements_and_a_cursor_of_its_own() -> None:
    insert(row(), "default", lock_wait=2.0)
    connection.close()
    for _ in range(2):  # the first one connects, as Django does it
        insert(row(), "default", lock_wait=2.0)
    assert ProcessedMessage.objects.count() == 3
    assert kept() == 1


def test_the_thread_of_an_event_loop_is_refused_as_by_djangos_cursors() -> None:
    insert(row(), "default")

    async def insert_there() -> None:
        insert(row(), "default")

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(insert_there())
    assert ProcessedMessage.objects.count() == 1
