"""A handler that kills its process after a while runs as often as it has attempts, whichever processes it meets."""

from __future__ import annotations

import pytest

from tests.failures.deeds import HANDLERS, consume, effects, publish, send, settled, starts
from tests.failures.deeds import attempts as counted
from tests.site import SiteFactory

pytestmark = pytest.mark.broker

# It lives until the successor of the process that it killed before has come to record that death, and a little longer.
SLOW_KILLER = """
def kill_late():
    deaths = len((FOLDER / "started-late").read_text().splitlines()) - 1
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said = "".join(path.read_text() for path in FOLDER.glob("*-consume.log"))
        if said.count("Connected to") >= int(os.environ["PROCESSES"]) + deaths:
            break
        time.sleep(0.05)
    time.sleep(1.2)  # who finds the message's row locked looks again each second
    os._exit(9)

DEEDS["late"] = kill_late

@handler("slow", "slow.#", max_attempts=3, backoff=0.1)
def slow(message):
    act(message)

@handler("twice", "twice.#", max_attempts=2, backoff=0.1)
def twice(message):
    act(message)
"""
BY_REPORT, BY_SWEEP = 60, 1  # seconds of a lease: who ends a claim first, the successor or the sweep of any process


@pytest.mark.mode(29)
@pytest.mark.slow
@pytest.mark.parametrize("lease", [BY_REPORT, BY_SWEEP])
@pytest.mark.parametrize("queue", ["slow", "long"])
@pytest.mark.parametrize("has_id", [True, False])
def test_a_slow_killer_is_started_as_often_as_it_has_attempts(
    site: SiteFactory, queue: str, lease: float, has_id: bool
) -> None:
    assert_starts(site, queue, attempts=3, processes=3, lease=lease, has_id=has_id)


@pytest.mark.mode(29)
def test_a_death_that_waits_until_the_next_run_has_ended_costs_its_attempt(site: SiteFactory) -> None:
    assert_starts(site, "twice", attempts=2, processes=2, lease=BY_REPORT, has_id=True)


def assert_starts(site: SiteFactory, queue: str, *, attempts: int, processes: int, lease: float, has_id: bool) -> None:
    """Have a message kill the processes that run it until it has failed, and see that no run was left uncounted."""
    env = {"PROCESSES": str(processes)}
    doing = site("postgres", handlers=HANDLERS + SLOW_KILLER, options={"LEASE": lease}, env=env)
    running = consume(doing, queue, f"--processes={processes}", "--concurrency=1")
    running.wait_for_output("(?s)" + "Connected to.*" * processes)
    if has_id:
        publish(doing, (f"{queue}.a", "late"))
    else:
        send(doing, queue, (None, "late"))
    settled(doing, failed=1)
    assert running.stop() == 0
    doing.manage("consume", queue, "--burst")  # the last copy may have come back since
    assert doing.states() == {"failed": 1}
    assert (list(counted(doing).values()), len(starts(doing, "late"))) == ([attempts], attempts)
    assert doing.value("SELECT attempts FROM messaging_processedmessage") == attempts
    assert doing.value("SELECT COUNT(*) FROM messaging_attempt WHERE crashed") == attempts
    assert set(doing.states("published")) <= {"published"}, "nothing waits to be sent"
    assert effects(doing) == {}
