"""What the private database servers share: a folder, an account, and a process with an end."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tools.janitor import Janitor
from tools.services import Daemon, ServiceFailed, free_ports, wait_for


class DatabaseServer(ABC):
    """One server on a loopback port and in a folder of its own.

    Without fsync a power cut loses data; the death of a process does not, and that is what tests are about.

    Args:
        folder: where data and log live; created if missing. Every folder above it must be open to all for root's sake.
        janitor: ends the server should this process die.
        defaults: server settings that all have.
        settings: more of them, such as {"max_connections": "50"}.
        port: where it listens; None chooses a free one. May be changed while it does not run.
    """

    name: ClassVar[str]
    account: ClassVar[str]  # what root starts it as: the server refuses to run as root
    variables: ClassVar[tuple[str, ...]]  # how the names of those begin that would change what it does
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM  # an orderly stop, which closes the connections
    end_signal: ClassVar[signal.Signals] = signal.SIGKILL  # of one whose data is not needed any more

    def __init__(
        self,
        folder: Path,
        janitor: Janitor,
        *,
        defaults: dict[str, str],
        settings: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self._janitor = janitor
        self._settings = defaults | (settings or {})
        self._server: Daemon | None = None
        self._user = self.account if os.geteuid() == 0 else None

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.folder / "data"

    @property
    def is_running(self) -> bool:
        """Whether the server process is there."""
        return self._server is not None and self._server.is_running

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises ServiceFailed."""
        self._server = self._spawn()
        wait_for(self._answers, self._server, self.name)

    def stop(self) -> None:
        """Stop the server in an orderly way; its connections are closed."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Kill the server with SIGKILL; it recovers from its log at the next start."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the server; its data is not needed any more."""
        self._end(self.end_signal)

    @abstractmethod
    def _command(self) -> list[str]:
        """The program that serves, with its arguments."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it accepts connections."""

    def _makes_data(self) -> bool:
        """Make an empty data folder; False where there is one already."""
        if self.data.exists():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.data.mkdir(mode=0o700)
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self.data, account.pw_uid, account.pw_gid)
        return True

    def _run(self, command: Sequence[str]) -> None:
        switch = {"user": self._user, "group": self._user, "extra_groups": []} if self._user else {}
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **switch)  # type: ignore[call-overload]
        if done.returncode:
            raise ServiceFailed(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _spawn(self) -> Daemon:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(self.variables)}
        return Daemon(
            self._command(),
            environment=environment | {"LC_ALL": "C"},
            log=self.folder / f"{self.name.lower()}.log",
            janitor=self._janitor,
            user=self._user,
            cwd=Path("/"),
        )

    def _end(self, number: signal.Signals) -> None:
        if self._server is not None:
            self._server.end(number)
