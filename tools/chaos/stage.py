"""Where it all happens: private servers, proxies before them, and the site's processes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg

from tests.proxy import Proxy
from tests.site import Site
from tools.chaos.places import Keeper, Place
from tools.janitor import Janitor
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ, add_vhost, delete_vhost

# Short enough for a freeze or a silent network to outlast them.
OPTIONS = {"LEASE": 5, "HEARTBEAT": 5, "STOP_TIMEOUT": 20, "RETRY": {"max_attempts": 1000}}
PUBLISHERS = 2


class Stage:
    """Servers, proxies and processes of one run; a context manager that ends them all.

    Args:
        folder: for data and logs; open to all, for PostgreSQL's account.
        janitor: ends everything should this process die.
        broker: "rabbitmq" for a private node, "embedded", or the amqp URL of a given one.
        management_url: of a given broker, so that the run has a virtual host of its own.
        seed: of the publishers.

    Attributes:
        postgres, rabbitmq: the servers; `rabbitmq` is None unless private.
        proxies: by name.
        places, publishers: the processes; `places` has them all.
    """

    def __init__(self, folder: Path, janitor: Janitor, *, broker: str, management_url: str | None, seed: str) -> None:
        self.folder = folder
        self.seed = seed
        self._janitor = janitor
        self._broker = broker
        self._management_url = management_url
        self._ending = contextlib.ExitStack()
        self.postgres = PostgreSQL(folder / "postgresql", janitor)
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", janitor) if broker == "rabbitmq" else None
        self.proxies: dict[str, Proxy] = {}
        self.places: list[Place] = []
        self.publishers: list[Place] = []

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as undo:
            undo.push(self._ending.__exit__)
            self._start_servers()
            self._make_site()
            self._start_processes()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def place(self, name: str) -> Place:
        """The place of that name."""
        return next(place for place in self.places if place.name == name)

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """The rows of a statement; it reaches PostgreSQL past all proxies."""
        return self.site.sql(statement)

    def _start_servers(self) -> None:
        self._ending.callback(self.postgres.close)
        starts = [self.postgres.start]
        if self.rabbitmq is not None:
            self._ending.callback(self.rabbitmq.close)
            starts.append(self.rabbitmq.start)
        with ThreadPoolExecutor() as pool:
            for result in [pool.submit(start) for start in starts]:
                result.result()

    def _make_site(self) -> None:
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos")
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.site_settings",
            "EXTRA_APPS": "tools.chaos.workload",
            "PYTHONUNBUFFERED": "1",
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self.postgres.dsn_of("chaos"),
            "MESSAGING_URL": self._broker_url(),
            "MESSAGING_OPTIONS": json.dumps(OPTIONS),
        }
        self.site = Site(self.folder, environment, self._janitor)
        self.site.manage("migrate", "--run-syncdb", "--verbosity=0", timeout=120)
        self.site.manage("topology")

    def _broker_url(self) -> str:
        """The broker, past all proxies, at a virtual host of this run's own where one can be made."""
        if self.rabbitmq is not None:
            return self.rabbitmq.url
        if self._broker == "embedded":
            return "database://"
        if self._management_url is None:
            return self._broker
        parts, name = urlsplit(self._broker), f"chaos-{uuid4().hex[:8]}"
        add_vhost(self._management_url, name, parts.username or "guest")
        self._ending.callback(delete_vhost, self._management_url, name)
        return parts._replace(path=f"/{name}").geturl()

    def _start_processes(self) -> None:
        near, far = self._environments()
        relay = [("relay", ["relay"], far)]
        consumers = [
            ("consumer-1", ["consume", "--processes=2", "--concurrency=3"], near),
            ("consumer-2", ["consume", "--no-relay"], far),
        ]
        publishers = [
            (f"publisher-{number}", ["publish_chaos", f"--seed={self.seed}-{number}-{{starts}}"], near)
            for number in range(1, PUBLISHERS + 1)
        ]
        for name, arguments, environment in [*relay, *consumers, *publishers]:
            place = Place(name, arguments, environment, self.folder, self._janitor)
            self._ending.callback(place.end)
            self.places.append(place)
        self.publishers = self.places[-PUBLISHERS:]
        for place in self.places:
            place.start()
        self.keeper = Keeper(self.places)
        self._ending.callback(self.keeper.stop)
        self.keeper.start()

    def _environments(self) -> Iterator[dict[str, str]]:
        """Those of two groups of processes: one with the database near, one with a network in between."""
        database = self._behind_proxy("database", self.site.env["DATABASE_URL"])
        for name, url in (("broker-1", self.site.env["DATABASE_URL"]), ("broker-2", database)):
            broker = self.site.env["MESSAGING_URL"]
            if broker.startswith("amqp:"):
                broker = self._behind_proxy(name, broker)
            yield self.site.env | {"DATABASE_URL": url, "MESSAGING_URL": broker}

    def _behind_proxy(self, name: str, url: str) -> str:
        parts = urlsplit(url)
        proxy = self._ending.enter_context(Proxy(parts.hostname or "127.0.0.1", parts.port or 5672))
        self.proxies[name] = proxy
        credentials = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}").geturl()
