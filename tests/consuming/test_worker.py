"""A worker thread: whatever the consumer itself cannot do with a message ends as a row, and stops no other one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from messaging.consuming import worker as module
from messaging.consuming.backlog import Backlog
from messaging.consuming.worker import WorkerThread
from messaging.exceptions import DatabaseUnavailable
from messaging.handlers import Registry
from messaging.models import ProcessedMessage
from messaging.processing.processor import Processor
from messaging.wire.envelope import Envelope
from tests.deliveries import Parcel, registered
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Broken(Processor):
    """Fails on what says so, as an error of ours would."""

    def process(self, delivery: Any, ack: Callable[[], object], *, alone: bool = True) -> Any:
        refuse(delivery)
        return super().process(delivery, ack)

    def process_batch(self, handler: Any, deliveries: Any) -> Any:
        for delivery in deliveries:
            refuse(delivery)
        return super().process_batch(handler, deliveries)

    def record_dead(self, delivery: Any) -> Any:
        refuse(delivery)
        return super().record_dead(delivery)


def refuse(delivery: Any) -> None:
    if b"broken" in delivery.body:
        raise TypeError("an error of ours")


class Bench:
    """A worker thread with its backlog."""

    def __init__(self, **options: Any) -> None:
        registry = Registry()
        registered(registry, lambda message: None, **options)
        self.processor = Broken("default", "worker-1", handlers=registry)
        self.backlog = Backlog(self.processor.route, ["work.dead"])
        self.outages: list[DatabaseUnavailable] = []
        self.worker = WorkerThread(0, self.backlog, self.processor, self.outages.append)

    def put(self, *payloads: str, queue: str = "work") -> list[Parcel]:
        parcels = [Parcel(queue, payload, message_id="") for payload in payloads]
        for parcel in parcels:
            self.backlog.put(parcel)
        if not self.worker.is_alive():
            self.worker.start()
        return parcels

    def stop(self) -> None:
        self.backlog.close()
        self.worker.join()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setattr(module, "AFTER_ERROR", 0.05)
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    assert sum(one.name.startswith("messaging-worker-") for one in threading.enumerate()) < 20


def states() -> dict[str, str]:
    return dict(ProcessedMessage.objects.values_list("body", "state"))


@pytest.mark.mode(49)
@pytest.mark.parametrize("options", [{}, {"batch": 10}, {"atomic": False}], ids=["atomic", "batch", "claimed"])
def test_what_the_consumer_fails_on_again_and_again_rests_as_failed(
    bench: Callable[..., Bench], options: dict[str, Any]
) -> None:
    parcels = bench(**options).put("one", "broken", "two")
    wait_until(lambda: len(states()) == 3)
    wait_until(lambda: [parcel.settled for parcel in parcels] == [["ack"]] * 3)
    assert states() == {"one": "processed", "broken": "failed", "two": "processed"}
    row = ProcessedMessage.objects.get(state="failed")
    assert row.error.startswith("The consumer itself failed on it, time and again: TypeError: an error of ours.")
    assert row.attempts == 0
    assert row.raw_body == b"broken"


def test_a_dead_letter_that_it_fails_on_is_recorded_for_its_queue(bench: Callable[..., Bench]) -> None:
    (parcel,) = bench().put("broken", queue="work.dead")
    wait_until(lambda: parcel.settled == ["ack"])
    assert ProcessedMessage.objects.values_list("queue", "state").get() == ("work", "failed")


def test_what_cannot_be_read_is_recorded_as_it_came(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise TypeError("an error of ours")

    monkeypatch.setattr(Envelope, "received", fail)
    (parcel,) = bench().put("unreadable")
    wait_until(lambda: parcel.settled == ["ack"])
    assert states() == {"unreadable": "failed"}


@pytest.mark.mode(49)
def test_what_can_neither_be_processed_nor_recorded_stays_with_the_broker(bench: Callable[..., Bench]) -> None:
    made = bench()
    execute = connection.cursor().execute
    execute("ALTER TABLE messaging_processedmessage RENAME TO elsewhere")
    try:
        (parcel,) = made.put("broken")
        items = made.backlog._aside
        wait_until(lambda: any(one.item.troubles > module.TRIES for one in items), what="tries beyond the last")
        assert parcel.settled == []
    finally:
        execute("ALTER TABLE elsewhere RENAME TO messaging_processedmessage")
    wait_until(lambda: parcel.settled == ["ack"])
    assert states() == {"broken": "failed"}
