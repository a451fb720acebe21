"""Readings of the broker: fresh, shared, and never in the way of a page."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from messaging.backends import get_backend
from messaging.backends.base import QueueSpec, Topology
from messaging.monitoring import readings
from messaging.monitoring.readings import read
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    readings.forget()
    yield
    readings.forget()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


def use(settings: Any, url: str) -> None:
    settings.MESSAGING = {"default": {"URL": url, "QUEUES": {"billing": {}}}}


def test_a_broker_that_is_away_is_an_error_text_without_its_password(settings: Any) -> None:
    use(settings, "amqp://user:hush-secret@127.0.0.1:1/")
    reading = read("default", ["billing"])
    assert "127.0.0.1:1" in reading.error
    assert "hush-secret" not in repr(reading)
    assert (reading.depths, reading.taken_at, reading.age) == ({}, None, None)


def test_a_broker_that_says_nothing_holds_nobody_up(
    settings: Any, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.backends.rabbitmq._READING_SECONDS", 1.0)
    use(settings, f"amqp://user:hush-secret@127.0.0.1:{silent_port}/")
    reading = read("default", ["billing"])
    assert reading.error
    assert "hush-secret" not in reading.error


def test_nobody_waits_for_an_answer_longer_than_for_patience(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, "amqp://u:p@127.0.0.1:1/")
    page_is_done, has_answered = threading.Event(), threading.Event()

    def hanging(alias: str) -> Any:
        page_is_done.wait(180)
        has_answered.set()
        raise RuntimeError("an answer at last")

    monkeypatch.setattr(readings, "get_backend", hanging)
    monkeypatch.setattr(readings, "PATIENCE", 2.5)
    error = read("default", ["billing"]).error
    assert not has_answered.is_set()
    page_is_done.set()
    assert error
    assert has_answered.wait(60)


def test_many_readers_cause_one_connection(settings: Any, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, f"amqp://u:p@127.0.0.1:{silent_port}/")
    taken: list[str] = []
    take = readings._Reader._take

    def counting(self: Any, queues: tuple[str, ...]) -> None:
        taken.append(threading.current_thread().name)
        take(self, queues)

    monkeypatch.setattr(readings._Reader, "_take", counting)
    monkeypatch.setattr(readings, "FRESH", 600.0)
    monkeypatch.setattr("messaging.backends.rabbitmq._READING_SECONDS", 1.0)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: read("default", ["billing"]), range(8)))
    assert all(result.error for result in results)
    assert taken == ["messaging-readings"]


@pytest.mark.parametrize("url", ["nonsense", "carrier-pigeon://x", "amqp://a:b@host:port/"])
def test_unusable_settings_are_an_error_text(settings: Any, url: str) -> None:
    use(settings, url)
    assert read("default", ["billing"]).error
    assert read("nowhere", ["billing"]).error


def test_whatever_a_backend_raises_is_an_error_text(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, "amqp://u:hush-secret@127.0.0.1:1/")

    def broken(alias: str) -> Any:
        raise RuntimeError("cannot use amqp://u:hush-secret@h")

    monkeypatch.setattr(readings, "get_backend", broken)
    error = read("default", ["billing"]).error
    assert error.startswith("RuntimeError")
    assert "hush-secret" not in error


@pytest.mark.broker
def test_a_reading_is_real_cached_and_outlives_the_broker(
    settings: Any, vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(settings, vhost_url)
    monkeypatch.setattr(readings, "FRESH", 600.0)
    backend = get_backend("default")
    backend.declare(Topology(queues=(QueueSpec("billing", type="classic"),)))
    first = read("default", ["billing", "absent"])
    assert first.error == ""
    assert first.depths["billing"].ready == 0
    assert first.depths["billing"].consumers == 0
    assert first.depths["billing"].unacked is None
    assert not first.depths["absent"].exists
    assert read("default", ["billing"]) is first
    monkeypatch.setattr(readings, "FRESH", 0.0)
    assert read("default", ["billing"]) is not first

    def away(alias: str) -> Any:
        raise RuntimeError("away")

    monkeypatch.setattr(readings, "get_backend", away)
    last = read("default", ["billing"])
    assert last.error
    assert last.depths["billing"].ready == 0
    assert last.age is not None


@pytest.mark.broker
def test_a_glance_waits_for_nobody_and_knows_what_was_read_meanwhile(
    settings: Any, vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read, take = threading.Event(), readings._Reader._take

    def late(self: Any, queues: tuple[str, ...]) -> None:
        assert may_read.wait(120)
        take(self, queues)

    monkeypatch.setattr(readings._Reader, "_take", late)
    use(settings, vhost_url)
    get_backend("default").declare(Topology(queues=(QueueSpec("billing", type="classic"),)))
    wanted = [("default", "billing"), ("default", "absent"), ("nowhere", "billing")]
    assert readings.ready(wanted) == {}, "it has begun to read"
    may_read.set()
    wait_until(lambda: readings.ready(wanted) == {("default", "billing"): 0}, what="the reading")
    settings.MESSAGING = {"default": {"URL": "amqp://u:p@127.0.0.1:1/"}}
    assert readings.ready(wanted) == {}, "of another broker nothing is known"


def test_a_table_that_gives_no_sign_holds_nobody_else_up(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, "database://")
    is_asked, goes_on = threading.Event(), threading.Event()

    def hanging(alias: str) -> Any:
        is_asked.set()
        goes_on.wait(120)
        raise RuntimeError("an answer at last")

    monkeypatch.setattr(readings, "get_backend", hanging)
    monkeypatch.setattr(readings, "PATIENCE", 0.1)
    first = threading.Thread(target=read, args=("default", ["billing"]))
    first.start()
    assert is_asked.wait(60)
    assert read("default", ["billing"]).is_unreachable
    assert readings.ready([("default", "billing")]) == readings.unattended() == {}
    assert first.is_alive()
    goes_on.set()
    first.join(60)
