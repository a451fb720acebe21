"""A supervisor says how its children do, in a file that outlives it only if it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from messaging.supervising import state
from messaging.supervising.state import State, states
from tests.site import ROOT
from tests.waiting import wait_until


@contextmanager
def supervised() -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor whose only child does nothing, and knows nothing of it."""
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    options = ["--alias=default", "--site=here", "--stop-timeout=0.1"]
    command = [sys.executable, "-m", "messaging.supervising", *options, "--", *child]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for one in states("here"):
            for child_pid in (own["pid"] for own in one.facts.get("children", ())):
                with suppress(ProcessLookupError):
                    os.kill(child_pid, signal.SIGKILL)


def told(pid: int) -> State:
    def look() -> State | None:
        return next((one for one in states("here") if one.facts["pid"] == pid), None)

    found = wait_until(look, what="its file")
    assert found is not None
    return found


def test_its_file_goes_with_it_unless_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, str(tmp_path))
    with supervised() as first:
        wait_until(lambda: told(first.pid).facts["children"][0]["runs"], what="its child")
        [child] = told(first.pid).facts["children"]
        assert (child["heard"], child["told"]) == (None, {})
        assert told(first.pid).lives
        os.kill(first.pid, signal.SIGSTOP)
        wait_until(lambda: told(first.pid).age > 2, what="that it says nothing new")
        assert told(first.pid).lives
        first.kill()
        first.wait()
        assert not told(first.pid).lives
        os.kill(child["pid"], signal.SIGKILL)
    with supervised() as second:
        told(second.pid)
        assert [one.facts["pid"] for one in states("here")] == [second.pid], "what its predecessor left is gone"
        second.terminate()
        second.wait(180)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_somebody_has_tidied_up_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(state.VARIABLE, str(folder))
    own = state.StateFile.create("relay", "default", "here")
    assert own is not None
    own.write({})
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert states("here") == []
    own.write({"relay": ""})
    assert [one.lives for one in states("here")] == [True]
    own.close()
    assert list(folder.iterdir()) == []


def test_what_a_process_left_before_it_said_anything_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, str(tmp_path))
    (tmp_path / "consumer-1-0a1b2c3d.state").write_bytes(bytes(64))
    (tmp_path / "consumer-2-0a1b2c3d.state.new").write_bytes(b"")
    (tmp_path / "somebody-elses.state").write_bytes(b"")
    other = state.StateFile.create("consumer", "default", "another")
    assert other is not None
    monkeypatch.setattr(state, "UNFINISHED", -1.0)
    own = state.StateFile.create("consumer", "default", "here")
    assert own is not None
    other.write({})
    assert [one.facts["site"] for one in states("another")] == ["another"], "one that lives stays, whatever it says"
    own.close()
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses.state"]
