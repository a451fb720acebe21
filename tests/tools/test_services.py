"""The services that the tests rely on keep their own promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.mariadb import MariaDatabase
from tests.services import Broker, Database
from tests.site import ROOT, SiteFactory
from tests.waiting import wait_until
from tools import rabbitmq as rabbitmq_tools
from tools.mariadb import MariaDB, connected
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ
from tools.services import is_listening

CHILD = """
import sys, tempfile
from pathlib import Path
from tools.janitor import Janitor
from tools.postgresql import PostgreSQL

janitor, folder = Janitor(), Path(tempfile.mkdtemp())
folder.chmod(0o755)
janitor.remove(folder)
server = PostgreSQL(folder / "postgresql", janitor)
server.start()
print(server.port, folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.broker
def test_a_test_process_has_a_virtual_host_of_its_own(rabbitmq: Broker, vhost_url: str) -> None:
    assert rabbitmq.vhost != "/"
    assert rabbitmq_tools.vhost_of(vhost_url) != rabbitmq.vhost
    assert rabbitmq.vhost in rabbitmq.ctl("list_vhosts")


@pytest.mark.slow
@pytest.mark.broker
def test_a_killed_node_comes_back_with_its_queues(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.api("PUT", "/api/queues/%2F/kept", {"durable": True})
    own_rabbitmq.ctl("eval", "catch mnesia:sync_log().")  # its log is written up to two seconds late
    own_rabbitmq.kill()
    assert not is_listening(own_rabbitmq.port)
    own_rabbitmq.start()
    assert "kept" in own_rabbitmq.ctl("list_queues", "name")


@pytest.mark.postgres
def test_a_killed_server_comes_back_with_its_rows(own_postgres: PostgreSQL) -> None:
    with psycopg.connect(own_postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 17 AS number")
    own_postgres.kill()
    own_postgres.start()
    with psycopg.connect(own_postgres.dsn) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(17,)]


@pytest.mark.slow
def test_a_killed_mariadb_comes_back_with_its_rows(own_mariadb: MariaDB) -> None:
    url = MariaDatabase(own_mariadb.dsn).create("kept")
    with connected(url) as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 17 AS number")
    own_mariadb.kill()
    assert not is_listening(own_mariadb.port)
    own_mariadb.start()
    with connected(url) as cursor:
        cursor.execute("SELECT number FROM kept")
        assert cursor.fetchall() == ((17,),)
    MariaDatabase(own_mariadb.dsn).drop("kept")


@pytest.mark.postgres
def test_a_killed_process_leaves_no_service_behind(postgres: Database) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        port, folder = child.stdout.readline().decode().split()
        assert is_listening(int(port))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    wait_until(lambda: not is_listening(int(port)), what="the end of the service")
    wait_until(lambda: not Path(folder).exists(), what="the end of its folder")


@pytest.mark.broker
@pytest.mark.postgres
def test_a_site_runs_commands_and_shows_its_database(site: SiteFactory, any_db: str) -> None:
    one, other = site(db=any_db), site(db=any_db, handlers="GREETING = 'Hello World'\n")
    one.shell("from tests.app.models import Effect; Effect.objects.create(key='k', value='v')")
    assert one.sql("SELECT key, value FROM app_effect") == [("k", "v")]
    assert other.value("SELECT COUNT(*) FROM app_effect") == 0
    assert "Hello World" in other.shell("import extra.handlers as h; print(h.GREETING)")
    assert one.broker_url != other.broker_url
