"""`.ci/run`: it passes only where every part of it has run and passed, and says so of each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.site import ROOT


def ci(folder: Path, make: str, minutes: str = "1") -> tuple[int, list[str]]:
    """Run it with a script in place of `make`; returns its exit status and its last two lines."""
    program = folder / "make"
    program.write_text(f"#!/bin/sh\n{make}\n")
    program.chmod(0o755)
    environment = os.environ | {"MAKE": str(program), "CI_MINUTES": minutes}
    done = subprocess.run([ROOT / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()[-2:]


def test_each_part_that_ran_is_named(tmp_path: Path) -> None:
    status, lines = ci(tmp_path, "exit 0")
    assert status == 0
    assert [line.rpartition(" in ")[0] for line in lines] == [
        "make lint: passed",
        "make test: passed",
    ]


def test_what_comes_after_a_failure_is_named_as_not_run(tmp_path: Path) -> None:
    status, lines = ci(tmp_path, '[ "$1" != lint ]')
    assert status == 1
    assert lines[0].startswith("make lint: failed after")
    assert lines[1] == "make test: not run"


def test_without_time_it_fails(tmp_path: Path) -> None:
    status, lines = ci(tmp_path, "exit 0", minutes="0")
    assert status == 1
    assert all(line.endswith(": not run") for line in lines)


def test_tests_that_do_not_finish_are_a_failure(tmp_path: Path) -> None:
    status, lines = ci(tmp_path, '[ "$1" != test ] || exit 124')
    assert status == 1
    assert lines[1].startswith("make test: not finished")
