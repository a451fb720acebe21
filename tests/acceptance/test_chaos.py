"""`make chaos` in a short form: everything is killed and cut, and nothing is lost or doubled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.services import need_servers
from tests.waiting import wait_until
from tools.chaos.schedule import FAILOVER, KINDS, OPERATOR, PROCESSES
from tools.chaos.stage import Stage
from tools.environment import ROOT
from tools.janitor import Janitor

pytestmark = [pytest.mark.timeout(1800), pytest.mark.chaos, pytest.mark.broker, pytest.mark.postgres]


@pytest.mark.parametrize(
    "broker,minutes,rate,effects",
    [
        ("rabbitmq", "0.2", "20", 50),
        pytest.param("rabbitmq", "1", "200", 500, marks=pytest.mark.slow),
        pytest.param("embedded", "0.5", "200", 500, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_or_doubled_while_everything_fails_at_random(
    broker: str, minutes: str, rate: str, effects: int
) -> None:
    report = soak(BROKER=broker, MINUTES=minutes, RATE=rate, FAULTS=f"-{FAILOVER}")
    assert number(report, "effects expected") > effects
    assert number(report, "messages without an id") > effects / 5
    assert number(report, "faults injected") >= 3


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_but_what_a_copy_of_the_database_had_never_received() -> None:
    others = [name for name, kind in KINDS.items() if kind.lane in (PROCESSES, OPERATOR)]
    report = soak(BROKER="rabbitmq", MINUTES="1.5", FAULTS=",".join([FAILOVER, *others]))
    assert number(report, "effects expected") > 500
    assert number(report, FAILOVER) >= 1
    assert number(report, "effects that were forgotten") >= number(report, "of them made again") > 0


@pytest.mark.slow
def test_the_operator_sends_a_purged_round_again_whose_original_was_forgotten() -> None:
    need_servers()
    folder, janitor = Path(tempfile.mkdtemp(prefix="messaging-chaos-")), Janitor()
    folder.chmod(0o755)  # PostgreSQL's account must reach its folder below
    janitor.remove(folder)
    failed = "SELECT id, message_id FROM messaging_processedmessage WHERE queue = 'picky' AND state = 'failed' LIMIT 1"
    try:
        with Stage(folder, janitor, broker="rabbitmq", management_url=None, seed="17") as stage:
            [(pk, message_id)] = wait_until(lambda: stage.sql(failed), deadline=300)
            assert stage.operate("pause", "--queue=picky")
            assert stage.rabbitmq is not None
            ctl = stage.rabbitmq.ctl
            wait_until(lambda: "picky\t0" in ctl("--quiet", "list_queues", "name", "consumers"))
            stage.sql(f"DELETE FROM messaging_publishedmessage WHERE message_id = '{message_id}' AND inbox_id IS NULL")
            stage.site.manage("requeue_messages", f"--id={message_id}")
            sent = f"SELECT id FROM messaging_publishedmessage WHERE inbox_id = {pk} AND state = 'published'"
            wait_until(lambda: stage.sql(sent))
            dropped = stage.purge("picky")
            assert dropped
            assert stage.operate("resume", "--queue=picky")
            assert stage.replay(dropped)
            ended = f"SELECT id FROM messaging_processedmessage WHERE id = {pk} AND state IN ('processed', 'failed')"
            wait_until(lambda: stage.sql(ended))
    finally:
        janitor.close()


def soak(**environment: str) -> str:
    """What a run says that passed."""
    need_servers()
    values = os.environ | {"SEED": "17"} | environment
    command = [sys.executable, "-m", "tools.chaos"]
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed: 0 lost, 0 doubled." in done.stdout
    return done.stdout


def number(report: str, name: str) -> int:
    """The number of a line of the report."""
    found = re.search(rf"^ *([\d,]+) +{name}$", report, re.MULTILINE)
    assert found, report
    return int(found[1].replace(",", ""))
