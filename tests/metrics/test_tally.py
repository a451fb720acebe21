"""What a process has counted is read by others, and is left when it dies."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from messaging.metrics import names, tally
from messaging.metrics.names import BOUNDS, CRITICAL, DUE, FAILED, OTHER, PROCESSED, RELAYED
from messaging.metrics.tally import MOST, MOST_TOLD, SIZE, Found, Tally, Totals, create, open_in, read_folder

# Python warns of a fork beside threads, such as an earlier test has left; here nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
BILLING = ("default", "billing", "shop.bill")


def value(found: Found, family: names.Family, *labels: str) -> float:
    return found[family.name, labels][0]


def in_a_process(work: Callable[[], object], *, ends: bool = True) -> int:
    """Run something in a fork that is then killed; unless `ends`, it waits for that."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        work()
        os.write(told, b".")
        signal.pause()
    os.close(told)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    if ends:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return pid


def test_what_is_counted_can_be_read() -> None:
    own = Tally()
    assert own.read() == {}
    own.add(PROCESSED, BILLING)
    own.add(PROCESSED, BILLING, 2)
    own.add(FAILED, BILLING, 0)  # a zero that somebody asked for
    assert own.read() == {(PROCESSED.name, BILLING): (3.0,), (FAILED.name, BILLING): (0.0,)}


def test_a_histogram_has_steps_a_rest_and_a_sum() -> None:
    own = Tally()
    for seconds in (0.001, BOUNDS[0], 0.006, 10 * BOUNDS[-1]):
        own.observe(CRITICAL, BILLING, seconds, 2)
    numbers = own.read()[CRITICAL.name, BILLING]
    assert numbers[:2] == (4.0, 2.0)
    assert numbers[-2] == 2.0
    assert sum(numbers[:-1]) == 8.0
    assert numbers[-1] == pytest.approx(2 * (0.001 + BOUNDS[0] + 0.006 + 10 * BOUNDS[-1]))


def test_gauges_are_told_until_they_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Tally()
    own.set([(DUE, ("default",), 7.0), (DUE, ("other",), 1.0)])
    assert value(own.read(), DUE, "default") == 7.0
    own.set([(DUE, ("default",), 0.0)])
    assert value(own.read(), DUE, "default") == 0.0
    assert (DUE.name, ("other",)) not in own.read()
    monkeypatch.setattr(tally, "OLD", -1.0)
    assert own.read() == {}


