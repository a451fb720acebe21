"""What the private services share: free ports, waiting, processes in a group of their own. Standard library only."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tools.janitor import Janitor


class ServiceMissing(Exception):
    """A program that is needed is not installed; the text says how to get it."""


class ServiceFailed(Exception):
    """A service did not start; the text holds the end of its log."""


class Daemon:
    """One server process in a process group of its own, so that its end takes its children along.

    Args:
        command: program and arguments.
        environment: its whole environment.
        log: file that its output is appended to.
        janitor: ends it should this process die without doing so.
        user: account to run as; only root may say so.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        janitor: Janitor,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._janitor = janitor
        switch = {"user": user, "group": user, "extra_groups": []} if user else {}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd,
                **switch,  # type: ignore[call-overload]
            )
        janitor.watch(self.pid)

    @property
    def pid(self) -> int:
        """The process id, which is its process group's id too."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process itself is still there."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status; negative for a signal, None while it runs."""
        return self._process.poll()

    def end(self, signal_number: int = signal.SIGTERM, timeout: float = 30.0) -> None:
        """Signal the process, wait up to `timeout` seconds, then kill what is left of its group. Never raises."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.is_running:
                os.kill(self.pid, signal_number)
                self._process.wait(timeout)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._janitor.forget(self.pid)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return tail(self.log, lines)


def tail(log: Path, lines: int) -> str:
    """The last lines of a file that a process writes to."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `finally` blocks and `atexit` run; SIGINT interrupts.

    A shell that starts a command in the background has it ignore SIGINT, which Python would leave so.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


PORTS = range(15000, 32000)  # below those that the kernel hands out for outgoing connections
_given: set[int] = set()  # ports, by this process


def _ports() -> range:
    """Of the test processes of one run each has its own: what one was given, and does not yet use, is no other's."""
    name, count = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    return PORTS[int(name[2:]) :: int(count)]


def free_ports(count: int) -> list[int]:
    """Free loopback ports, never the same twice."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(_ports())
            if port in _given:  # whoever asked for it may not listen yet
                continue
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
                _given.add(port)
        return ports


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], daemon: Daemon, what: str, timeout: float = 120.0) -> None:
    """Wait until `condition()`; raises ServiceFailed when the daemon dies or `timeout` seconds pass."""
    deadline = time.monotonic() + timeout
    while not condition():
        if not daemon.is_running or time.monotonic() > deadline:
            why = "did not answer in time" if daemon.is_running else "ended while starting"
            raise ServiceFailed(f"{what} {why}. The end of {daemon.log}:\n{daemon.log_tail()}")
        time.sleep(0.05)
