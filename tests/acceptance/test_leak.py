"""`make leak` in its short form: a consumer's memory does not grow with the messages that it handles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import need_servers
from tools.environment import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.broker,
    pytest.mark.postgres,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
]


@pytest.mark.timeout(600)
def test_a_consumer_that_has_handled_many_messages_takes_no_more_memory_than_before() -> None:
    need_servers()
    environment = os.environ | {"MESSAGES": "20000"}
    command = [sys.executable, "-m", "benchmarks.leak"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Last third against middle third" in done.stdout