def test_threads_lose_no_count() -> None:
    own = Tally()
    threads = [
        threading.Thread(target=lambda: [own.add(RELAYED, ("default", "")) for _ in range(5000)]) for _ in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(own.read(), RELAYED, "default", "") == 20_000


def test_what_is_beyond_the_limit_is_counted_together() -> None:
    own = Tally()
    for number in range(MOST + 50):
        own.add(RELAYED, ("default", f"reply.{number}"))
    found = own.read()
    assert len([key for key in found if key[0] == RELAYED.name]) <= MOST + 1
    assert sum(numbers[0] for numbers in found.values()) == MOST + 50
    assert value(found, RELAYED, "default", OTHER) >= 50


def test_a_full_tally_counts_what_it_has_no_room_for() -> None:
    own = Tally(most=10**6)
    names_ = [("default", f"{number}" + "q" * 240, "h" * 250) for number in range(SIZE // 500)]
    for labels in names_:
        own.add(PROCESSED, labels)
    found = own.read()
    assert value(found, PROCESSED, OTHER, OTHER, OTHER) > 0
    assert sum(numbers[0] for numbers in found.values()) == len(names_)
    own.add(PROCESSED, ("default", "q" * 5000, "h"))
    own.observe(CRITICAL, ("default", "q" * 5000, "h"), 1.0)
    assert value(own.read(), PROCESSED, OTHER, OTHER, OTHER) == value(found, PROCESSED, OTHER, OTHER, OTHER) + 1


def test_names_of_any_characters_are_kept() -> None:
    own = Tally()
    labels = ('ä"\\\n', "队列", "\ud800")
    own.add(PROCESSED, labels)
    ((_, found),) = own.read()
    assert found[:2] == labels[:2]


def test_what_a_killed_process_has_counted_is_left_and_kept_once() -> None:
    shared, totals = create(), Totals()
    assert shared.fd is not None

    def work() -> None:
        own = Tally(shared.fd)
        own.add(PROCESSED, BILLING, 5)
        own.set([(DUE, ("default",), 3.0)])

    for round_ in (1, 2):
        pid = in_a_process(work, ends=False)
        now = totals.with_([shared.read()])
        assert value(now, PROCESSED, *BILLING) == 5.0 * round_
        assert value(now, DUE, "default") == 3.0
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert value(totals.with_([shared.read()]), PROCESSED, *BILLING) == 5.0 * round_
        totals.keep(shared.read())
        shared.clear()
        assert totals.with_([shared.read()]) == {(PROCESSED.name, BILLING): (5.0 * round_,)}


def test_of_several_processes_counts_are_added_and_the_newest_gauge_stands() -> None:
    first, second = Tally(), Tally()
    for one, number in ((first, 1.0), (second, 2.0)):
        one.add(RELAYED, ("default", ""), number)
        one.set([(DUE, ("default",), number)])
    found = Totals().with_([first.read(), second.read()])
    assert value(found, RELAYED, "default", "") == 3.0
    assert value(found, DUE, "default") == 2.0


def test_the_series_of_all_processes_are_bounded_and_none_falls() -> None:
    totals, before = Totals(), 0.0
    for start in range(0, 3 * MOST_TOLD, 100):
        living = {(RELAYED.name, ("default", f"reply.{start + number}")): (1.0,) for number in range(100)}
        known = totals.with_([])
        found = totals.with_([living])
        assert all(found[key] >= numbers for key, numbers in known.items())
        assert len(found) <= MOST_TOLD + 1
        totals.keep(living)
        assert totals.with_([]) == found
        assert sum(numbers[0] for numbers in found.values()) == before + 100
        before += 100


def test_a_folder_has_a_file_for_each_process_and_the_next_one_goes_on_in_that_of_a_dead_one(tmp_path: Path) -> None:
    (tmp_path / "messaging-junk.tally").write_bytes(b"junk")
    (tmp_path / "counter_1.db").write_bytes(b"of prometheus-client")
    living = in_a_process(lambda: open_in(tmp_path).add(RELAYED, ("default", ""), 1), ends=False)
    try:
        in_a_process(lambda: open_in(tmp_path).add(RELAYED, ("default", ""), 2))
        in_a_process(lambda: open_in(tmp_path).add(RELAYED, ("default", ""), 4))
        assert len(list(tmp_path.glob("*.tally"))) == 3
        assert value(Totals().with_(read_folder(tmp_path)), RELAYED, "default", "") == 7.0
    finally:
        os.kill(living, signal.SIGKILL)
        os.waitpid(living, 0)


def test_series_of_another_release_are_left_alone() -> None:
    own = Tally()
    own.add(RELAYED, ("default", ""))
    before = own.read()
    key = b'["messaging_of_tomorrow","default"]'.ljust(40)
    struct.pack_into("<II", own._memory, own._end, len(key), 1)
    own._memory[own._end + 8 : own._end + 8 + len(key)] = key
    struct.pack_into("<8sQ", own._memory, 0, b"DDMSUM01", own._end + 8 + len(key) + 8)
    assert own.read() == before


def test_what_was_damaged_stops_nobody(tmp_path: Path) -> None:
    own = Tally()
    own.add(PROCESSED, BILLING)
    at = own._end
    own.add(FAILED, BILLING)
    own._memory[at + 8 : at + 12] = b"\xff\xff\xff\xff"
    assert own.read() == {(PROCESSED.name, BILLING): (1.0,)}
    (tmp_path / "messaging-damaged.tally").write_bytes(own._memory[:])
    assert read_folder(tmp_path) == []
    assert open_in(tmp_path).read() == {}, "it counts elsewhere"


def test_who_died_while_it_made_a_series_leaves_nothing_in_the_next() -> None:
    own = Tally()
    own._memory[own._end + 8 : own._end + 200] = b"x" * 192
    own.add(FAILED, BILLING)
    assert own.read() == {(FAILED.name, BILLING): (1.0,)}
