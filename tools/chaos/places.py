"""The site's processes. Each has a place, and whoever ends is replaced, as a service manager would do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tools.commands import command
from tools.environment import ROOT
from tools.janitor import Janitor
from tools.services import Daemon

ORPHANS_END = 10.0  # seconds within which the children of a killed supervisor have to end by themselves
RESTART_PAUSE = 0.3  # seconds


class Place:
    """One command of the site and the process that runs it now.

    Args:
        name: of the place, and of its log.
        arguments: of `manage.py`.
        environment: the process's whole environment.
        folder: where the log is.
        janitor: ends the process should this one die.
    """

    def __init__(
        self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path, janitor: Janitor
    ) -> None:
        self.name = name
        self.starts = 0
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._janitor = janitor
        self._daemon: Daemon | None = None
        self._orphans: list[tuple[float, Daemon]] = []
        self._is_expected = False  # its end: somebody has seen to it

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._daemon.pid if self._daemon else 0

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._daemon is not None and self._daemon.is_running

    @property
    def status(self) -> int | None:
        """The exit status of its process."""
        return self._daemon.returncode if self._daemon else None

    def start(self) -> None:
        """Start the process; the log goes on."""
        self.starts += 1
        arguments = [argument.format(starts=self.starts) for argument in self._arguments]
        self._is_expected = False
        self._daemon = Daemon(
            command(tuple(arguments)), environment=self._environment, log=self.log, janitor=self._janitor, cwd=ROOT
        )

    def start_with(self, environment: Mapping[str, str]) -> None:
        """Stop the process in an orderly way, and start another in that environment."""
        self.stop()
        self._environment = environment
        self.start()

    def kill(self) -> None:
        """Kill the process alone; what it started finds itself orphaned."""
        self._is_expected = True
        self.signal(signal.SIGKILL)

    def ask_to_stop(self) -> None:
        """Tell it to stop, as a service manager would."""
        self._is_expected = True
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def children(self) -> list[int]:
        """The processes that it started."""
        said = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        pairs = (line.split() for line in said.splitlines())
        return sorted(int(pid) for pid, parent in pairs if int(parent) == self.pid)

    def replace(self) -> str | None:
        """After the end of its process: start another. Returns how it ended if nobody has seen to that."""
        assert self._daemon is not None
        ended = None if self._is_expected else f"{self.name} ended by itself with status {self.status}"
        self._orphans.append((time.monotonic(), self._daemon))
        self.start()
        return ended

    def bury(self, older_than: float = ORPHANS_END) -> None:
        """End what processes killed more than `older_than` seconds ago have left."""
        now = time.monotonic()
        for at, daemon in list(self._orphans):
            if now - at >= older_than:
                daemon.end()
                self._orphans.remove((at, daemon))

    def stop(self, timeout: float = 30.0) -> int | None:
        """Stop it in an orderly way and return its exit status."""
        if self._daemon is None:
            return None
        self._daemon.end(timeout=timeout)
        self.bury(0.0)
        return self.status

    def end(self) -> None:
        """Kill it with all it started."""
        if self._daemon is not None:
            self._daemon.end(signal.SIGKILL)
        self.bury(0.0)


class Keeper(threading.Thread):
    """Replaces whoever ends. `own_ends` are the ends that no fault explains."""

    def __init__(self, places: list[Place]) -> None:
        super().__init__(name="chaos-keeper", daemon=True)
        self.own_ends: list[str] = []
        self._places = places
        self._ending = threading.Event()
        self._absent: set[Place] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Look, replace, wait."""
        while not self._ending.wait(RESTART_PAUSE):
            with self._lock:
                for place in (one for one in self._places if one not in self._absent):
                    place.bury()
                    if not place.is_running and (ended := place.replace()):
                        self.own_ends.append(ended)

    @contextlib.contextmanager
    def without(self, places: Iterable[Place]) -> Iterator[None]:
        """Replace nobody in these places for a while."""
        with self._lock:
            self._absent = set(places)
        try:
            yield
        finally:
            with self._lock:
                self._absent = set()

    def stop(self) -> None:
        """Replace nobody any more."""
        self._ending.set()
        self.join()
