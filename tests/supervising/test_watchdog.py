"""What a supervisor makes of a process that gives no sign of life; without any process."""

from __future__ import annotations

import logging

import pytest

from messaging.supervising import watchdog
from messaging.supervising.watchdog import Watch


class Clock:
    """Stands where `watchdog` has the module."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watchdog, "time", made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were asked for their stacks."""
    found: list[int] = []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: found.append(pid))
    return found


def looks(watch: Watch, clock: Clock, seconds: float) -> list[bool]:
    """What it says at each look, four a second."""
    found = []
    for _ in range(int(seconds * 4)):
        clock.now += 0.25
        found.append(watch.look(7, lambda: ["shop.bill"]))
    return found


def test_silence_is_told_once_and_its_end_too(clock: Clock, asked: list[int], caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(None)
    assert not any(looks(watch, clock, 60)), "nothing was heard of it: it is still loading"
    watch.heard(7)
    assert not any(looks(watch, clock, 60))
    assert asked == [7]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Process 7 has done nothing else for 10 s: shop.bill holds the interpreter's lock" in caplog.text
    watch.heard(7)
    assert "Process 7 goes on, after 60 s." in caplog.text


def test_it_is_ended_after_the_limit_and_told_before(
    clock: Clock, asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(5.0)
    watch.heard(7)
    found = looks(watch, clock, 6)
    assert found.index(True) == 20
    assert "has done nothing else for 3 s" in caplog.text


def test_a_machine_that_stood_still_blames_nobody(clock: Clock, asked: list[int]) -> None:
    watch = Watch(5.0)
    watch.heard(7)
    clock.now += 3600
    assert not any(looks(watch, clock, 2))
    assert asked == []
