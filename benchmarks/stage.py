"""Where it is measured: private servers, the sites' databases, and the processes that are timed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pika
import psycopg

from benchmarks import load, tables
from benchmarks.measuring import Broken
from tools.environment import ROOT
from tools.janitor import Janitor
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ
from tools.services import Daemon, stopping_on_signals

LONGEST = 120.0  # seconds that one process may take for its messages
STANDSTILL = 30.0  # seconds without progress after which nothing more is expected
LOOK = 0.5  # seconds between two looks at what a process has done: each reads a table, on the cores that are measured
# Commits are durable, as on a server that matters; the tests' servers do without.
POSTGRESQL = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}


@contextlib.contextmanager
def staged(name: str, **postgresql: str) -> Iterator[Stage]:
    """A stage in a temporary folder of that name; nothing of it is left, however this process ends.

    Args:
        name: of the folder.
        postgresql: settings of the database server, beside or instead of the usual ones.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"messaging-{name}-"))
    folder.chmod(0o755)  # PostgreSQL's account must reach its folder below
    janitor = Janitor()
    janitor.remove(folder)
    try:
        with stopping_on_signals(), Stage(folder, janitor, postgresql) as stage:
            yield stage
    finally:
        janitor.close()


class Stage:
    """Servers and databases of one run; a context manager that ends them all.

    Args:
        folder: for data and logs; open to all, for PostgreSQL's account.
        janitor: ends everything should this process die.
        postgresql: settings of the database server, beside or instead of the usual ones.
    """

    def __init__(self, folder: Path, janitor: Janitor, postgresql: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._janitor = janitor
        self._ending = contextlib.ExitStack()
        self._logs = 0
        self._prepared: set[str] = set()
        self.postgresql = PostgreSQL(folder / "postgresql", janitor, settings={**POSTGRESQL, **(postgresql or {})})
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", janitor)

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as undo:
            undo.push(self._ending.__exit__)
            self._start_servers()
            self.database = self._ending.enter_context(self._make_database())
            self.broker = self._ending.enter_context(self._connect()).channel()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    # The environments of processes

    @property
    def dsn(self) -> str:
        """The PostgreSQL database of all sites."""
        return self.postgresql.dsn_of("bench")

    def environment(self, **more: str) -> dict[str, str]:
        """Of a process of ours, on PostgreSQL and RabbitMQ unless `more` says otherwise."""
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "benchmarks.site.settings",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
            "ENV_FILE": os.devnull,
            "DEBUG": "0",
            "SECRET_KEY": "benchmarks",
            "LOG_LEVEL": "WARNING",
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self.dsn,
            "MESSAGING_URL": self.rabbitmq.url,
            **more,
        }

    # Processes

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Daemon:
        """Start a process; whoever starts it ends it."""
        self._logs += 1
        log = self.folder / f"{self._logs}.log"
        return Daemon(command, environment=env or self.environment(), log=log, janitor=self._janitor, cwd=cwd)

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
        """Run a process to its end and return its output. Raises Broken."""
        daemon = self.start(command, env, cwd)
        deadline = time.monotonic() + LONGEST
        try:
            while daemon.is_running:
                if time.monotonic() > deadline:
                    raise Broken(f"{' '.join(command)} still runs after {LONGEST:g} s:\n{daemon.log_tail()}")
                time.sleep(0.02)
        finally:
            daemon.end()
        if daemon.returncode:
            raise Broken(f"{' '.join(command)} ended with {daemon.returncode}:\n{daemon.log_tail()}")
        return daemon.log.read_text(errors="replace")

    def job(self, module: str, *arguments: object, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run a module of ours that says in its last line, as JSON, what it found."""
        output = self.run([sys.executable, "-m", module, *map(str, arguments)], env)
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def manage(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run a management command of our site to its end."""
        return self.run([*manage(), *arguments], env)

    @contextlib.contextmanager
    def running(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Iterator[Daemon]:
        """A process that is stopped at the end."""
        daemon = self.start(command, env, cwd)
        try:
            yield daemon
        finally:
            daemon.end(timeout=15)

    def wait(self, count: int, progress: Callable[[], int], *daemons: Daemon) -> None:
        """Wait until `progress()` has reached `count`. Raises Broken when a process ends or nothing happens."""
        seen, changed = -1, time.monotonic()
        while (now := progress()) < count:
            if now != seen:
                seen, changed = now, time.monotonic()
            for daemon in daemons:
                if not daemon.is_running:
                    raise Broken(f"a process ended at {now} of {count}:\n{daemon.log_tail()}")
            if time.monotonic() - changed > STANDSTILL:
                logs = "\n".join(daemon.log_tail() for daemon in daemons)
                raise Broken(f"nothing happened for {STANDSTILL:g} s at {now} of {count}:\n{logs}")
            time.sleep(LOOK)

    # PostgreSQL and RabbitMQ

    def value(self, statement: str) -> Any:
        """The single value that a statement yields on PostgreSQL."""
        row = self.database.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def prepared(self, what: str) -> bool:
        """Whether this was asked before: what is to be prepared only once."""
        before = what in self._prepared
        self._prepared.add(what)
        return before

    def clear(self) -> None:
        """Empty every table and every queue."""
        found = self.database.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'django_migrations'"
        ).fetchall()
        self.database.execute(f"TRUNCATE {', '.join(name for (name,) in found)} RESTART IDENTITY CASCADE".encode())
        for queue in (load.SINGLE, load.BATCH, load.TIMED):
            deadline = time.monotonic() + STANDSTILL
            while self.depth(queue) and time.monotonic() < deadline:
                self.broker.queue_purge(queue)

    def depth(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        return int(self.broker.queue_declare(queue, passive=True).method.message_count)

    def expect_depth(self, queue: str, count: int) -> None:
        """Raise Broken unless the queue soon holds as many messages as were confirmed."""
        deadline = time.monotonic() + 10
        while (found := self.depth(queue)) != count:
            if time.monotonic() > deadline:
                raise Broken(f"{queue} holds {found} messages, not {count}")
            time.sleep(LOOK)

    def _start_servers(self) -> None:
        self._ending.callback(self.postgresql.close)
        self._ending.callback(self.rabbitmq.close)
        with ThreadPoolExecutor() as pool:
            for result in [pool.submit(self.postgresql.start), pool.submit(self.rabbitmq.start)]:
                result.result()

    @contextlib.contextmanager
    def _make_database(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.postgresql.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench")
        self.manage("migrate", "--verbosity=0")
        self.manage("topology")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(tables.POSTGRESQL)
            yield connection

    @contextlib.contextmanager
    def _connect(self) -> Iterator[pika.BlockingConnection]:
        # Without heartbeats: this process does nothing with it for minutes.
        connection = pika.BlockingConnection(pika.URLParameters(f"{self.rabbitmq.url}?heartbeat=0"))
        try:
            yield connection
        finally:
            connection.close()


def manage() -> list[str]:
    """The command that begins every management command of ours."""
    return [sys.executable, str(ROOT / "manage.py")]
