"""`make bench QUICK=1`: everything is measured, and every message of it had its one effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ratios import LIMITS, RATIOS
from tests.services import need_servers
from tools.environment import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.postgres]


@pytest.mark.timeout(900)
def test_a_quick_run_measures_everything_and_finds_nothing_lost_or_doubled(tmp_path: Path) -> None:
    need_servers()
    environment = os.environ | {"QUICK": "1", "JSON": str(tmp_path / "found.json"), "SVG": str(tmp_path / "found.svg")}
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["broken"] == {}
    assert set(found["ratios"]) == {name for name in RATIOS if not name.endswith("_threads")}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert set(found["met"]) >= set(LIMITS)
    assert (tmp_path / "found.svg").read_text().startswith("<svg")
