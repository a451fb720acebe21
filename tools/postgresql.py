"""A private PostgreSQL cluster on a loopback port and in a folder of its own."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tools.databases import DatabaseServer
from tools.janitor import Janitor
from tools.services import ServiceFailed, ServiceMissing

HOW_TO_GET = "PostgreSQL is not installed: `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql`."
DEFAULTS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200", "fsync": "off"}


class PostgreSQL(DatabaseServer):
    """One cluster with the superuser `postgres`, who needs no password on loopback.

    Args:
        folder, janitor, settings, port: see `DatabaseServer`.
        source: a running server of which this one is a copy: a hot standby that follows it until `promote()`.
        source_port: where it finds its source from then on, such as a proxy's; None for the source's own.
    """

    name = "PostgreSQL"
    account = "postgres"
    variables = ("PG",)
    stop_signal = signal.SIGINT
    end_signal = signal.SIGQUIT

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
        self._programs = find_programs()
        super().__init__(folder, janitor, defaults=DEFAULTS, settings=settings, port=port)
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

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises ServiceFailed."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return super().start()
            except ServiceFailed as error:
                self._end(signal.SIGQUIT)
                # After a kill the orphaned backends need a moment to let go of the shared memory.
                if time.monotonic() > deadline or "shared memory" not in str(error):
                    raise
                time.sleep(0.1)

    def promote(self) -> None:
        """Have a standby become a server of its own, with all that it has received. Raises ServiceFailed."""
        self._run([self._program("pg_ctl"), "promote", "-D", str(self.data), "--wait"])

    def _initialise(self, source: PostgreSQL | None) -> None:
        if not self._makes_data():
            return
        if source is not None:
            address = ["-h", "127.0.0.1", "-p", str(source.port), "-U", "postgres"]
            options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
            self._run([self._program("pg_basebackup"), "-D", str(self.data), *address, *options])
            return
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run([self._program("initdb"), "-D", str(self.data), *options])

    def _command(self) -> list[str]:
        arguments = [f"-c{name}={value}" for name, value in self._settings.items()]
        return [self._program("postgres"), "-D", str(self.data), "-p", str(self.port), *arguments]

    def _answers(self) -> bool:
        command = [self._program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, cwd="/", check=False).returncode == 0

    def _program(self, name: str) -> str:
        return str(self._programs / name)


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
