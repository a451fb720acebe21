"""`make chaos` in its one-minute form: everything is killed and cut, and nothing is lost or doubled."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.services import missing
from tools import postgresql, rabbitmq
from tools.environment import ROOT
from tools.services import ServiceMissing

pytestmark = [pytest.mark.chaos, pytest.mark.broker, pytest.mark.postgres]


@pytest.mark.parametrize("broker,minutes", [("rabbitmq", "1"), pytest.param("embedded", "0.5", marks=pytest.mark.slow)])
def test_nothing_is_lost_or_doubled_while_everything_fails_at_random(broker: str, minutes: str) -> None:
    try:
        rabbitmq.find_scripts()
        postgresql.find_programs()
    except ServiceMissing as error:
        missing(error)
    environment = os.environ | {"BROKER": broker, "MINUTES": minutes, "SEED": "17"}
    command = [sys.executable, "-m", "tools.chaos"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed: 0 lost, 0 doubled." in done.stdout
    assert number(done.stdout, "effects expected") > 500
    assert number(done.stdout, "faults injected") >= 5


def number(report: str, name: str) -> int:
    """The number of a line of the report."""
    found = re.search(rf"^ *([\d,]+) +{name}$", report, re.MULTILINE)
    assert found, report
    return int(found[1].replace(",", ""))
