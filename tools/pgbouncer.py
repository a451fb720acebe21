"""A private PgBouncer on a loopback port, before a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.janitor import Janitor
from tools.services import Daemon, ServiceMissing, free_ports, is_listening, wait_for

HOW_TO_GET = "PgBouncer is not installed: `apt-get install pgbouncer` (Debian, Ubuntu) or `brew install pgbouncer`."
CONFIGURATION = """
[databases]
* = host={host} port={server_port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 500
"""


class PgBouncer:
    """One in transaction mode: each transaction gets any of a few sessions at the server.

    Args:
        folder: where its configuration and log live; created if missing. Every folder above it must be open to all.
        janitor: ends it should this process die.
        server: the URL of the server, with the user whom everybody becomes.
        size: sessions for each database.
    """

    def __init__(self, folder: Path, janitor: Janitor, server: str, *, size: int = 20) -> None:
        self._program = find_program()
        self.port = free_ports(1)[0]
        self._folder, self._janitor, self._server = folder, janitor, urlsplit(server)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        password = unquote(self._server.password or "")
        self._configuration = folder / "pgbouncer.ini"
        self._configuration.write_text(
            CONFIGURATION.format(
                host=self._server.hostname,
                server_port=self._server.port or 5432,
                user=unquote(self._server.username or "postgres"),
                password=f" password={password}" if password else "",
                port=self.port,
                size=size,
            )
        )
        self._configuration.chmod(0o644)
        self._daemon: Daemon | None = None

    def url_of(self, url: str) -> str:
        """The URL of a database of the server, through this."""
        parts = urlsplit(url)
        return parts._replace(netloc=f"{parts.username or 'postgres'}@127.0.0.1:{self.port}").geturl()

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises ServiceFailed."""
        self._daemon = Daemon(
            [self._program, str(self._configuration)],
            environment=os.environ,
            log=self._folder / "pgbouncer.log",
            janitor=self._janitor,
            user="postgres" if os.geteuid() == 0 else None,  # it refuses to run as root
            cwd=Path("/"),
        )
        wait_for(lambda: is_listening(self.port), self._daemon, "PgBouncer")

    def close(self) -> None:
        """End it."""
        if self._daemon is not None:
            self._daemon.end()


def find_program() -> str:
    """The program. Raises ServiceMissing."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        raise ServiceMissing(HOW_TO_GET)
    return found
