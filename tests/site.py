"""The real project, run by tests as `python manage.py ...` in processes of its own, with its own database and vhost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from tests.inside import Loaded
from tests.mariadb import MariaDatabase
from tests.services import Broker, Database
from tests.waiting import DEADLINE, wait_until
from tools.commands import Commands, command
from tools.environment import ROOT
from tools.janitor import Janitor
from tools.mariadb import connected
from tools.services import free_ports, is_listening, tail

SETTINGS = "tests.site_settings"
loaded = Loaded()


class Running:
    """A `manage.py` command that was started, in a process group of its own, its output in a file.

    `launcher` is what another program is started by.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        env: Mapping[str, str],
        log: Path,
        root: Path = ROOT,
        launcher: Sequence[str] = (),
    ) -> None:
        self.arguments = arguments
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*launcher, *arguments] if launcher else command(arguments, root),
                env=dict(env),
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """All it has said so far, both streams."""
        return self.log.read_text(errors="replace")

    def log_tail(self, lines: int) -> str:
        """The last lines of that."""
        return tail(self.log, lines)

    @property
    def returncode(self) -> int | None:
        """Its exit status; negative for a signal, None while it runs."""
        return self._process.poll()

    def wait_for_output(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """Wait up to `deadline` seconds until its output matches a regular expression."""

        def look() -> re.Match[str] | None:
            has_ended = self.returncode is not None
            found = re.search(pattern, self.output, re.MULTILINE)
            assert found or not has_ended, f"{self} ended with {self.returncode} without {pattern!r}:\n{self.output}"
            return found

        try:
            found = wait_until(look, deadline=deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\nOutput of {self}:\n{self.output}") from None
        assert found is not None
        return found

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait up to `deadline` seconds for its end and return its exit status."""
        try:
            return self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {deadline} s:\n{self.output}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        self._process.send_signal(number)

    def stop(self, deadline: float = DEADLINE) -> int:
        """Send SIGTERM, wait up to `deadline` seconds for its end, and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline)

    def kill(self) -> None:
        """Kill it with SIGKILL, and the rest of its process group: what a machine's crash does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def kill_process(self) -> None:
        """Kill only the process itself with SIGKILL; its children find themselves orphaned."""
        self._process.kill()
        self._process.wait()

    def __str__(self) -> str:
        return f"manage.py {' '.join(self.arguments)}"


class Site(Commands):
    """One site: an environment for its processes, its database and its virtual host.

    Attributes:
        folder: its files.
        env: environment of every process; change it before starting one.
        root: where `manage.py` and the package are.
        database_url, broker_url: what it is connected to.
    """

    def __init__(
        self, folder: Path, env: dict[str, str], janitor: Janitor, root: Path = ROOT, python: str = sys.executable
    ) -> None:
        super().__init__(env, root, python)
        self.folder = folder
        self._janitor = janitor
        self._running: list[Running] = []

    def beside(self, root: Path, **env: str) -> Site:
        """The same site run by the code in another folder, which has a `manage.py` and the package."""
        path = os.pathsep.join([str(root), self.env["PYTHONPATH"]])
        other = Site(self.folder, self.env | {"PYTHONPATH": path} | env, self._janitor, root)
        other._running = self._running  # they end together
        return other

    @property
    def database_url(self) -> str:
        """Its database."""
        return self.env["DATABASE_URL"]

    @property
    def broker_url(self) -> str:
        """Its broker."""
        return self.env["MESSAGING_URL"]

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a command and leave it running until it is stopped or the test ends."""
        return self.launch(command((), self.root, self.python), *arguments, env=env)

    def launch(self, launcher: Sequence[str], *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        """Start another program so."""
        log = self.folder / f"{len(self._running)}-{Path(arguments[0]).name}.log"
        running = Running(arguments, self.env | dict(env or {}), log, self.root, launcher)
        self._running.append(running)
        self._janitor.watch(running.pid)
        return running

    def serve(self) -> str:
        """Start the web server and return its base URL, without a slash at the end."""
        port = free_ports(1)[0]
        server = self.start("runserver", "--noreload", f"127.0.0.1:{port}")
        wait_until(lambda: is_listening(port) or server.returncode is not None, what="the web server")
        assert server.returncode is None, server.output
        return f"http://127.0.0.1:{port}"

    def run(self, code: str) -> str:
        """Run Python code that prepares the test, without a process of its own, and return what it prints.

        The handlers of the site are not there, and no kill point is armed: `shell()` has both.
        """
        if self.root != ROOT or self.env["DJANGO_SETTINGS_MODULE"] != SETTINGS:
            return self.shell(code)  # other code, or settings of its own
        return loaded.run(code, self.env)

    def shell(self, code: str) -> str:
        """Run Python code inside the site, in a process of its own, and return what it prints."""
        return self.manage("shell", "-c", code).stdout

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run an SQL statement on its database, committed at once, and return its rows."""
        if self.database_url.startswith("sqlite"):
            connection = sqlite3.connect(self.database_url.removeprefix("sqlite:///"), timeout=20, isolation_level=None)
            with contextlib.closing(connection):
                return connection.execute(statement).fetchall()
        if self.database_url.startswith("mysql"):
            with connected(self.database_url) as maria:
                maria.execute(statement)
                return list(maria.fetchall())
        with psycopg.connect(self.database_url, autocommit=True) as postgres:
            cursor = postgres.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str) -> Any:
        """The single value that an SQL statement yields."""
        return self.sql(statement)[0][0]

    def states(self, table: str = "processed") -> dict[str, int]:
        """How many messages are in each state: of the inbox, or with "published" of the outbox."""
        rows = self.sql(f"SELECT state, COUNT(*) FROM messaging_{table}message GROUP BY state")
        return {str(state): int(count) for state, count in rows}

    def close(self) -> None:
        """Kill whatever still runs for this site, children that left their group included."""
        for running in reversed(self._running):
            running.kill()
            self._janitor.forget(running.pid)
        for pid in _processes_with(f"MESSAGING_TEST_SITE={self.env['MESSAGING_TEST_SITE']}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class SiteFactory:
    """Makes sites. A migrated database is made once per kind and copied."""

    def __init__(self, folder: Path, fixture: Callable[[str], Any]) -> None:
        self._folder = folder
        self._fixture = fixture
        self._templates: dict[str, str] = {}
        self._sites: list[Site] = []
        self._undo: list[Callable[[], None]] = []
        self._close: list[Callable[[], None]] = []
        self._janitor = Janitor()  # ends the sites of a test run that is killed itself

    def __call__(
        self,
        db: str = "sqlite",
        *,
        handlers: str | None = None,
        broker: str | None = None,
        queues: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        server: Database | MariaDatabase | None = None,
    ) -> Site:
        """A new site, migrated and connected; nothing runs yet.

        Args:
            db: "sqlite", "postgres" or "mariadb".
            handlers: Python source of a `handlers.py`, installed as the app `extra`.
            broker: a URL; None for a fresh virtual host of the run's RabbitMQ, "database://" for the embedded broker.
            queues: `MESSAGING["default"]["QUEUES"]`.
            options: further keys of `MESSAGING["default"]`.
            env: further environment.
            server: another than the run's, as `Database(own_postgres.dsn)` or `MariaDatabase(own_mariadb.dsn)`.
        """
        folder = self._folder / uuid4().hex[:8]
        folder.mkdir()
        values = self._base_env(folder) | {
            "MESSAGING_URL": broker or self._new_vhost(),
            "MESSAGING_QUEUES": json.dumps(queues or {}),
            "MESSAGING_OPTIONS": json.dumps(options or {}),
            "DATABASE_URL": self._new_database(db, folder, server),
        }
        if handlers is not None:
            _write_app(folder / "extra", handlers)
            values["EXTRA_APPS"] = "extra"
        site = Site(folder, values | dict(env or {}), self._janitor)
        self._sites.append(site)
        return site

    @property
    def running(self) -> list[Running]:
        """What the sites of this test have started, ended or not."""
        return [running for site in self._sites for running in site._running]

    def close_sites(self) -> None:
        """End the sites of one test and give back their databases and virtual hosts."""
        while self._sites:
            self._sites.pop().close()
        while self._undo:
            self._undo.pop()()

    def close(self) -> None:
        """Drop the templates."""
        for undo in self._close:
            undo()
        self._janitor.close()
        loaded.close()

    def _new_vhost(self) -> str:
        rabbitmq: Broker = self._fixture("rabbitmq")
        name = f"site-{uuid4().hex[:12]}"
        url = rabbitmq.add_vhost(name)
        self._undo.append(lambda: rabbitmq.delete_vhost(name))
        return url

    def _new_database(self, kind: str, folder: Path, server: Database | MariaDatabase | None) -> str:
        if kind == "sqlite":
            return self._new_sqlite(folder)
        if server is None:
            return self._new_copy(kind)
        url = server.create(f"site_{uuid4().hex[:12]}")
        self._migrate(url)
        return url

    def _new_sqlite(self, folder: Path) -> str:
        if "sqlite" not in self._templates:
            template = self._folder / "template.sqlite3"
            self._migrate(f"sqlite:///{template}")
            self._templates["sqlite"] = str(template)
        shutil.copyfile(self._templates["sqlite"], folder / "db.sqlite3")
        return f"sqlite:///{folder / 'db.sqlite3'}"

    def _new_copy(self, kind: str) -> str:
        shared: Database | MariaDatabase = self._fixture(kind)
        if kind not in self._templates:
            template = f"template_{uuid4().hex[:12]}"
            self._migrate(shared.create(template))
            self._templates[kind] = template
            self._close.append(lambda: shared.drop(template))
        name = f"site_{uuid4().hex[:12]}"
        self._undo.append(lambda: shared.drop(name))
        return shared.create(name, self._templates[kind])

    def _migrate(self, url: str) -> None:
        env = self._base_env(self._folder) | {"DATABASE_URL": url, "MESSAGING_URL": "database://"}
        Site(self._folder, env, self._janitor).manage("migrate", "--verbosity=0")

    def _base_env(self, folder: Path) -> dict[str, str]:
        return os.environ | {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(folder),
            "MESSAGING_TEST_SITE": folder.name,
        }


def _write_app(folder: Path, handlers: str) -> None:
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "handlers.py").write_text(handlers)


def _processes_with(variable: str) -> list[int]:
    """The processes that were started with a variable in their environment, where the system tells (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
