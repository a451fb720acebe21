"""What children count is served by their supervisor, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
from collections.abc import Callable

import pytest

from messaging.metrics import names
from tests.metrics.scraping import Scrape
from tests.supervising.test_supervisor import Supervised, janitor, supervise
from tests.waiting import wait_until
from tools.services import free_ports

__all__ = ["janitor", "supervise"]  # fixtures

COUNTING = """
    from messaging.metrics import names
    from messaging.metrics.tally import attach
    tally = attach(role["tally"])
    tally.add(names.PROCESSED, ("default", "q", "shop.bill"), 10)
    tally.set([(names.DUE, ("default",), 7.0)])
    note("counted")
    obey()
"""


def scrape(port: int) -> Scrape | None:
    try:
        return Scrape.of(f"http://127.0.0.1:{port}/metrics")
    except urllib.error.URLError:
        return None


def test_no_count_is_lost_with_a_child_and_a_scrape_waits_for_none(supervise: Callable[..., Supervised]) -> None:
    port = free_ports(1)[0]
    running = supervise(COUNTING, "--processes=2", "--alias=default", f"--metrics-port={port}")
    first, second = (running.wait_for("counted", index=index, deadline=240)[0] for index in (0, 1))

    def scraped() -> Scrape:
        return wait_until(lambda: scrape(port), what=running.output())

    def processed() -> float:
        return scraped().sum(names.PROCESSED.sample, alias="default", queue="q", handler="shop.bill")

    assert scraped().value(names.DUE.sample, alias="default") == 7  # which is told for a minute
    assert processed() == 20
    os.kill(second, signal.SIGSTOP)  # it says nothing any more
    assert processed() == 20
    os.kill(first, signal.SIGKILL)
    seen = [processed()]
    wait_until(lambda: seen.append(processed()) or seen[-1] == 30, what="its successor")
    assert seen == sorted(seen)
    assert seen[0] == 20
    found = scrape(port)
    assert found is not None
    assert found.value(names.DEATHS.sample, alias="default") == 1
    assert found.value(names.PROCESSES.sample, alias="default") == 2
    os.kill(second, signal.SIGCONT)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(180) == 0


def test_a_port_that_is_taken_is_said(supervise: Callable[..., Supervised]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        running = supervise(COUNTING, "--alias=default", f"--metrics-port={port}")
        assert running.process.wait(180) == 1
    assert f"Error: Metrics cannot be served at 127.0.0.1:{port}: " in running.output()
    assert "Traceback" not in running.output()


@pytest.mark.parametrize("options", [(), ("--metrics-host=127.0.0.1",)])
def test_nobody_counts_unless_asked_to(supervise: Callable[..., Supervised], options: tuple[str, ...]) -> None:
    running = supervise("note('tally', str(role['tally'])); obey()", *options)
    running.wait_for("tally")
    assert [path.read_text() for path in running.notes("tally")] == ["-1"]
