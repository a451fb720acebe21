"""The database away, restarted, read-only or full: deliveries are held, nothing is spent, and one line says so."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.consuming.test_consumer import children_of
from tests.failures.journal import DATABASE, SECRET, Trouble, assert_told_once
from tests.failures.scene import HANDLERS, attempts, consume, effects, go, processed, send, started
from tests.services import Database
from tests.site import Site, SiteFactory
from tests.waiting import wait_until
from tools.postgresql import PostgreSQL

RELAY = Trouble("messaging.relay", r'Cannot use the database "default"', r'The database "default" can be used again')
FILL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON messaging_processedmessage EXECUTE FUNCTION full_disk();
"""


@pytest.fixture
def away(site: SiteFactory, own_postgres: PostgreSQL) -> Site:
    """A site on a PostgreSQL server of its own, with a password in the address."""
    dsn = own_postgres.dsn.replace("postgres@", f"postgres:{SECRET}@")
    return site(db="postgres", handlers=HANDLERS, server=Database(dsn))


@contextmanager
def administrator(server: PostgreSQL) -> Iterator[Callable[[str], object]]:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        yield connection.execute


def end_sessions(server: PostgreSQL, site: Site) -> None:
    with administrator(server) as run:
        run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(site)}'")


def name_of(site: Site) -> str:
    return site.database_url.rpartition("/")[2]


@pytest.mark.mode(22)
@pytest.mark.mode(23)
@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_the_database_ends_before_in_and_after_handlers_and_while_a_failure_is_recorded(
    away: Site, own_postgres: PostgreSQL, end: str
) -> None:
    running = consume(away, "--concurrency=5", "--no-relay")
    relay = away.start("relay")
    for name in ("during", "after", "fail"):
        send(away, "work", name, body=b'{"do": "%s"}' % name.encode())
    send(away, "long", "long", body=b'{"do": "after"}')
    started(away, "during", "after", "fail", "long")
    getattr(own_postgres, end)()
    send(away, "work", "before")
    go(away)
    running.wait_for_output("consumption pauses")
    running.wait_for_output("has run and waits to be recorded")
    relay.wait_for_output("messages wait in the outbox")
    own_postgres.start()
    running.wait_for_output("can be used again")
    processed(away, 5)
    assert effects(away) == (5, 5)
    assert away.sql("SELECT number, exception_message FROM messaging_attempt") == [(1, "on purpose")]
    assert (running.stop(), relay.stop()) == (0, 0)
    recorded = r"Message long of the queue long (has run and waits to be recorded: |is recorded now)"
    assert_told_once(running, DATABASE, besides=[recorded, "attempt 1 failed and will be repeated: .*on purpose"])
    assert_told_once(relay, RELAY)
    assert running.output.count("waits to be recorded") == running.output.count("is recorded now") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"CONN_MAX_AGE": None},
        pytest.param({"CONN_MAX_AGE": 0}, marks=pytest.mark.slow),
        pytest.param({"CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 5}, marks=pytest.mark.slow),
        pytest.param({"OPTIONS": {"pool": True}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_connection_that_was_ended_between_two_messages_never_surfaces(
    away: Site, own_postgres: PostgreSQL, settings: dict[str, Any]
) -> None:
    source = f"from tests.site_settings import *\nDATABASES['default'] |= {settings!r}\n"
    (away.folder / "changed.py").write_text(source)
    running = consume(away, "--concurrency=2", env={"DJANGO_SETTINGS_MODULE": "changed"})
    for number in range(1, 4):
        send(away, "work", f"work{number}")
        send(away, "long", f"long{number}")
        processed(away, 2 * number)
        end_sessions(own_postgres, away)
    send(away, "work.dead", "dead")
    wait_until(lambda: away.states() == {"processed": 6, "failed": 1}, what="the dead letter")
    assert effects(away) == (6, 6)
    assert away.value("SELECT SUM(attempts) FROM messaging_processedmessage WHERE state = 'processed'") == 6
    assert attempts(away) == 0
    assert running.stop() == 0
    assert_told_once(running, besides=["Message dead of the queue work failed"])


def test_a_failover_to_a_read_only_server_is_waited_for(away: Site, own_postgres: PostgreSQL) -> None:
    running = consume(away)
    send(away, "work", "first")
    processed(away, 1)
    with administrator(own_postgres) as run:
        run(f"ALTER DATABASE {name_of(away)} SET default_transaction_read_only = on")
    end_sessions(own_postgres, away)
    send(away, "work", "second")
    send(away, "long", "third")
    running.wait_for_output("consumption pauses")
    # Sessions keep the setting that they began with, as they would keep a server that was demoted.
    with administrator(own_postgres) as run:
        run(f"ALTER DATABASE {name_of(away)} SET default_transaction_read_only = off")
    running.wait_for_output("can be used again")
    processed(away, 3)
    assert (effects(away), attempts(away)) == ((3, 3), 0)
    assert running.stop() == 0
    assert_told_once(running, DATABASE)


def test_a_full_disk_is_waited_for(away: Site, own_postgres: PostgreSQL) -> None:
    running = consume(away)
    away.sql(FILL)
    send(away, "work", "first")
    send(away, "long", "second")
    running.wait_for_output("No space left on device")
    away.sql("DROP TRIGGER full_disk ON messaging_processedmessage")
    running.wait_for_output("can be used again")
    processed(away, 2)
    assert (effects(away), attempts(away)) == ((2, 2), 0)
    assert running.stop() == 0
    assert_told_once(running, DATABASE)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_a_file_that_cannot_grow_is_waited_for_on_sqlite(site: SiteFactory) -> None:
    made = site(handlers=HANDLERS)
    running = consume(made, "--no-relay")
    children = children_of(running.pid)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for pid in children:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16384, most))
    send(made, "work", *map(str, range(10)))
    running.wait_for_output("consumption pauses")
    for pid in children:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    running.wait_for_output("can be used again")
    processed(made, 10)
    assert (effects(made), attempts(made)) == ((10, 10), 0)
    assert running.stop() == 0
    assert_told_once(running, DATABASE)


@pytest.mark.slow
def test_notifications_are_heard_again_after_an_outage(site: SiteFactory, own_postgres: PostgreSQL) -> None:
    made = site(db="postgres", handlers=HANDLERS, server=Database(own_postgres.dsn), options={"POLL_INTERVAL": 600})
    running = consume(made)
    listening = "SELECT COUNT(*) FROM pg_stat_activity WHERE query = 'LISTEN messaging_outbox'"
    wait_until(lambda: made.value(listening) == 1, what="a listening relay")
    own_postgres.stop()
    own_postgres.start()
    wait_until(lambda: made.value(listening) == 1, what="a relay that listens again")
    made.shell("from messaging import publish; publish('work.a', {})")
    processed(made, 1)
    assert running.stop() == 0
