"""`make run-rabbitmq` as a newcomer has it: one command starts everything, one Ctrl-C ends everything."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import missing
from tests.site import ROOT
from tests.waiting import wait_until
from tools import rabbitmq
from tools.services import ServiceMissing, free_ports, is_listening

ENVIRONMENT_STAMP = Path(sys.prefix) / "requirements.txt.sha256"


class Terminal:
    """The runner as a terminal shows it."""

    def __init__(self, folder: Path) -> None:
        self.port, self.broker_port, management_port = free_ports(3)
        self.log = folder / "terminal.log"
        environment = os.environ | {
            "VENV": sys.prefix,
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(folder / "var"),
            "PORT": str(self.port),
            "MANAGEMENT_PORT": str(management_port),
            "MESSAGING_URL": f"amqp://guest:guest@127.0.0.1:{self.broker_port}/",
        }
        for name in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "ADMIN_PASSWORD"):
            environment.pop(name, None)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.run", "--rabbitmq"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> str:
        def look() -> re.Match[str] | None:
            assert self.process.poll() is None, self.output
            return re.search(pattern, self.output)

        found = wait_until(look, deadline=90, what=f"{pattern!r} in {self.log}")
        assert found is not None
        return found[1]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing listens any more, neither the site nor its private node."""
        return not is_listening(self.port) and not is_listening(self.broker_port)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if not ENVIRONMENT_STAMP.exists():
        pytest.skip("this Python is not of an environment that `make` made")
    try:
        rabbitmq.find_scripts()
    except ServiceMissing as error:
        missing(error)
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    wait_until(lambda: terminal.is_quiet, what="the end of what the runner started")


@pytest.mark.broker
def test_one_command_starts_a_site_whose_orders_are_processed(terminal: Terminal) -> None:
    terminal.wait_for(r"user admin, password (\S+)\)")
    base = f"http://127.0.0.1:{terminal.port}/"
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    browser = urllib.request.build_opener(cookies)

    def page() -> str:
        with browser.open(base, timeout=30) as answer:
            return str(answer.read().decode())

    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page())
    assert token
    form = urllib.parse.urlencode({"csrfmiddlewaretoken": token[1]}).encode()
    browser.open(base + "order/", data=form, timeout=30).close()
    wait_until(lambda: "invoice written" in page() and "stock reserved" in page(), deadline=60)

    terminal.process.send_signal(signal.SIGINT)
    try:
        terminal.process.wait(60)
    except subprocess.TimeoutExpired:
        pytest.fail(f"Ctrl-C did not end it:\n{terminal.output}")
    assert terminal.process.returncode == 0, terminal.output
    assert terminal.is_quiet


@pytest.mark.broker
@pytest.mark.chaos
def test_a_killed_runner_takes_everything_along(terminal: Terminal) -> None:
    terminal.wait_for(r"(Ctrl-C stops everything)")
    terminal.process.kill()
    wait_until(lambda: terminal.is_quiet, what="the end of what the runner started")
