"""A private MariaDB server on a loopback port and in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.janitor import Janitor
from tools.services import Daemon, ServiceFailed, ServiceMissing, free_ports, wait_for

HOW_TO_GET = "MariaDB is not installed: `apt-get install mariadb-server` (Debian, Ubuntu) or `brew install mariadb`."
SERVER_FOLDERS = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin")  # not on everybody's PATH


@dataclass(frozen=True)
class Programs:
    """What a server is made of and asked with."""

    server: str
    installer: str
    admin: str


class MariaDB:
    """One server with the account `root`, who needs no password on loopback.

    Args:
        folder: where data and log live; created if missing. Every folder above it must be open to all for root's sake.
        janitor: ends the server should this process die.
        settings: more server settings, such as {"max_allowed_packet": "1M"}.
    """

    def __init__(self, folder: Path, janitor: Janitor, *, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._janitor = janitor
        self._programs = find_programs()
        self.port = free_ports(1)[0]
        self._settings = settings or {}
        self._server: Daemon | None = None
        self._user = "mysql" if os.geteuid() == 0 else None  # the server refuses to run as root
        self._initialise()

    @property
    def dsn(self) -> str:
        """The URL of the database `mysql`, which every server has."""
        return f"mysql://root@127.0.0.1:{self.port}/mysql"

    @property
    def is_running(self) -> bool:
        """Whether the server process is there."""
        return self._server is not None and self._server.is_running

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises ServiceFailed."""
        self._server = self._spawn()
        wait_for(self._answers, self._server, "MariaDB")

    def stop(self) -> None:
        """Stop the server in an orderly way; its connections are closed."""
        if self._server is not None:
            self._server.end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL; it recovers from its log at the next start."""
        if self._server is not None:
            self._server.end(signal.SIGKILL)

    def close(self) -> None:
        """End the server; its data is not needed any more."""
        self.kill()

    def _initialise(self) -> None:
        data = self.folder / "data"
        if data.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(data, account.pw_uid, account.pw_gid)
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        command = [self._programs.installer, "--no-defaults", f"--datadir={data}", *options]
        switch = {"user": self._user, "group": self._user, "extra_groups": []} if self._user else {}
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **switch)  # type: ignore[call-overload]
        if done.returncode:
            raise ServiceFailed(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _spawn(self) -> Daemon:
        # Without fsync a power cut loses data; the death of a process does not, and that is what tests are about.
        settings = {
            "bind-address": "127.0.0.1",
            "socket": str(self.folder / "data" / "socket"),
            "pid-file": str(self.folder / "data" / "pid"),
            "max-connections": "200",
            "character-set-server": "utf8mb4",
            "innodb-flush-log-at-trx-commit": "2",
            "innodb-flush-method": "nosync",
            "innodb-doublewrite": "OFF",
            "innodb-log-file-size": "48M",
            "innodb-buffer-pool-size": "128M",
            "skip-name-resolve": "ON",
        } | self._settings
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        data = f"--datadir={self.folder / 'data'}"
        return Daemon(
            [self._programs.server, "--no-defaults", data, f"--port={self.port}", *arguments],
            environment={
                name: value for name, value in os.environ.items() if not name.startswith(("MYSQL", "MARIADB"))
            },
            log=self.folder / "mariadb.log",
            janitor=self._janitor,
            user=self._user,
            cwd=Path("/"),
        )

    def _answers(self) -> bool:
        where = ["--host=127.0.0.1", f"--port={self.port}", "--protocol=tcp", "--connect-timeout=2"]
        command = [self._programs.admin, "--no-defaults", *where, "--user=root", "ping"]
        return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


def find_programs() -> Programs:
    """The programs of the MariaDB that is installed. Raises ServiceMissing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SERVER_FOLDERS])
    found = [shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db", "mariadb-admin")]
    server, installer, admin = found
    if server is None or installer is None or admin is None:
        raise ServiceMissing(HOW_TO_GET)
    return Programs(server, installer, admin)
