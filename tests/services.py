"""The broker and the databases that tests use: given by the environment, or private ones that end with the run.

`MESSAGING_TEST_URL` (amqp://...), with `MESSAGING_TEST_MANAGEMENT_URL` (http://user:password@host:15672) and
`MESSAGING_TEST_CTL` (a command prefix such as "docker exec rabbit rabbitmqctl") where there are such, names a broker;
`MESSAGING_TEST_DATABASE` (postgres://...) a PostgreSQL server, and `MESSAGING_TEST_MARIADB` (mysql://...) a MariaDB
server. What is not given is started.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.mariadb import MariaDatabase
from tools import postgresql, rabbitmq
from tools.cluster import Cluster
from tools.janitor import Janitor
from tools.mariadb import MariaDB
from tools.pgbouncer import PgBouncer
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ
from tools.services import ServiceFailed, ServiceMissing

MISSING = "MISSING SERVICE"
Server = TypeVar("Server", RabbitMQ, PostgreSQL, MariaDB, PgBouncer)


@dataclass(frozen=True)
class Broker:
    """A running broker that tests share: use virtual hosts of your own, and do not stop it.

    Attributes:
        url: AMQP URL of a virtual host that is this test process's own where one could be made.
        management_url: base of the management API with credentials, or None.
        ctl_prefix: command that `ctl()` puts before its arguments; () where there is none.
    """

    url: str
    management_url: str | None = None
    ctl_prefix: tuple[str, ...] = ()

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return its output; skips the test where the broker was given without it."""
        if not self.ctl_prefix:
            pytest.skip("needs rabbitmqctl: set MESSAGING_TEST_CTL for the broker of MESSAGING_TEST_URL")
        done = subprocess.run([*self.ctl_prefix, *arguments], capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            raise ServiceFailed(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def api(self, method: str, path: str, body: object = None) -> object:
        """Call the management API; skips the test where the broker was given without it."""
        if self.management_url is None:
            pytest.skip("needs the management API: set MESSAGING_TEST_MANAGEMENT_URL")
        return rabbitmq.call_api(self.management_url, method, path, body)

    @property
    def can_add_vhosts(self) -> bool:
        """Whether `add_vhost()` works here."""
        return bool(self.management_url or self.ctl_prefix)

    @property
    def vhost(self) -> str:
        """The virtual host of `url`."""
        return rabbitmq.vhost_of(self.url)

    def url_of(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        return urlsplit(self.url)._replace(path="/" + quote(vhost, safe="")).geturl()

    def add_vhost(self, name: str) -> str:
        """Create a virtual host and return its AMQP URL."""
        user = urlsplit(self.url).username or "guest"
        if self.management_url is not None:
            rabbitmq.add_vhost(self.management_url, name, user)
        else:
            self.ctl("add_vhost", name)
            self.ctl("set_permissions", "-p", name, user, ".*", ".*", ".*")
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all it holds."""
        if self.management_url is not None:
            rabbitmq.delete_vhost(self.management_url, name)
        else:
            self.ctl("delete_vhost", name)


@dataclass(frozen=True)
class Database:
    """A running PostgreSQL server that tests share. `dsn` names a database that exists already."""

    dsn: str

    def dsn_of(self, name: str) -> str:
        """The URL of another database of this server."""
        return urlsplit(self.dsn)._replace(path=f"/{name}").geturl()

    def create(self, name: str, template: str = "template0") -> str:
        """Create a database, as a copy of `template`, and return its URL. Nobody may be connected to the template."""
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return self.dsn_of(name)

    def drop(self, name: str) -> None:
        """Drop a database and end the connections to it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


class Services:
    """The services of one test process, each started at its first use; `close()` ends what was started."""

    def __init__(self) -> None:
        self._janitor: Janitor | None = None
        self._folder: Path | None = None
        self._closing: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def share(self, *, mariadb: bool) -> None:
        """Start them in parallel and put their addresses into the environment, for workers to find."""
        starts = [self._share_broker, self._share_database, *([self._share_mariadb] if mariadb else [])]
        with ThreadPoolExecutor() as pool:
            for result in [pool.submit(start) for start in starts]:
                result.result()

    def broker(self) -> Broker:
        """The broker given by the environment, or a private one. Raises ServiceMissing."""
        self._share_broker(required=True)
        return Broker(
            os.environ["MESSAGING_TEST_URL"],
            os.environ.get("MESSAGING_TEST_MANAGEMENT_URL"),
            tuple(shlex.split(os.environ.get("MESSAGING_TEST_CTL", ""))),
        )

    def database(self) -> Database:
        """The PostgreSQL server given by the environment, or a private one. Raises ServiceMissing."""
        self._share_database(required=True)
        return Database(os.environ["MESSAGING_TEST_DATABASE"])

    def mariadb(self) -> MariaDatabase:
        """The MariaDB server given by the environment, or a private one. Raises ServiceMissing."""
        self._share_mariadb(required=True)
        return MariaDatabase(os.environ["MESSAGING_TEST_MARIADB"])

    def node(self) -> RabbitMQ:
        """A further private RabbitMQ node, running. Raises ServiceMissing."""
        rabbitmq.find_scripts()
        return self._started(lambda: RabbitMQ(self._new_folder("rabbitmq"), self._watch()))

    def rabbitmq_cluster(self) -> Cluster:
        """Three private RabbitMQ nodes, not yet running. Raises ServiceMissing."""
        rabbitmq.find_scripts()
        cluster = Cluster(self._new_folder("rabbitmq-cluster"), self._watch())
        self._closing.append(cluster.close)
        return cluster

    def cluster(self) -> PostgreSQL:
        """A further private PostgreSQL server, running. Raises ServiceMissing."""
        return self._started(lambda: PostgreSQL(self._new_folder("postgresql"), self._watch()))

    def standby(self, source: PostgreSQL) -> PostgreSQL:
        """A hot standby that follows a server, running. Raises ServiceMissing."""
        return self._started(lambda: PostgreSQL(self._new_folder("standby"), self._watch(), source=source))

    def pgbouncer(self, server: str) -> PgBouncer:
        """A PgBouncer in transaction mode before a server, running. Raises ServiceMissing."""
        return self._started(lambda: PgBouncer(self._new_folder("pgbouncer"), self._watch(), server))

    def mariadb_server(self) -> MariaDB:
        """A further private MariaDB server, running. Raises ServiceMissing."""
        if importlib.util.find_spec("MySQLdb") is None:
            raise ServiceMissing("mysqlclient is not installed: `.venv/bin/pip install -r requirements-mariadb.txt`.")
        return self._started(lambda: MariaDB(self._new_folder("mariadb"), self._watch()))

    def close(self) -> None:
        """End everything that was started and remove its data."""
        while self._closing:
            self._closing.pop()()
        if self._janitor is not None:
            self._janitor.close()
            self._janitor = None

    def _started(self, make: Callable[[], Server]) -> Server:
        """A new server, running; a second one where somebody took a port of the first since it was found free."""
        server = make()
        self._closing.append(server.close)
        try:
            server.start()
        except ServiceFailed:
            server = make()
            self._closing.append(server.close)
            server.start()
        return server

    def _share_broker(self, required: bool = False) -> None:
        if os.environ.get("MESSAGING_TEST_URL"):
            return
        try:
            node = self.node()
        except ServiceMissing:
            if required:
                raise
            return
        changed = {name: value for name, value in node.environment.items() if os.environ.get(name) != value}
        settings = [f"{name}={value}" for name, value in changed.items()]
        os.environ["MESSAGING_TEST_CTL"] = shlex.join(["env", *settings, *node.ctl_command])
        os.environ["MESSAGING_TEST_MANAGEMENT_URL"] = node.management_url
        os.environ["MESSAGING_TEST_URL"] = node.url

    def _share_database(self, required: bool = False) -> None:
        if os.environ.get("MESSAGING_TEST_DATABASE"):
            return
        try:
            os.environ["MESSAGING_TEST_DATABASE"] = self.cluster().dsn
        except ServiceMissing:
            if required:
                raise

    def _share_mariadb(self, required: bool = False) -> None:
        if os.environ.get("MESSAGING_TEST_MARIADB"):
            return
        try:
            os.environ["MESSAGING_TEST_MARIADB"] = self.mariadb_server().dsn
        except ServiceMissing:
            if required:
                raise

    def _watch(self) -> Janitor:
        with self._lock:
            if self._janitor is None:
                self._janitor = Janitor()
                self._folder = Path(tempfile.mkdtemp(prefix="messaging-services-"))
                self._folder.chmod(0o755)  # the servers' accounts must reach their folders below
                self._janitor.remove(self._folder)
            return self._janitor

    def _new_folder(self, name: str) -> Path:
        self._watch()
        assert self._folder is not None
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))


def need_servers() -> None:
    """Have the test fail in CI, and skip elsewhere, where RabbitMQ or PostgreSQL is not installed."""
    try:
        rabbitmq.find_scripts()
        postgresql.find_programs()
    except ServiceMissing as error:
        missing(error)


def missing(error: ServiceMissing) -> None:
    """Fail in CI, skip loudly elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{MISSING}: {error}")
    pytest.skip(f"{MISSING}: {error}")
