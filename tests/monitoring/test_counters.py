"""What was done is counted in memory, written once a minute, added up by whoever reads it, and kept for a while."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.models import QuerySet

from messaging import publish
from messaging.consuming.housekeeping import Housekeeper
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Counter, PublishedMessage
from messaging.monitoring import counters
from messaging.monitoring.counters import HOUR, HOURS_KEPT, JOINED, MINUTES_KEPT, OVER, Period, history
from messaging.processing.processor import Processor
from messaging.relaying.relay import Relay
from tests.deliveries import arrived, in_a_thread, registered
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def written() -> list[dict[str, Any]]:
    counters.write("default")
    return list(Counter.objects.order_by("id").values("alias", "queue", *counters.KINDS))


def total(**expected: int) -> None:
    now = counters._this_minute("default")
    points, queues = history(Period(now, HOUR, 1), Period(now, HOUR, 5))
    for name, number in expected.items():
        assert sum(getattr(point, name) for point in points) == number, name
        assert sum(getattr(point, name) for own in queues.values() for point in own) == number, name


def row(minute: int, **values: Any) -> Counter:
    return Counter.objects.create(minute=minute, alias="default", queue="billing", **values)


def test_what_was_counted_is_written_once() -> None:
    counters.add_processed("default", "billing", 0.5, ["a"])
    counters.add_processed("default", "billing", 0.5, ["b", "c"])
    counters.add("published", "default", "")
    own = {"alias": "default", **dict.fromkeys(counters.KINDS, 0)}
    assert written() == [{**own, "queue": "billing", "processed": 3}, {**own, "queue": "", "published": 1}]
    assert Counter.objects.get(queue="billing").run_seconds == 1.0
    assert len(written()) == 2, "once"
    total(processed=3, published=1, failed=0)


def test_it_is_written_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    counters.add("processed", "default", "billing")
    counters.write("default")
    counters.add("processed", "default", "billing")
    counters.write_when_due("default")
    assert Counter.objects.count() == 1
    monkeypatch.setattr(counters, "EVERY", 0.0)
    counters.write_when_due("default")
    assert Counter.objects.count() == 2
    total(processed=2)


def test_what_cannot_be_written_stays_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counters.add("failed", "default", "billing")

    def away(database: str) -> int:
        counters.add("failed", "default", "billing")  # another thread goes on
        raise DatabaseError("away")

    with monkeypatch.context() as patch:
        patch.setattr(counters, "_this_minute", away)
        with pytest.raises(DatabaseError):
            counters.write("default")
    counters.write("default")
    total(failed=2)


def test_threads_lose_no_count() -> None:
    def count() -> None:
        for _ in range(5000):
            counters.add("processed", "default", "billing")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters.write("default")
    total(processed=20_000)


def test_names_without_number_are_counted_together() -> None:
    for number in range(counters.MOST + 50):
        counters.add("published", "default", f"reply-{number}")
    assert len(counters._counted) == counters.MOST + 1
    counters.write("default")
    total(published=counters.MOST + 50)


def test_every_outcome_of_a_delivery_is_counted() -> None:
    def handle(message: ReceivedMessage) -> None:
        if message.payload != "good":
            raise ValueError

    registry = Registry()
    registered(registry, handle, max_attempts=2)
    processor = Processor("default", "worker-1", handlers=registry)
    processor.process(arrived("good"), lambda: None)
    delivery = arrived("bad")
    processor.process(delivery, lambda: None)
    processor.process(delivery, lambda: None)  # an old copy, whose retry is under way: nothing is done
    counters.write("default")
    total(processed=1, retried=1, failed=0)


def test_history_has_a_point_for_every_step_and_adds_up_processes() -> None:
    row(1000, processed=1)
    row(1000, processed=2)
    row(1009, failed=4)
    row(1010, processed=8)
    row(980, processed=16)
    row(1015, processed=32)
    points, queues = history(Period(1012, 30, 10), Period(1012, 10, 5))
    found = [(point.minute, point.processed, point.failed) for point in points]
    assert found == [(990, 0, 0), (1000, 3, 4), (1010, 8, 0)]
    lately = [(point.minute, point.processed, point.failed) for point in queues["default", "billing"]]
    assert lately == [(1005, 0, 4), (1010, 8, 0)]


def processes_wrote(*minutes: int) -> None:
    for minute in minutes:
        for number in range(4):
            row(minute, processed=10, run_seconds=0.5, wait_03=10, **{f"run_{number:02}": 10})
            Counter.objects.create(minute=minute, alias="other", queue="billing", failed=1)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> int:
    """The minute in which a test runs, even where another one begins."""
    minute = counters._this_minute("default")
    monkeypatch.setattr(counters, "_this_minute", lambda _database: minute)
    monkeypatch.setattr(counters, "LONGEST", 600.0)
    return minute


def seen(now: int) -> Any:
    return history(Period(now, HOUR, 1), Period(now, HOUR, 5))


def test_what_processes_wrote_becomes_one_row_for_each_queue_once_its_minute_is_over(now: int) -> None:
    processes_wrote(now - JOINED, now - JOINED + 1, now - OVER, now - OVER + 1)
    before = seen(now)
    assert counters.join("default") == 2 * (8 - 2)
    left = Counter.objects.filter(minute__in=(now - JOINED + 1, now - OVER)).order_by("minute", "alias")
    assert list(left.values_list("alias", "length", "processed", "failed", "run_seconds", "wait_03", "run_02")) == 2 * [
        ("default", 1, 40, 0, 2.0, 40, 10),
        ("other", 1, 0, 4, 0.0, None, None),
    ]
    assert Counter.objects.count() == 4 + 2 * 8
    assert seen(now) == before
    assert counters.join("default") == 0, "again: nothing is left to do"


def test_a_queue_that_one_process_wrote_keeps_its_row(now: int) -> None:
    alone = row(now - 5, processed=1)
    for _ in range(2):
        Counter.objects.create(minute=now - 5, alias="default", queue="mail", processed=2)
    assert counters.join("default") == 1
    assert Counter.objects.filter(pk=alone.pk).exists()
    total(processed=5)


def test_what_somebody_else_has_joined_since_stays(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5)
    is_free = counters._is_free

    def too_late(rows: QuerySet[Counter], database: str) -> bool:
        monkeypatch.setattr(counters, "_is_free", is_free)
        assert counters.join(database) == 6
        return is_free(rows.model._default_manager.all(), database)

    monkeypatch.setattr(counters, "_is_free", too_late)
    assert counters.join("default") == 0
    assert Counter.objects.count() == 2
    total(processed=40, failed=4)


def test_a_minute_that_takes_long_is_the_last_for_now(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5, now - 6, now - 7)
    monkeypatch.setattr(counters, "LONGEST", 0.0)
    assert counters.join("default") == 0
    monkeypatch.setattr(counters, "LONGEST", 600.0)
    assert counters.join("default") == 18


def test_whoever_comes_by_joins_what_others_wrote(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5)
    counters.join_when_due("default")
    assert Counter.objects.count() == 8, "it looks once a minute"
    monkeypatch.setattr(counters, "EVERY", 0.0)
    counters.join_when_due("default")
    assert Counter.objects.count() == 2


def test_an_error_midway_leaves_every_row(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5)
    before = seen(now)

    def fail(*_: Any, **__: Any) -> list[Counter]:
        assert not Counter.objects.exists(), "they are deleted by now"
        raise DatabaseError("away")

    with monkeypatch.context() as patch:
        patch.setattr(QuerySet, "bulk_create", fail)
        with pytest.raises(DatabaseError):
            counters.join("default")
    assert Counter.objects.count() == 8
    assert seen(now) == before


@pytest.fixture
def _side_by_side() -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("this database cannot pass over rows that are locked")


@pytest.mark.usefixtures("_side_by_side")
def test_what_is_written_late_is_joined_the_next_time(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5)
    delete = QuerySet.delete

    def delete_later(rows: QuerySet[Counter]) -> tuple[int, dict[str, int]]:
        in_a_thread(lambda: row(now - 5, processed=1)).join(120)
        return delete(rows)

    with monkeypatch.context() as patch:
        patch.setattr(QuerySet, "delete", delete_later)
        assert counters.join("default") == 0
    total(processed=41, failed=4)
    assert counters.join("default") == 7
    total(processed=41, failed=4)


@pytest.mark.usefixtures("_side_by_side")
def test_nobody_waits_for_another_who_joins(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes_wrote(now - 5)
    is_held, may_go_on = threading.Event(), threading.Event()
    add_up, fewer = counters._sums, []

    def slowly(*args: Any) -> list[Counter]:
        is_held.set()
        assert may_go_on.wait(120)
        return add_up(*args)

    monkeypatch.setattr(counters, "_sums", slowly)
    thread = in_a_thread(lambda: fewer.append(counters.join("default")))
    assert is_held.wait(120)
    monkeypatch.setattr(counters, "_sums", add_up)
    assert counters.join("default") == 0
    assert thread.is_alive()
    may_go_on.set()
    thread.join(120)
    assert fewer == [6]
    total(processed=40, failed=4)


def test_old_minutes_become_hours_and_old_hours_go() -> None:
    now = counters._this_minute("default")
    recent, old = row(now - MINUTES_KEPT + HOUR, processed=1), now - MINUTES_KEPT - 3 * HOUR
    hour = old - old % HOUR
    for minute in (hour, hour + 1, hour + 59):
        row(minute, processed=10, run_seconds=0.5)
    row(hour + 60, processed=5)
    row(now - HOURS_KEPT - 1, length=HOUR, processed=7)
    kept = row(now - HOURS_KEPT + HOUR, length=HOUR, processed=9)
    call_command("prune_messages", verbosity=0)
    left = Counter.objects.exclude(pk__in=[recent.pk, kept.pk]).order_by("minute")
    assert list(left.values_list("minute", "length", "processed", "run_seconds")) == [
        (hour, HOUR, 30, 1.5),
        (hour + 60, HOUR, 5, 0.0),
    ]
    assert Counter.objects.count() == 4
    call_command("prune_messages", verbosity=0)
    assert Counter.objects.count() == 4, "again: nothing is left to do"


def test_a_relay_counts_what_the_broker_has_confirmed(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"mail": {}}, "POLL_INTERVAL": 0.05}}
    published = publish("mail", "hello", queue="mail")
    relay = Relay("default")
    wait_until(lambda: relay.run_once(timeout=0.05) == 0 and refreshed(published).state == "published")
    relay._finish()
    [own] = Counter.objects.values("queue", "published", "processed")
    assert own == {"queue": "mail", "published": 1, "processed": 0}


def refreshed(published: Any) -> Any:
    return PublishedMessage.objects.get(pk=published.pk)


def test_a_consumer_writes_the_rest_as_it_ends() -> None:
    counters.add("processed", "default", "billing")
    processor = Processor("default", "worker-1", handlers=Registry())
    nothing = lambda *_: None  # noqa: E731
    keeper = Housekeeper("worker-1", ("billing",), processor, str, lambda: False, nothing, nothing)
    keeper.start()
    assert keeper.has_looked.wait(120)
    assert not Counter.objects.exists()
    keeper.stop(30)
    total(processed=1)
