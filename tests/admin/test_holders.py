"""Open transactions that keep messages: who sees them, and that nobody but PostgreSQL is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging.admin import holders
from messaging.models import ProcessedMessage, Worker
from tests.admin_rows import INCOMING, QUEUES, incoming, inline_code, staff
from tests.waiting import wait_until

WORKERS = "/admin/messaging/worker/"
HEADING = "Open transactions that keep messages"
pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="only PostgreSQL tells")


@pytest.fixture
def row() -> Any:
    return incoming("retrying")


@pytest.fixture
def other(row: Any) -> Iterator[Any]:
    """Another session, in an open transaction that has changed the row."""
    with closing(connection.copy()) as session:
        session.set_autocommit(False)
        change(session, row)
        yield session
        session.rollback()


def change(session: Any, row: Any) -> None:
    with session.cursor() as cursor:
        cursor.execute("UPDATE messaging_processedmessage SET worker = 'frozen' WHERE id = %s", [row.pk])


def pid_of(session: Any) -> int:
    return int(session.connection.info.backend_pid)


@on_postgresql
def test_a_message_knows_the_transaction_that_keeps_it(row: Any, other: Any) -> None:
    found = holders.of_row(row)
    assert found is not None
    assert (found.pid, found.database, found.waiting) == (pid_of(other), "default", 0)
    assert found.idle_since is not None
    assert found.idle_since >= found.since
    assert holders.of_row(incoming("retrying")) is None
    other.rollback()
    assert holders.of_row(row) is None


@on_postgresql
def test_long_transactions_are_listed_with_who_waits_for_them(
    row: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "LONG", 3600)
    assert holders.long_ones() == []
    monkeypatch.setattr(holders, "LONG", 0)
    with closing(connection.copy()) as third:
        third.inc_thread_sharing()
        waiter = threading.Thread(target=change, args=(third, row))
        waiter.start()
        wait_until(lambda: [holder.waiting for holder in holders.long_ones() if holder.pid == pid_of(other)] == [1])
        other.rollback()
        waiter.join()
    assert pid_of(other) not in [holder.pid for holder in holders.long_ones()]


@on_postgresql
def test_the_pages_say_so_to_those_who_may_see_them(row: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "LONG", 0)
    client = staff("view_queuecontrol", "view_worker", "view_processedmessage")
    assert HEADING not in client.get(QUEUES).content.decode(), "no worker waits for one"
    waits = "running 1, waiting 0; waits for another process's transaction: 1 message"
    Worker.objects.create(name="w", kind="consume", host="web1", pid=7, status=waits)
    for page in (QUEUES, WORKERS):
        html = client.get(page).content.decode()
        assert HEADING in html
        assert f'<th scope="row">{pid_of(other)}' in html
        assert inline_code(html) == []
    html = client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert f"process {pid_of(other)} at the database, from" in html
    stranger = staff("view_auditrecord", name="otto")
    for page in (QUEUES, WORKERS, f"{INCOMING}{row.pk}/change/"):
        assert stranger.get(page).status_code == 403


def test_without_one_the_pages_say_nothing(row: Any) -> None:
    client = staff("view_queuecontrol", "view_worker", "view_processedmessage")
    for page in (QUEUES, WORKERS, f"{INCOMING}{row.pk}/change/"):
        response = client.get(page)
        assert response.status_code == 200
        assert HEADING not in response.content.decode()
        assert "in an open transaction" not in response.content.decode().lower()


@pytest.mark.skipif("connection.vendor == 'postgresql'", reason="about the others")
def test_no_other_database_is_asked() -> None:
    with CaptureQueriesContext(connection) as queries:
        assert holders.long_ones() == []
        assert holders.of_row(ProcessedMessage(pk=1)) is None
    assert len(queries) == 0
