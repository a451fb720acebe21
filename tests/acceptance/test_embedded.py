"""The embedded broker between real processes: frozen, killed, without a database for a while."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable

import pytest

from tests.mariadb import MariaDatabase
from tests.processes import states_of_group
from tests.services import Database
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.mariadb import MariaDB
from tools.pgbouncer import PgBouncer
from tools.postgresql import PostgreSQL

HANDLERS = """
import os, pathlib, time
from messaging import handler
from tests.app.models import Effect

FOLDER = pathlib.Path(os.environ["DATA_DIR"])

@handler("work", "work.*", backoff=0.1)
def work(message):
    (FOLDER / "started").touch()
    while (FOLDER / "hold").exists():
        time.sleep(0.02)
    Effect.objects.create(key=message.id, value="done")
"""

# Whose consumer that is to hang stands still as soon as its handler runs, within the time that this one alone has.
FREEZING = "import signal\nfrom messaging.processing import execution\nexecution.MARGIN = 1.0\n" + HANDLERS.replace(
    "backoff=0.1", 'backoff=0.1, timeout=5 if (FOLDER / "hold").exists() else 600'
).replace("    while (", '    if (FOLDER / "hold").exists():\n        os.killpg(0, signal.SIGSTOP)\n    while (')

PUBLISH = "from messaging import publish\nfor number in range({}): publish('work.one', number)"


def start_held(site: Site, count: int) -> Running:
    """Start a consumer that takes `count` messages and hangs in the first one."""
    (site.folder / "hold").touch()
    consumer = site.start("consume", "--concurrency", "1")
    site.run(PUBLISH.format(count))
    wait_until((site.folder / "started").exists)
    held = "SELECT COUNT(*) FROM messaging_embeddedmessage WHERE holder_id IS NOT NULL"
    wait_until(lambda: site.value(held) == count, what="all messages to be taken")
    return consumer


def freeze(site: Site, consumer: Running) -> None:
    """Stop all its processes where they are, but not within a write to SQLite, which keeps everybody else from one."""
    path = site.database_url.removeprefix("sqlite:///") if site.database_url.startswith("sqlite") else ":memory:"
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        os.killpg(consumer.pid, signal.SIGSTOP)
        wait_until(lambda: all(state == "T" for state in states_of_group(consumer.pid)), what="them to stand still")


def effects(site: Site) -> tuple[int, int]:
    [(total, distinct)] = site.sql('SELECT COUNT(*), COUNT(DISTINCT "key") FROM app_effect')
    return total, distinct


def test_a_killed_consumers_messages_go_to_another_at_once(site: SiteFactory, every_db: str) -> None:
    made = site(every_db, handlers=HANDLERS, broker="database://", options={"LEASE": 600})
    start_held(made, 5).kill()
    (made.folder / "hold").unlink()
    consumer = made.start("consume")
    # Long before the lease of ten minutes ends: the process is known to be gone.
    wait_until(lambda: made.states() == {"processed": 5})
    assert effects(made) == (5, 5)
    assert consumer.stop() == 0


def test_a_frozen_consumers_messages_go_to_another_and_it_does_no_harm_when_it_wakes(
    site: SiteFactory, every_db: str
) -> None:
    made = site(every_db, handlers=HANDLERS, broker="database://", options={"LEASE": 1})
    frozen = start_held(made, 5)
    freeze(made, frozen)
    (made.folder / "hold").unlink()
    consumer = made.start("consume")
    # Where the frozen handler's transaction has its record already, the copy of that message waits for it.
    count = 5 if every_db == "sqlite" else 4
    wait_until(lambda: made.states() == {"processed": count})
    os.killpg(frozen.pid, signal.SIGCONT)
    wait_until(lambda: made.states() == {"processed": 5})
    frozen.wait_for_output("gave this consumer up")
    frozen.wait_for_output("Connected to .* again")
    wait_until(lambda: made.value("SELECT COUNT(*) FROM messaging_embeddedmessage") == 0)
    assert frozen.stop() == 0
    assert consumer.stop() == 0
    assert effects(made) == (5, 5)


@pytest.mark.postgres
@pytest.mark.parametrize("pooler", [False, pytest.param(True, marks=pytest.mark.slow, id="PgBouncer")])
def test_what_a_frozen_consumer_keeps_from_the_others_is_theirs_once_its_handlers_timeout_is_over(
    site: SiteFactory, request: pytest.FixtureRequest, pooler: bool
) -> None:
    made = site("postgres", handlers=FREEZING, broker="database://", options={"LEASE": 1})
    if pooler:
        pgbouncer: Callable[[str], PgBouncer] = request.getfixturevalue("pgbouncer")
        made.env["DATABASE_URL"] = pgbouncer(made.database_url).url_of(made.database_url)
    frozen = start_held(made, 1)
    wait_until(lambda: set(states_of_group(frozen.pid)) == {"T"}, what="it to stand still")
    (made.folder / "hold").unlink()
    consumer = made.start("consume")
    waits = "%waits for another process''s transaction: 1 message"
    status = f"SELECT COUNT(*) FROM messaging_worker WHERE status LIKE '{waits}'"
    wait_until(lambda: made.value(status) == 1 or made.states(), what="the other to say what it waits for")
    wait_until(lambda: made.states() == {"processed": 1})
    os.killpg(frozen.pid, signal.SIGCONT)
    frozen.wait_for_output("gave this consumer up|longer than its timeout")
    wait_until(lambda: made.value("SELECT COUNT(*) FROM messaging_embeddedmessage") == 0)
    assert frozen.stop() == 0
    assert consumer.stop() == 0
    assert made.states() == {"processed": 1}
    assert made.value("SELECT attempts FROM messaging_processedmessage") == 1
    assert effects(made) == (1, 1)


def test_a_stopping_consumer_gives_back_what_it_has_not_started(site: SiteFactory, every_db: str) -> None:
    options = {"LEASE": 600, "STOP_TIMEOUT": 120}
    made = site(every_db, handlers=HANDLERS, broker="database://", options=options)
    consumer = start_held(made, 5)
    consumer.signal(signal.SIGTERM)
    free = "SELECT COUNT(*) FROM messaging_embeddedmessage WHERE holder_id IS NULL"
    wait_until(lambda: made.value(free) == 4, what="four messages to go back")
    (made.folder / "hold").unlink()
    assert consumer.wait() == 0
    assert "ResourceWarning" not in consumer.output
    assert made.states() == {"processed": 1}
    assert made.value("SELECT COUNT(*) FROM messaging_embeddedconnection") == 0
    made.manage("consume", "--burst")
    assert made.states() == {"processed": 5}
    assert effects(made) == (5, 5)


@pytest.mark.postgres
def test_a_stopped_database_is_waited_for(site: SiteFactory, own_postgres: PostgreSQL) -> None:
    made = site("postgres", handlers=HANDLERS, broker="database://", server=Database(own_postgres.dsn))
    stop_for_a_while(made, own_postgres)


@pytest.mark.slow
def test_a_stopped_mariadb_is_waited_for(site: SiteFactory, own_mariadb: MariaDB) -> None:
    made = site("mariadb", handlers=HANDLERS, broker="database://", server=MariaDatabase(own_mariadb.dsn))
    stop_for_a_while(made, own_mariadb)


def stop_for_a_while(made: Site, server: PostgreSQL | MariaDB) -> None:
    consumer = start_held(made, 5)
    server.stop()
    (made.folder / "hold").unlink()
    consumer.wait_for_output("cannot be used .*: consumption pauses")
    server.start()
    wait_until(lambda: made.states() == {"processed": 5})
    assert effects(made) == (5, 5)
    assert consumer.stop() == 0
    assert "Traceback" not in consumer.output


@pytest.mark.postgres
def test_a_consumer_does_not_starve_where_the_site_uses_djangos_connection_pool(site: SiteFactory) -> None:
    made = site("postgres", handlers=HANDLERS, broker="database://")
    # A pool of four connections: fewer than a consumer has threads.
    settings = "from tests.site_settings import *\nDATABASES['default']['OPTIONS']['pool'] = True\n"
    (made.folder / "pooled.py").write_text(settings)
    consumer = made.start("consume", env={"DJANGO_SETTINGS_MODULE": "pooled"})
    consumer.wait_for_output("Connected")
    made.run(PUBLISH.format(5))
    wait_until(lambda: made.states() == {"processed": 5})
    assert consumer.stop() == 0
    assert "couldn't get a connection" not in consumer.output


def test_a_site_that_may_send_nothing_runs_handlers_and_keeps_what_they_publish(site: SiteFactory) -> None:
    made = site("sqlite", handlers=HANDLERS, broker="database://", options={"RELAY": False})
    made.run(PUBLISH.format(3))
    consumer = made.start("consume", "--burst")
    consumer.wait_for_output("RELAY is False: nothing is sent from here")
    assert consumer.wait() == 0
    assert made.states("published") == {"pending": 3}
    assert made.states() == {}
