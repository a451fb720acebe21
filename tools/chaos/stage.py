"""Where it all happens: private servers, proxies before them, and the site's processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pika
import pika.exceptions
import psycopg

from tools.chaos.failover import KEY, Pair
from tools.chaos.places import Keeper, Place
from tools.chaos.schedule import FAILOVER
from tools.commands import Commands
from tools.janitor import Janitor
from tools.postgresql import PostgreSQL
from tools.proxy import Proxy, before
from tools.rabbitmq import RabbitMQ, add_vhost, delete_vhost

DATABASES = {"default": "chaos", "second": "chaos_second"}
# Short enough for a freeze or a silent network to outlast them.
OPTIONS = {
    "LEASE": 5,
    "HEARTBEAT": 5,
    "STOP_TIMEOUT": 20,
    "RETRY": {"max_attempts": 1000},
    "DATABASES": [*DATABASES],
}
IMPATIENT = 3  # seconds of STOP_TIMEOUT where handlers are stopped that take longer
PUBLISHERS = 2
FRUGAL = "consumer-frugal"
MARATHON = "marathon"  # the queue whose consumer is only ever stopped
# What a purge may drop, since the outbox has it; strangers' messages are nowhere else.
QUEUES = ("bulk", "single", "flaky", "chain", "long", "picky", "deadly", "forker", "wanderer", "nomad")
LARGE = "large"  # the queue whose consumer may hold little
HELD = 1024 * 1024  # bytes that it may hold
STRANGERS = ("stranger", "stranger-job")
PURGE_EMBEDDED = """DELETE FROM messaging_embeddedmessage WHERE holder_id IS NULL
    AND queue_id = (SELECT id FROM messaging_embeddedqueue WHERE name = '{}') RETURNING body"""
MOST_PURGED = 2000
END_SESSIONS = """SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class Stage:
    """Servers, proxies and processes of one run; a context manager that ends them all.

    Args:
        folder: for data and logs; open to all, for PostgreSQL's account.
        janitor: ends everything should this process die.
        broker: "rabbitmq" for a private node, "embedded", or the amqp URL of a given one.
        management_url: of a given broker, so that the run has a virtual host of its own.
        seed: of the publishers.
        rate: messages per second of each publisher, at most.
        kinds: of the faults that it has to stand.

    Attributes:
        pair, rabbitmq: the servers; `rabbitmq` is None unless private.
        proxies: by name.
        places, publishers: the processes; `places` has them all.
        debts: keys of the messages that an operator has to replay: they were purged, or their end was forgotten.
        dropped: how many messages were purged.
        database_is_well: held while nothing may happen to the database, or while something does.
    """

    def __init__(
        self,
        folder: Path,
        janitor: Janitor,
        *,
        broker: str,
        management_url: str | None,
        seed: str,
        rate: float = 200.0,
        kinds: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.rate = rate
        self._janitor = janitor
        self._broker = broker
        self._management_url = management_url
        self._ending = contextlib.ExitStack()
        self.pair = Pair(folder, janitor, DATABASES.values(), copied=FAILOVER in kinds)
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", janitor) if broker == "rabbitmq" else None
        self.proxies: dict[str, Proxy] = {}
        self.places: list[Place] = []
        self.publishers: list[Place] = []
        self.debts: set[str] = set()
        self.dropped = 0
        self.database_is_well = threading.Lock()

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as undo:
            undo.push(self._ending.__exit__)
            self._start_servers()
            self._make_site()
            self.pair.follow()
            self._start_processes()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    @property
    def postgres(self) -> PostgreSQL:
        """The server that is written to at present."""
        return self.pair.primary

    @property
    def consumers(self) -> list[Place]:
        """Those that anything may happen to."""
        return [place for place in self.places if place.name.startswith("consumer")]

    @property
    def ledger(self) -> Path:
        """What the strangers have sent."""
        return self.folder / "strangers.txt"

    @property
    def broker_log(self) -> str:
        """What the private node has logged; "" where there is none."""
        log = self.folder / "rabbitmq" / "rabbitmq.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def place(self, name: str) -> Place:
        """The place of that name."""
        return next(place for place in self.places if place.name == name)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement; it reaches PostgreSQL past all proxies."""
        return self._ask("default", statement)

    @property
    def queries(self) -> list[Callable[[str], list[tuple[Any, ...]]]]:
        """Asks each database; the first has the ledger."""
        return [lambda statement, name=name: self._ask(name, statement) for name in DATABASES]  # type: ignore[misc]

    def end_sessions(self) -> None:
        """End what is connected to the databases, and wait for its end."""
        for query in self.queries:
            with contextlib.suppress(psycopg.OperationalError):
                query(END_SESSIONS)

    def move_handlers(self) -> str:
        """While no consumer runs: have those that move live in the other database from now on. Returns its name."""
        return self._change("home", "default", "second")

    def change_release(self) -> str:
        """Have what starts from now on be of the other release. Returns its name."""
        return self._change("release", "new", "old")

    def end_with_new_release(self) -> None:
        """Have what starts from now on be of the new release."""
        (self.folder / "release").write_text("new")

    def give_memory(self) -> None:
        """Do for what is too large as its error says."""
        self.place(FRUGAL).start_with(self.site.env)

    def _change(self, name: str, first: str, other: str) -> str:
        """Have a file, which says `first` while it is not there, say the other of two words, which is returned."""
        file = self.folder / name
        word = first if file.exists() and file.read_text() == other else other
        file.write_text(word)
        return word

    def operate(self, *arguments: str, stdin: str = "") -> bool:
        """Have an operator act; False where trouble was in the way, which `operator.log` tells."""
        try:
            done = self.site.manage("operate_chaos", *arguments, check=False, stdin=stdin)
        except subprocess.TimeoutExpired as error:
            said = str(error)
        else:
            if done.returncode == 0:
                return True
            said = done.stdout + done.stderr
        with (self.folder / "operator.log").open("a") as log:
            log.write(f"{' '.join(arguments)}\n{said}\n")
        return False

    def replay(self, keys: Collection[str]) -> bool:
        """Have an operator replay the messages of these keys; False where trouble was in the way.

        Of a message whose original a failover has forgotten, its later rounds are. What a relay has sent before and
        marks only now is not found, so it has to be done again at the end.
        """
        self.debts.update(keys)
        if not keys:
            return True
        statement = f"""SELECT key, is_round, id FROM (SELECT {KEY} AS key, inbox_id IS NOT NULL AS is_round, id
            FROM messaging_publishedmessage) AS found WHERE key IN ({_list(keys)})"""
        try:
            found = {name: self._ask(name, statement) for name in DATABASES}
        except psycopg.OperationalError:
            return False
        originals = {key for rows in found.values() for key, is_round, _ in rows if not is_round}
        chosen = {
            name: [pk for key, is_round, pk in rows if not is_round or key not in originals]
            for name, rows in found.items()
        }
        return self.operate("replay", stdin=json.dumps(chosen))

    def requeue_forgotten(self) -> bool:
        """Have an operator requeue claims that wait for a delivery that was acknowledged, as a failover has forgotten.

        Only once nothing is under way: a message without an id that comes after all would run twice.
        """
        keys = {key for *_, key in self.pair.forgotten.received if key}
        if not keys:
            return True
        statement = f"""SELECT id FROM messaging_processedmessage WHERE state = 'processing' AND wire IS NOT NULL
            AND (lease_token IS NULL OR leased_until < now()) AND {KEY} IN ({_list(keys)})"""
        try:
            found = {name: [pk for (pk,) in self._ask(name, statement)] for name in DATABASES}
        except psycopg.OperationalError:
            return False
        return not any(found.values()) or self.operate("requeue", stdin=json.dumps(found))

    def purge(self, queue: str) -> list[str]:
        """Drop what waits in a queue at the broker, if that can be asked. Returns the keys of the messages."""
        url, found = self.site.env["MESSAGING_URL"], list[str]()
        if not url.startswith("amqp:"):
            with contextlib.suppress(psycopg.OperationalError):
                found += [json.loads(body)["key"] for (body,) in self.sql(PURGE_EMBEDDED.format(queue))]
                self.dropped += len(found)
            return found
        with (
            contextlib.suppress(pika.exceptions.AMQPError, OSError),
            contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection,
        ):
            channel, tag = connection.channel(), 0
            while len(found) < MOST_PURGED and (got := channel.basic_get(queue))[0] is not None:
                tag = got[0].delivery_tag
                found.append(json.loads(got[2])["key"])
            channel.basic_ack(tag, multiple=True)
        self.dropped += len(found)
        return found

    def _ask(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgres.dsn_of(DATABASES[name]), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _start_servers(self) -> None:
        self._ending.callback(self.pair.close)
        starts = [self.pair.start]
        if self.rabbitmq is not None:
            self._ending.callback(self.rabbitmq.close)
            starts.append(self.rabbitmq.start)
        with ThreadPoolExecutor() as pool:
            for result in [pool.submit(start) for start in starts]:
                result.result()

    def _make_site(self) -> None:
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            for name in DATABASES.values():
                connection.execute(f"CREATE DATABASE {name}".encode())
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tools.site_settings",
            "EXTRA_APPS": "tools.chaos.workload",
            "PYTHONUNBUFFERED": "1",
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self._database_url("default"),
            "SECOND_DATABASE_URL": self._database_url("second"),
            "MESSAGING_URL": self._broker_url(),
            "MESSAGING_OPTIONS": json.dumps(OPTIONS),
        }
        self.site = Commands(environment)
        for name in DATABASES:
            self.site.manage("migrate", "--run-syncdb", "--verbosity=0", f"--database={name}", timeout=120)
        self.site.manage("topology")

    def _database_url(self, name: str) -> str:
        """For clients that look for the primary themselves."""
        ports = self.pair.ports if self.pair.copied else self.pair.ports[:1]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgres://postgres@{hosts}/{DATABASES[name]}?target_session_attrs=read-write&connect_timeout=5"

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
        impatient = near | {"MESSAGING_OPTIONS": json.dumps(OPTIONS | {"STOP_TIMEOUT": IMPATIENT})}
        frugal = near | {"MESSAGING_OPTIONS": json.dumps(OPTIONS | {"HELD_BYTES": HELD})}
        others = [*QUEUES, *STRANGERS]
        publish = ["publish_chaos", f"--rate={self.rate:g}"]
        publishers = [
            (f"publisher-{number}", [*publish, f"--seed={self.seed}-{number}-{{starts}}"], near)
            for number in range(1, PUBLISHERS + 1)
        ]
        stranger = ["send_chaos", f"--seed={self.seed}-{{starts}}", f"--ledger={self.ledger}"]
        for name, arguments, environment in [
            ("relay", ["relay"], far),
            ("consumer-1", ["consume", *others, "--processes=2", "--concurrency=3"], near),
            ("consumer-2", ["consume", *others, "--no-relay"], far),
            (FRUGAL, ["consume", LARGE, "--no-relay"], frugal),
            (MARATHON, ["consume", MARATHON, "--no-relay"], impatient),
            *publishers,
            ("stranger", stranger, far),
        ]:
            place = Place(name, arguments, environment, self.folder, self._janitor)
            self._ending.callback(place.end)
            self.places.append(place)
        self.publishers = self.places[-PUBLISHERS - 1 :]
        for place in self.places:
            place.start()
        self.keeper = Keeper(self.places)
        self._ending.callback(self.keeper.stop)
        self.keeper.start()

    def _environments(self) -> Iterator[dict[str, str]]:
        """Those of two groups of processes: one with the database near, one with a network in between.

        The first finds a new primary by a list of hosts, the second since the proxy goes there.
        """
        database = self._behind_proxy("database", self.postgres.dsn)
        behind = {
            variable: f"{database.rpartition('/')[0]}/{DATABASES[name]}"
            for variable, name in (("DATABASE_URL", "default"), ("SECOND_DATABASE_URL", "second"))
        }
        for name, databases in (("broker-1", {}), ("broker-2", behind)):
            broker = self.site.env["MESSAGING_URL"]
            if broker.startswith("amqp:"):
                broker = self._behind_proxy(name, broker)
            yield self.site.env | databases | {"MESSAGING_URL": broker}

    def _behind_proxy(self, name: str, url: str) -> str:
        self.proxies[name], through = self._ending.enter_context(before(url, 5672))
        return through


def _list(keys: Collection[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)
