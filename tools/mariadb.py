"""A private MariaDB server on a loopback port and in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tools.databases import DatabaseServer
from tools.janitor import Janitor
from tools.services import ServiceMissing

HOW_TO_GET = "MariaDB is not installed: `apt-get install mariadb-server` (Debian, Ubuntu) or `brew install mariadb`."
SERVER_FOLDERS = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin")  # not on everybody's PATH

DEFAULTS = {
    "bind-address": "127.0.0.1",
    "max-connections": "200",
    "character-set-server": "utf8mb4",
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-flush-method": "nosync",
    "innodb-doublewrite": "OFF",
    "innodb-log-file-size": "48M",
    "innodb-buffer-pool-size": "128M",
    "skip-name-resolve": "ON",
}


@dataclass(frozen=True)
class Programs:
    """What a server is made of and asked with."""

    server: str
    installer: str
    admin: str


class MariaDB(DatabaseServer):
    """One server with the account `root`, who needs no password on loopback.

    Args:
        folder, janitor, settings: see `DatabaseServer`.
    """

    name = "MariaDB"
    account = "mysql"
    variables = ("MYSQL", "MARIADB")

    def __init__(self, folder: Path, janitor: Janitor, *, settings: dict[str, str] | None = None) -> None:
        self._programs = find_programs()
        super().__init__(folder, janitor, defaults=DEFAULTS, settings=settings)
        if self._makes_data():
            options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
            self._run([self._programs.installer, "--no-defaults", f"--datadir={self.data}", *options])

    @property
    def dsn(self) -> str:
        """The URL of the database `mysql`, which every server has."""
        return f"mysql://root@127.0.0.1:{self.port}/mysql"

    def _command(self) -> list[str]:
        settings = {"socket": str(self.data / "socket"), "pid-file": str(self.data / "pid")} | self._settings
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        return [self._programs.server, "--no-defaults", f"--datadir={self.data}", f"--port={self.port}", *arguments]

    def _answers(self) -> bool:
        where = ["--host=127.0.0.1", f"--port={self.port}", "--protocol=tcp", "--connect-timeout=2"]
        command = [self._programs.admin, "--no-defaults", *where, "--user=root", "ping"]
        return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """A cursor of a connection of its own, each statement committed at once; "double quotes" quote names."""
    import MySQLdb

    parts = urlsplit(url)
    connection = MySQLdb.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=parts.path.strip("/"),
        charset="utf8mb4",
        autocommit=True,
        sql_mode="STRICT_TRANS_TABLES,ANSI_QUOTES",
    )
    with contextlib.closing(connection):
        yield connection.cursor()


def find_programs() -> Programs:
    """The programs of the MariaDB that is installed. Raises ServiceMissing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SERVER_FOLDERS])
    found = [shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db", "mariadb-admin")]
    server, installer, admin = found
    if server is None or installer is None or admin is None:
        raise ServiceMissing(HOW_TO_GET)
    return Programs(server, installer, admin)
