"""The ledger: what one process writes, another one reads, also after a sudden death."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.supervising.ledger import SLOT, Entry, Ledger

ENTRY = Entry(
    alias="default",
    queue="billing",
    key=str(uuid4()),
    digest=str(uuid4()),
    round=1,
    message_id="m-1",
    database="default",
    handler="shop.handlers.bill",
    started=1000.0,
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger.create(3)
    yield ledger
    ledger.close()


def test_it_needs_no_directory_where_the_system_has_memory_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "memfd_create"):
        monkeypatch.setattr("tempfile.tempdir", "/nowhere")
        Ledger.create(2).close()


def test_without_it_a_directory_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ledger = Ledger.create(2)
    assert os.fstat(ledger.fd).st_blocks * 512 >= 2 * SLOT  # a hole on a full disk would kill who writes into it
    ledger.close()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(OSError, match="No such file"):
        Ledger.create(2)


def test_shows_what_runs_while_it_runs(ledger: Ledger) -> None:
    before = time.monotonic()
    with ledger.slot(1).running(ENTRY):
        (running,) = ledger.running_entries()
        assert (running.slot, running.entry) == (1, ENTRY)
        assert before <= running.since <= time.monotonic()
    assert ledger.running_entries() == []


@given(
    st.builds(
        Entry,
        alias=st.text(),
        queue=st.text(),
        key=st.uuids().map(str),
        digest=st.uuids().map(str),
        round=st.integers(1),
        message_id=st.text(),
        database=st.text(),
        handler=st.text(),
        started=st.floats(0, 1e12),
        timeout=st.none() | st.floats(0, 1e9) | st.integers(1, 10**9),
        token=st.just("") | st.uuids().map(str),
        session=st.integers(0),
        batch=st.integers(1),
        headers_digest=st.just("") | st.uuids().map(str),
    )
)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert Entry.from_json(entry.to_json()) == entry
    assert json.loads(entry.to_json()) == {name: getattr(entry, name) for name in Entry.__slots__}


def test_forgets_what_raised(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.slot(0).running(ENTRY):
        raise RuntimeError
    assert ledger.running_entries() == []


def test_overdue_are_only_those_beyond_their_timeout(ledger: Ledger) -> None:
    quick, slow = replace(ENTRY, timeout=500.0), replace(ENTRY, timeout=5000.0)
    with ledger.slot(0).running(quick), ledger.slot(1).running(slow), ledger.slot(2).running(ENTRY):
        now = time.monotonic()
        assert ledger.overdue(now) == []
        assert [running.slot for running in ledger.overdue(now + 600)] == [0]
        assert [running.slot for running in ledger.overdue(now + 6000)] == [0, 1]


def test_a_killed_process_leaves_its_entries(ledger: Ledger) -> None:
    code = (
        "import os, sys; from messaging.supervising.ledger import Entry, Ledger\n"
        "ledger = Ledger.attach(int(sys.argv[1]), 3)\n"
        "with ledger.slot(2).running(Entry.from_json(sys.argv[2])): os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(ledger.fd), ENTRY.to_json()]
    done = subprocess.run(command, pass_fds=[ledger.fd], check=False, timeout=240)
    assert done.returncode == -9
    assert [(running.slot, running.entry) for running in ledger.running_entries()] == [(2, ENTRY)]
    ledger.clear()
    assert ledger.running_entries() == []


def test_an_attached_ledger_is_kept_from_further_children(ledger: Ledger) -> None:
    os.set_inheritable(ledger.fd, True)
    attached = Ledger.attach(os.dup(ledger.fd), 3)
    assert not os.get_inheritable(attached.fd)
    attached.close()


@pytest.mark.parametrize("offset", [8, 30, 60])
def test_a_torn_entry_is_no_entry(ledger: Ledger, offset: int) -> None:
    with ledger.slot(0).running(ENTRY):
        at = offset if offset > 8 else struct.calcsize("<Bd")
        os.pwrite(ledger.fd, b"\xff\xff\xff", at)
        assert ledger.running_entries() == []


def test_the_longest_names_stay_within_their_slot(ledger: Ledger) -> None:
    long = replace(ENTRY, message_id="\x01" * 255, queue="é" * 125, handler="x.\u00e9" * 900)
    with ledger.slot(0).running(long), ledger.slot(1).running(ENTRY):
        first, second = ledger.running_entries()
        assert first.entry.key == long.key
        assert first.entry.queue == long.queue
        assert second.entry == ENTRY
    assert SLOT == 4096


def test_an_attempt_is_identified_by_its_claim_or_by_the_round_of_its_message() -> None:
    claimed = replace(ENTRY, token=str(uuid4()))
    assert str(claimed.run) == claimed.token
    assert ENTRY.run == replace(ENTRY, started=2000.0).run != replace(ENTRY, round=2).run


def test_the_entry_of_another_release_is_read_as_far_as_it_is_known() -> None:
    values = json.loads(ENTRY.to_json())
    del values["batch"]
    assert Entry.from_json(json.dumps({**values, "since": 1})) == ENTRY
