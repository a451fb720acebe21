"""The demo site's runner as a terminal shows it."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.site import ROOT
from tests.waiting import wait_until
from tools.services import free_ports, is_listening

ENVIRONMENT_STAMP = Path(sys.prefix) / "requirements.txt.sha256"
made_by_make = pytest.mark.skipif(
    not ENVIRONMENT_STAMP.exists(), reason="this Python is not of an environment that `make` made"
)


def environment_of(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a runner that keeps its data in `folder` and knows nothing of the tests' own settings."""
    names = ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "ADMIN_PASSWORD", "SECRET_KEY", "MESSAGING_URL")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    ours = {"VENV": sys.prefix, "ENV_FILE": os.devnull, "DATA_DIR": str(folder / "var")}
    return inherited | ours | more


class Terminal:
    """A runner that was started, with a session of its own, its output in a file.

    Args:
        folder: where data and output are kept; another terminal may go on with it.
        mode: arguments of `tools.run`.
        env: further environment.
    """

    def __init__(self, folder: Path, *mode: str, **env: str) -> None:
        self.port, self.broker_port, management_port = free_ports(3)
        self.log = folder / f"terminal-{self.port}.log"
        self._environment = environment_of(
            folder,
            PORT=str(self.port),
            MANAGEMENT_PORT=str(management_port),
            MESSAGING_URL=env.pop("MESSAGING_URL", f"amqp://guest:guest@127.0.0.1:{self.broker_port}/"),
            **env,
        )
        self._browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.run", *mode],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All it has shown so far."""
        return self.log.read_text(errors="replace")

    @property
    def is_quiet(self) -> bool:
        """Whether nothing listens any more, neither the site nor its private node."""
        return not is_listening(self.port) and not is_listening(self.broker_port)

    def wait_for(self, pattern: str) -> str:
        """Wait until it has shown a regular expression; returns its first group."""

        def look() -> re.Match[str] | None:
            assert self.process.poll() is None, self.output
            return re.search(pattern, self.output)

        found = wait_until(look, what=f"{pattern!r} in {self.log}")
        assert found is not None
        return found[1]

    def page(self, path: str = "", language: str = "en") -> str:
        """A page of the site, as a browser that prefers this language gets it."""
        address = f"http://127.0.0.1:{self.port}/{path}"
        request = urllib.request.Request(address, headers={"Accept-Language": language})
        with self._browser.open(request, timeout=120) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            return str(answer.read().decode())

    def press(self, path: str, **fields: str) -> str:
        """Submit a form of the site, and return the page that follows."""
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.page("admin/login/" if "admin" in path else ""))
        assert token
        form = urllib.parse.urlencode({"csrfmiddlewaretoken": token[1], **fields}).encode()
        with self._browser.open(f"http://127.0.0.1:{self.port}/{path}", data=form, timeout=120) as answer:
            return str(answer.read().decode())

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, wait for the end of the runner, and return its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(180)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"Signal {number} did not end it:\n{self.output}") from None

    def kill(self) -> None:
        """Kill the runner, and wait for the end of what it started."""
        self.process.kill()
        self.process.wait()
        wait_until(lambda: self.is_quiet, what="the end of what the runner started")
