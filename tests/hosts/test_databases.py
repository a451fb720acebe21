"""PostgreSQL as big sites have it: several of it, poolers before it, other drivers, schemas of one's own."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from tests.docs.blocks import find
from tests.hosts.host import HostFactory, settings_of, tell_the_story
from tests.services import Database, Services
from tools.pgbouncer import PgBouncer
from tools.postgresql import PostgreSQL

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

APART = """
OURS = {"shop", "messaging"}


class Router:
    def db_for_read(self, model, **hints):
        return "orders" if model._meta.app_label in OURS else "default"

    db_for_write = db_for_read

    def allow_relation(self, one, other, **hints):
        return None

    def allow_migrate(self, db, app_label, **hints):
        return (db == "orders") == (app_label in OURS)
"""
APART_SETTINGS = """
DATABASES["orders"], DATABASES["default"] = DATABASES["default"], DATABASES["people"]
del DATABASES["people"]
DATABASE_ROUTERS = ["router.Router"]
SHOP_DATABASE = "orders"
MESSAGING["default"]["DATABASES"] = ["orders"]
"""
(REPLICATED,) = [block for block in find("hosts") if block.title == "shop/routers.py"]
SEARCH = """
from django.contrib.auth import get_user_model
from django.test import Client
client = Client(SERVER_NAME="localhost")
client.force_login(get_user_model().objects.get())
page = client.get("/admin/messaging/processedmessage/", {"q": "order:13"}).content.decode()
assert page.count('class="action-select"') == 1, page
"""


@pytest.mark.broker
def test_two_databases(host: HostFactory, vhost_url: str) -> None:
    """The shop and the messages in one, users and sessions in the other."""
    site = host()
    site.write("router.py", APART)
    site.add(f"DATABASES['people'] = {settings_of(host.database())!r}\n")
    site.install(vhost_url, host.database())
    site.add(APART_SETTINGS)
    for name in ("default", "orders"):
        site.manage("migrate", "--verbosity=0", f"--database={name}")
    tell_the_story(site)


def test_a_replica_that_lags_behind_a_router(
    host: HostFactory, own_postgres: PostgreSQL, own_services: Services
) -> None:
    name = f"replicated_{uuid4().hex[:8]}"
    url = Database(own_postgres.dsn).create(name)
    site = host()
    site.install(database=url)
    site.write("shop/routers.py", REPLICATED.text)
    site.manage("migrate", "--verbosity=0")
    replica = own_services.standby(own_postgres)
    with psycopg.connect(replica.dsn, autocommit=True) as standby:
        standby.execute("SELECT pg_wal_replay_pause()")
    site.add(f"DATABASES['replica'] = {settings_of(replica.dsn_of(name))!r}\n")
    site.add('DATABASE_ROUTERS = ["shop.routers.ReplicaRouter"]\n')
    tell_the_story(site)
    with psycopg.connect(replica.dsn_of(name)) as standby:
        found = standby.execute("SELECT count(*) FROM messaging_processedmessage").fetchone()
    assert found == (0,), "it did lag"


def test_pgbouncer_in_transaction_mode(host: HostFactory, pgbouncer: Callable[[str], PgBouncer]) -> None:
    direct = host.database()
    site = host()
    site.install(database=pgbouncer(direct).url_of(direct))
    site.add('DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True\n')
    site.env["DATABASE_URL"] = direct
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)


@pytest.mark.broker
def test_psycopg_2(host: HostFactory, vhost_url: str) -> None:
    site = host("psycopg2")
    site.install(vhost_url, host.database())
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)
    driver = site.shell("from django.db.backends.postgresql import base; print(base.Database.__name__)")
    assert driver.split()[-1] == "psycopg2"


@pytest.mark.broker
def test_the_pool_of_psycopg(host: HostFactory, vhost_url: str) -> None:
    site = host()
    site.install(vhost_url, host.database(), {"pool": {"min_size": 1, "max_size": 4}})
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)


def test_a_search_path(host: HostFactory) -> None:
    url = host.database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA orders")
    site = host()
    site.install(database=url, options={"options": "-c search_path=orders"})
    site.env["DATABASE_URL"] = f"{url}?options=-csearch_path%3Dorders"
    site.add('MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True}\n')
    site.manage("migrate", "--verbosity=0")
    for table in ("messaging_processedmessage", "messaging_publishedmessage"):  # as the check W014 says
        site.sql(f"CREATE INDEX ON {table} USING gin (messaging_payload(body) jsonb_path_ops)")
    tell_the_story(site)
    site.shell(SEARCH)
    assert site.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
