"""Listening for notifications, whatever else the database allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from django.db import connection, connections

from messaging.publishing.publisher import CHANNEL
from messaging.relaying.listener import Listener
from tests.settings import TEST_DB
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(TEST_DB != "postgres", reason="NOTIFY is PostgreSQL's"),
]
ROLE = "messaging_one_connection"


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New connections belong to an account that may have one of them."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'secret' CONNECTION LIMIT 1")
    with monkeypatch.context() as changed:
        changed.setitem(connections.settings["default"], "USER", ROLE)
        changed.setitem(connections.settings["default"], "PASSWORD", "secret")
        yield
    with connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {ROLE}")


@pytest.mark.usefixtures("one_connection")
def test_who_gets_no_second_connection_to_try_it_with_hears_the_others_all_the_same() -> None:
    heard = threading.Event()
    listener = Listener("default", "default", heard.set)
    listener.start()

    def is_heard() -> bool:  # it may not have listened yet when the first one was told
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, 'default')", [CHANNEL])
        return heard.wait(0.1)

    try:
        wait_until(is_heard, what="a notification heard")
        assert listener.has_heard
    finally:
        listener.stop()
