"""A private PostgreSQL cluster on a loopback port and in a folder of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tools.janitor import Janitor
from tools.services import Daemon, ServiceFailed, ServiceMissing, free_ports, wait_for

HOW_TO_GET = "PostgreSQL is not installed: `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql`."


class PostgreSQL:
    """One cluster with the superuser `postgres`, who needs no password on loopback.

    Args:
        folder: where data and log live; created if missing. Every folder above it must be open to all for root's sake.
        janitor: ends the server should this process die.
        settings: more server settings, such as {"max_connections": "50"}.
        port: where it listens; None chooses a free one. May be changed while it does not run.
        source: a running server of which this one is a copy: a hot standby that follows it until `promote()`.
        source_port: where it finds its source from then on, such as a proxy's; None for the source's own.
    """

    def __init__(
        self,
        folder: Path,
        janitor: Janitor,
        *,
        settings: dict[str, str] | None = None,
        port: int | None = None,
        source: PostgreSQL | None = None,
        source_port: int | None = None,
    ) -> None:
        self.folder = folder
        self._janitor = janitor
        self._programs = find_programs()
        self.port = port or free_ports(1)[0]
        self._settings = dict(settings or {})
        self._server: Daemon | None = None
        self._user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        if source is not None:
            found_at = f"host=127.0.0.1 port={source_port or source.port} user=postgres"
            self._settings["primary_conninfo"] = found_at
        self._initialise(source)

    @property
    def dsn(self) -> str:
        """The URL of the database `postgres`."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The URL of a database."""
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether the server process is there."""
        return self._server is not None and self._server.is_running

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises ServiceFailed."""
        deadline = time.monotonic() + 30
        while True:
            self._server = self._spawn()
            try:
                return wait_for(self._answers, self._server, "PostgreSQL")
            except ServiceFailed:
                self._server.end(signal.SIGQUIT)
                # After a kill the orphaned backends need a moment to let go of the shared memory.
                if time.monotonic() > deadline or "shared memory" not in self._server.log_tail():
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server in an orderly way; its connections are closed."""
        if self._server is not None:
            self._server.end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server with SIGKILL; it recovers from its log at the next start."""
        if self._server is not None:
            self._server.end(signal.SIGKILL)

    def promote(self) -> None:
        """Have a standby become a server of its own, with all that it has received. Raises ServiceFailed."""
        self._run("pg_ctl", "promote", "-D", str(self.folder / "data"), "--wait")

    def close(self) -> None:
        """End the server; its data is not needed any more."""
        if self._server is not None:
            self._server.end(signal.SIGQUIT)

    def _initialise(self, source: PostgreSQL | None) -> None:
        data = self.folder / "data"
        if data.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(data, account.pw_uid, account.pw_gid)
        if source is not None:
            address = ["-h", "127.0.0.1", "-p", str(source.port), "-U", "postgres"]
            options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
            self._run("pg_basebackup", "-D", str(data), *address, *options)
            return
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        switch = {"user": self._user, "group": self._user, "extra_groups": []} if self._user else {}
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **switch)  # type: ignore[call-overload]
        if done.returncode:
            raise ServiceFailed(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _spawn(self) -> Daemon:
        # Without fsync a power cut loses data; the death of a process does not, and that is what tests are about.
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "off",
        } | self._settings
        arguments = [f"-c{name}={value}" for name, value in settings.items()]
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return Daemon(
            command,
            environment=environment | {"LC_ALL": "C"},
            log=self.folder / "postgresql.log",
            janitor=self._janitor,
            user=self._user,
            cwd=Path("/"),
        )

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, cwd="/", check=False).returncode == 0


def find_programs() -> Path:
    """The folder with `initdb`, `postgres` and their like, of the highest version there is. Raises ServiceMissing."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(versions, key=lambda path: float(re.sub(r"[^\d.]", "", path.parts[4]) or 0), default=None)
    if found is not None:
        return found.parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise ServiceMissing(HOW_TO_GET)
    return Path(on_path).resolve().parent
