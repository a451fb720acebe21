"""A handler that kills its process after a while runs as often as it has attempts, whichever processes it meets."""

from __future__ import annotations

import pytest

from tests.failures.deeds import HANDLERS, attempts, consume, effects, publish, send, settled, starts
from tests.site import SiteFactory

pytestmark = pytest.mark.broker

PROCESSES = 3
# It lives until the successor of the process that it killed before has come to record that death, and a little longer.
SLOW_KILLER = f"""
def kill_late():
    deaths = len((FOLDER / "started-late").read_text().splitlines()) - 1
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said = "".join(path.read_text() for path in FOLDER.glob("*-consume.log"))
        if said.count("Connected to") >= {PROCESSES} + deaths:
            break
        time.sleep(0.05)
    time.sleep(1.2)  # who finds the message's row locked looks again each second
    os._exit(9)

DEEDS["late"] = kill_late

@handler("slow", "slow.#", max_attempts=3, backoff=0.1)
def slow(message):
    act(message)
"""
BY_REPORT, BY_SWEEP = 60, 1  # seconds of a lease: who ends a claim first, the successor or the sweep of any process


@pytest.mark.mode(29)
@pytest.mark.parametrize(
    ("queue", "lease"),
    [
        ("slow", BY_REPORT),
        pytest.param("slow", BY_SWEEP, marks=pytest.mark.slow),
        pytest.param("long", BY_REPORT, marks=pytest.mark.slow),
        pytest.param("long", BY_SWEEP, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("has_id", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_slow_killer_is_started_as_often_as_it_has_attempts(
    site: SiteFactory, queue: str, lease: float, has_id: bool
) -> None:
    doing = site("postgres", handlers=HANDLERS + SLOW_KILLER, options={"LEASE": lease})
    running = consume(doing, queue, f"--processes={PROCESSES}", "--concurrency=1")
    running.wait_for_output("(?s)" + "Connected to.*" * PROCESSES)
    if has_id:
        publish(doing, (f"{queue}.a", "late"))
    else:
        send(doing, queue, (None, "late"))
    settled(doing, deadline=180, failed=1)
    assert running.stop() == 0
    doing.manage("consume", queue, "--burst")  # the last copy may have come back since
    assert doing.states() == {"failed": 1}
    assert (list(attempts(doing).values()), len(starts(doing, "late"))) == ([3], 3)
    assert doing.value("SELECT attempts FROM messaging_processedmessage") == 3
    assert doing.value("SELECT COUNT(*) FROM messaging_attempt WHERE crashed") == 3
    assert effects(doing) == {}
