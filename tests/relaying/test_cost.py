"""What the road to the broker costs in statements, whatever the time: a batch must not fall apart into rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.backends.utils import CursorWrapper
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from messaging.message import Message
from messaging.models import PublishedMessage
from messaging.models.outbox import LEASED, PublishedMessageQuerySet
from messaging.publishing.publisher import publish_many
from messaging.publishing.rows import seal
from messaging.relaying.leases import Marker
from messaging.relaying.relay import BATCH, Relay
from tests.options import set_options
from tests.relays import Desk, burst, relaying, states
from tests.settings import TEST_DB
from tests.waiting import wait_until

rows = PublishedMessage.objects
Out = PublishedMessage.State


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many statements of each kind any thread executes on the outbox."""
    found: Counter[str] = Counter()

    def counting(execute: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Any, sql: Any, *args: Any, **options: Any) -> Any:
            if "messaging_publishedmessage" in str(sql):
                found[str(sql).split()[0]] += 1
            return execute(self, sql, *args, **options)

        return counted

    monkeypatch.setattr(CursorWrapper, "execute", counting(CursorWrapper.execute))
    if TEST_DB == "postgres":  # past Django's
        import psycopg

        class Counting(psycopg.Cursor[Any]):
            execute = counting(psycopg.Cursor.execute)

        monkeypatch.setattr(psycopg, "Cursor", Counting)
    return found


def many(count: int, **options: Any) -> list[PublishedMessage]:
    return publish_many([Message("work", {"number": number}, **options) for number in range(count)])


@pytest.mark.django_db
@pytest.mark.parametrize("count", [10, 1000])
def test_a_batch_costs_as_many_statements_as_a_row(statements: Counter[str], count: int) -> None:
    many(count)
    if TEST_DB == "postgres":  # elsewhere it depends on how many values a statement may have
        assert statements["INSERT"] == 1
    statements.clear()
    held = rows.lease("default", "one", 15, BATCH)
    assert len(held) == count
    assert statements.total() == (1 if TEST_DB == "postgres" else 3)
    statements.clear()
    assert rows.renew(held, 15) == count
    assert rows.back_off(held, -1, "a full queue", spend=False) == count
    held = rows.lease("default", "one", 15, BATCH)
    assert rows.mark_published(held) == count
    assert statements["UPDATE"] == 4
    rows.update(state=Out.PENDING, lease_token=held[0].lease_token)
    statements.clear()
    assert rows.fail(held, "no such exchange") == held
    assert statements.total() == 1


@pytest.mark.django_db
def test_what_the_relay_needs_of_a_row_is_read_with_the_lease() -> None:
    many(3, headers={"tenant": "acme"}, queue="work")
    (first, *_) = held = rows.lease("default", "one", 15, 10)
    assert {"size", *LEASED} == {name for name in vars(first) if not name.startswith("_")}
    with CaptureQueriesContext(connection) as queries:
        assert {seal(row)[1] for row in held} == {"work"}
        assert all(str(row) for row in held)
    assert not queries.captured_queries
    assert first.publish_at == rows.get(pk=first.pk).publish_at  # the rest, when it is asked for


@pytest.mark.django_db
@pytest.mark.parametrize("use_tz", [True, False])
def test_a_leased_row_has_the_values_that_the_orm_reads(settings: Settings, use_tz: bool) -> None:
    settings.USE_TZ = use_tz
    many(2, headers={"at": datetime(2031, 5, 6, tzinfo=UTC), "n": 1.0})
    for row in rows.lease("default", "one", 15, 10):
        stored = rows.values(*LEASED).get(pk=row.pk)
        found = {name: getattr(row, name) for name in LEASED}
        assert found == stored
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in stored.items()}


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_a_relay_sends_thousands_with_a_few_statements(desk: Desk, statements: Counter[str]) -> None:
    desk.queue("work")
    many(3000, queue="work")
    statements.clear()
    burst()
    assert states() == {Out.PUBLISHED: 3000}
    # The first batches are small, because nobody knows yet how large a body is; so are the last marks. Where the broker
    # stands still for a while, looks and renewals come on top, some twenty a second.
    assert statements.total() < 1000


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_what_goes_to_a_missing_exchange_ends_together(
    desk: Desk, statements: Counter[str], settings: Settings
) -> None:
    set_options(settings, UNROUTABLE=[0.05, 0.05, 0.05])
    many(2000, exchange="no-such-exchange")
    statements.clear()
    with relaying():
        wait_until(lambda: rows.filter(state=Out.FAILED).count() == 2000, what="every row failed")
    assert statements["UPDATE"] < 500  # with some a second where the broker stands still for a while


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_an_idle_relay_looks_once_each_time(desk: Desk, statements: Counter[str]) -> None:
    relay = Relay("default")
    stop = threading.Event()

    def is_connected() -> bool:
        relay.run_once(stop, timeout=0)
        return relay._uplink.is_open and relay._uplink._is_declared

    wait_until(is_connected, what="a connection")
    for _ in range(3):
        relay.run_once(stop, timeout=0)
    statements.clear()
    for _ in range(5):
        relay._next_look = 0.0
        relay.run_once(stop, timeout=0)
    relay._finish()
    assert statements == {"SELECT": 5}


@pytest.mark.skipif(TEST_DB == "mariadb", reason="it prefers to sort a few rows")
@pytest.mark.django_db
@pytest.mark.parametrize("analyzed", [False, True])
def test_looking_reads_the_polled_index_in_its_order(analyzed: bool) -> None:
    many(200)
    rows.filter(pk__in=[row.pk for row in rows.all()[:150]]).update(state=Out.PUBLISHED, due_at=None)
    if analyzed:
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    with connection.cursor() as cursor:
        if TEST_DB == "postgres":
            # 200 rows fit a few pages, which is as well read whole and sorted: see whether the index could serve.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_sort = off")
    for query in (rows.due("default").values_list("id")[:BATCH], rows.due("default")[:1]):
        plan = query.explain()
        assert "messaging_outbox_due" in plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.skipif(TEST_DB != "postgres", reason="elsewhere no second connection marks")
@pytest.mark.django_db(transaction=True)
def test_a_connection_that_marked_nothing_for_a_while_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []

    def mark(*_: Any) -> None:
        with connection.cursor():
            used.append(connection.connection)

    monkeypatch.setattr("messaging.models.outbox.PublishedMessageQuerySet.mark_published", mark)
    marker = Marker("default", lambda: None)
    for idle in (30.0, 30.0, 0.0):
        monkeypatch.setattr("messaging.relaying.leases.IDLE", idle)
        marker.begin([])
        marker.end()
    marker.close()
    assert used[0] is used[1] is not used[2]
    assert used[0].closed


@pytest.mark.skipif(TEST_DB != "postgres", reason="elsewhere no second connection marks")
@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_where_a_second_connection_cannot_be_had_the_first_one_marks(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PublishedMessageQuerySet.mark_published

    def mark(self: Any, found: Any) -> int:
        if threading.current_thread().name.startswith("messaging-mark"):
            raise OperationalError("too many clients")
        return real(self, found)

    monkeypatch.setattr(PublishedMessageQuerySet, "mark_published", mark)
    many(10, queue=desk.queue("work"))
    with relaying():
        wait_until(lambda: states() == {"published": 10}, what="all of them published")
        many(10, queue="work")
        wait_until(lambda: states() == {"published": 20}, what="those that came later as well")
    assert len(desk.bodies("work")) == 20
