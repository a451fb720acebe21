"""End to end on one SQLite file and no broker: publish one by one, each in a transaction, while one worker records."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import load, peers, tables, timing
from benchmarks.environments import python_of
from benchmarks.measuring import Broken, Sample, measurement
from benchmarks.stage import Stage, manage


@dataclass(frozen=True)
class Site:
    """One way to run it.

    Attributes:
        database: the file of Django's database, made anew.
        env: of all its processes.
        migrate, worker: commands; the worker runs until it is stopped.
        publisher: a command without its last arguments, which are what `last` says, with the count for "{}".
        ledger: counts what its own records call done, in `records`, which is the database unless said otherwise.
    """

    database: Path
    env: dict[str, str]
    migrate: Sequence[str]
    worker: Sequence[str]
    publisher: Sequence[str]
    ledger: str
    records: Path | None = None
    last: Sequence[str] = field(default=("{}",))


@measurement("embedded", "publish(), database://, consume --concurrency=1", full=1_500, quick=300)
def embedded(stage: Stage, count: int) -> Sample:
    """Outbox, queue, inbox and effect in one SQLite file."""
    return _ours(stage, load.SINGLE, count)


@measurement("embedded", "publish(), database://, @handler(batch=500)", full=1_500, quick=300)
def embedded_batch(stage: Stage, count: int) -> Sample:
    """The same with a handler that takes as many as there are."""
    return _ours(stage, load.BATCH, count)


def _ours(stage: Stage, queue: str, count: int) -> Sample:
    database = _new_file(stage, "ours.sqlite3")
    env = stage.environment(DATABASE_URL=f"sqlite:///{database}", MESSAGING_URL="database://")
    site = Site(
        database,
        env,
        migrate=[*manage(), "migrate", "--verbosity=0"],
        worker=[*manage(), "consume", queue, "--concurrency=1"],
        publisher=[manage()[0], "-m", "benchmarks.site.jobs", "each_committed"],
        last=("{}", queue),
        ledger=timing.LEDGER,
    )
    return _end_to_end(stage, site, count, untimed_each=0)


@measurement("embedded", "django-tasks-db, db_worker", full=1_500, quick=300)
def django_tasks(stage: Stage, count: int) -> Sample:
    """The queue's row becomes the record."""
    python, database = str(python_of("embedded")), _new_file(stage, "tasks.sqlite3")
    site = Site(
        database,
        peers.environment("django_tasks", BENCH_DATABASE=_sqlite(database)),
        migrate=[python, "-m", "django", "migrate", "--verbosity=0"],
        worker=[python, "-m", "django", "db_worker", "--no-startup-delay", "--interval=0.05"],
        publisher=[python, "-m", "benchmarks.peer_sites.with_django_tasks.tasks"],
        ledger="SELECT count(*) FROM django_tasks_database_dbtaskresult WHERE status = 'SUCCESSFUL'",
    )
    return _end_to_end(stage, site, count, untimed_each=1)


@measurement("embedded", "Huey, SQLite storage", full=1_500, quick=300)
def huey(stage: Stage, count: int) -> Sample:
    """Its queue and its results are in a file beside Django's; no message is recorded."""
    return _huey(stage, "huey", count, "SELECT count(*) FROM kv", in_queue=True)


@measurement("embedded", "Huey, SQLite storage, every message recorded", full=1_500, quick=300)
def huey_recorded(stage: Stage, count: int) -> Sample:
    """The same with a row of each message sent, and one of each that arrived in the transaction of its effect."""
    sent, received = (f"SELECT count(*) FROM with_huey_recorded_{name}" for name in ("sent", "received"))
    return _huey(stage, "huey_recorded", count, f"SELECT min(({sent}), ({received}))", in_queue=False)


def _huey(stage: Stage, name: str, count: int, ledger: str, *, in_queue: bool) -> Sample:
    """`in_queue`: the ledger is in the queue's file, not in Django's."""
    python, database, queue = str(python_of("embedded")), _new_file(stage, "site.sqlite3"), _new_file(stage, "huey")
    site = Site(
        database,
        peers.environment(name, BENCH_DATABASE=_sqlite(database), BENCH_HUEY=str(queue)),
        migrate=[python, "-m", "django", "migrate", "--verbosity=0", "--run-syncdb"],
        worker=[python, "-m", "django", "run_huey", "--workers=1"],
        publisher=[python, "-m", f"benchmarks.peer_sites.with_{name}.tasks"],
        ledger=ledger,
        records=queue if in_queue else None,
    )
    return _end_to_end(stage, site, count, untimed_each=1)


def _end_to_end(stage: Stage, site: Site, count: int, *, untimed_each: int) -> Sample:
    """From the first to be published to the last effect. `untimed_each` go before those of each publisher."""
    stage.run(site.migrate, site.env)
    with closing(sqlite3.connect(site.database)) as connection:
        connection.executescript(tables.SQLITE)
    warm_ups = 1 + untimed_each
    total = count + warm_ups + untimed_each
    with stage.running(site.worker, site.env) as worker:
        _publish(stage, site, 1)
        stage.wait(warm_ups, lambda: _number(site, site.ledger), worker)
        began = _publish(stage, site, count)
        stage.wait(total, lambda: _number(site, site.ledger), worker)
    with closing(sqlite3.connect(site.database)) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT key), max(at) FROM bench_effect").fetchone()
    if found[:2] != (total, total):
        raise Broken(f"{found[0]} effects of {found[1]} messages, where {total} messages were to have one each")
    return Sample(count, found[2] - began)


def _publish(stage: Stage, site: Site, count: int) -> float:
    """When it began, in seconds of the epoch."""
    output = stage.run([*site.publisher, *(argument.format(count) for argument in site.last)], site.env)
    return float(json.loads(output.splitlines()[-1])["began"])


def _number(site: Site, statement: str) -> int:
    """What a query counts; 0 before its table is there."""
    with closing(sqlite3.connect(site.records or site.database, timeout=20)) as connection:
        try:
            return int(connection.execute(statement).fetchone()[0])
        except sqlite3.OperationalError:
            time.sleep(0.05)
            return 0


def _new_file(stage: Stage, name: str) -> Path:
    for old in stage.folder.glob(f"{name}*"):
        old.unlink()
    return stage.folder / name


def _sqlite(path: Path) -> str:
    """Django's settings for a peer's file: those of our site."""
    options = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
    }
    return json.dumps({"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options})
