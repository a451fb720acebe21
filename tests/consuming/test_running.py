"""What a consumer says it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging.consuming import running
from messaging.consuming.consumer import Consumer, Plan
from messaging.consuming.housekeeping import Housekeeper
from messaging.consuming.running import Running
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, Worker
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Entry, Ledger
from messaging.wire.envelope import new_id
from tests.admin_rows import incoming, outgoing
from tests.deliveries import Parcel, arrived, registered
from tests.processing.tools import entry_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger.create(30)
    yield ledger
    ledger.close()


def ran(seconds: float | None, handler: str = "tests.effect", state: str = "processed") -> ProcessedMessage:
    duration = None if seconds is None else round(seconds * 1_000_000)
    row: ProcessedMessage = incoming(state, handler=handler, duration=duration)
    return row


def told(ledger: Ledger, *entries: Entry) -> list[dict[str, object]]:
    with ExitStack() as stack:
        for slot, entry in enumerate(entries):
            stack.enter_context(ledger.slot(slot).running(entry))
        return Running(ledger, "default").tell() or []


def test_a_worker_tells_what_it_runs_and_for_how_long(ledger: Ledger) -> None:
    first, second = arrived(), arrived()
    with ledger.slot(1).running(entry_of(second, timeout=60.0, batch=3)), ledger.slot(0).running(entry_of(first)):
        found = Running(ledger, "default").tell()
    assert found is not None
    assert [one["message_id"] for one in found] == [second.properties.message_id, first.properties.message_id]
    assert {one["queue"] for one in found} == {first.queue}
    assert [(one["handler"], one["limit"], one["batch"]) for one in found] == [
        ("tests.effect", 60.0, 3),
        ("tests.effect", None, 1),
    ]
    assert all(0 <= one["age"] < 60 for one in found)
    assert Running(ledger, "default").tell() == []


def test_without_a_supervisor_nobody_knows() -> None:
    assert Running(None, "default").tell() is None


def test_a_consumer_tells_what_its_ledger_has(ledger: Ledger) -> None:
    consumer = Consumer(Plan("default", ("effects",), concurrency=1), "worker-1", ledger)
    with ledger.slot(0).running(entry_of(arrived())):
        consumer._housekeeper._show_life()
    assert len(Worker.objects.get().running) == 1


def test_it_tells_of_so_many_at_most(ledger: Ledger) -> None:
    assert len(told(ledger, *(entry_of(arrived()) for _ in range(running.MOST + 5)))) == running.MOST


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [True, False])
def test_what_runs_under_a_claim_names_its_row(ledger: Ledger, atomic: bool) -> None:
    found: list[dict[str, object]] = []

    def look(message: ReceivedMessage) -> None:
        found.extend(Running(ledger, "default").tell() or [])

    known = Registry()
    registered(known, look, atomic=atomic)
    Processor("default", "worker-1", handlers=known, running=ledger.slot(0).running).process(arrived(), lambda: None)
    row = ProcessedMessage.objects.get()
    assert [one["row"] for one in found] == [0 if atomic else row.pk]


def test_a_heartbeat_carries_it(ledger: Ledger) -> None:
    processor = Processor("default", "worker-1", handlers=Registry())
    keeper = Housekeeper(
        "worker-1", ("billing",), processor, lambda: "running 1", lambda: False, lambda: None, lambda _: None, ledger
    )
    with ledger.slot(0).running(entry_of(arrived())):
        keeper._show_life()
        assert [one["handler"] for one in Worker.objects.get().running] == ["tests.effect"]
    keeper._show_life()
    assert Worker.objects.get().running == []


def test_it_is_asked_what_is_usual_only_of_a_run_that_is_noticed_and_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "NOTICED", 3600.0)
    ran(30)
    own = Running(ledger, "default")
    with ledger.slot(0).running(entry_of(arrived())):
        with CaptureQueriesContext(connection) as queries:
            assert "usual" not in (own.tell() or [])[0]
        assert len(queries) == 0
        monkeypatch.setattr(running, "NOTICED", 0.0)
        assert (own.tell() or [])[0]["usual"] == 30.0
        with CaptureQueriesContext(connection) as queries:
            assert (own.tell() or [])[0]["usual"] == 30.0
        assert len(queries) == 0


def test_it_tells_of_the_row_that_there_is(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    first, claimed, stranger = arrived(), arrived(), arrived()
    sent = outgoing(message_id=first.properties.message_id)
    entries = entry_of(first), entry_of(claimed, row=17), entry_of(stranger)
    monkeypatch.setattr(running, "NOTICED", 3600.0)
    assert {"outgoing"} & {name for one in told(ledger, *entries) for name in one} == set()
    monkeypatch.setattr(running, "NOTICED", 0.0)
    found = [(one["row"], one.get("outgoing")) for one in told(ledger, *entries)]
    assert found == [(0, sent.pk), (17, None), (0, None)]


def test_what_is_usual_is_the_longest_of_the_last_long_runs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "NOTICED", 0.0)
    ran(900)  # too long ago
    for _ in range(running.RUNS - 1):
        ran(20)
    ran(40)
    ran(0.05)
    ran(500, handler="another")
    ran(800, state="failed")  # as for its time limit
    assert told(ledger, entry_of(arrived()))[0]["usual"] == 40.0


def test_a_handler_whose_runs_are_brief_is_usually_done_within_a_second(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "NOTICED", 0.0)
    ran(0)
    assert told(ledger, entry_of(arrived()))[0]["usual"] == 1.0


def test_of_a_handler_that_never_ran_nothing_is_usual(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "NOTICED", 0.0)
    ran(None)  # the release before did not say
    assert told(ledger, entry_of(arrived()))[0]["usual"] is None


def test_the_usual_is_found_by_an_index(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    if not connection.features.supports_partial_indexes:
        pytest.skip("has no partial indexes, and looks at the newest rows")
    ran(30)
    with CaptureQueriesContext(connection) as queries:
        Running(ledger, "default")._usual_of("tests.effect", time.monotonic())
    (asked,) = [query["sql"] for query in queries if "ORDER BY" in query["sql"]]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{asked}")
        assert "messaging_inbox_long_runs" in str(cursor.fetchall())


def test_the_age_of_what_waits_next_is_told_of_first_deliveries_whose_id_tells(ledger: Ledger) -> None:
    old, young = Parcel("billing", message_id=new_id(-90)), Parcel("billing", message_id=new_id(-5))
    foreign = Parcel("mail", message_id="17")
    consumer = Consumer(Plan("default", ("effects",), concurrency=1), "worker-1", ledger)
    for parcel in (old, young, foreign):
        consumer._backlog.put(parcel)
    consumer._housekeeper._show_life()
    told = Worker.objects.get().oldest
    assert set(told) == {"billing"}
    assert 90 <= told["billing"] < 150
