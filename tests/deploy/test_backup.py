"""Both sides are lost, and restored as docs/how-to/back-up.md says: nothing is missing, and nothing has run twice."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.docs.blocks import find
from tests.services import Database, Services
from tests.site import Site, SiteFactory
from tests.waiting import wait_until
from tools.environment import ROOT
from tools.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.broker, pytest.mark.postgres, pytest.mark.slow]

HANDLERS = """
import os, pathlib
from messaging import handler
from tests.app.models import Effect

REPAIRED = pathlib.Path(os.environ["DATA_DIR"]) / "repaired"

@handler("billing", "orders.placed", max_attempts=9, backoff=0.1)
def bill(message):
    if message.payload == "odd" and not REPAIRED.exists():
        raise ValueError("not yet")
    Effect.objects.create(key=message.payload, value="billed")
"""
PUBLISH = "from messaging import publish\npublish('orders.placed', {!r})"
EFFECTS = "SELECT key, COUNT(*) FROM app_effect GROUP BY key ORDER BY key"
LONG_AGO = "UPDATE messaging_publishedmessage SET published_at = published_at - interval '20 minutes'"


@pytest.fixture
def nodes() -> Iterator[tuple[RabbitMQ, RabbitMQ]]:
    """The broker that is lost, and the one that takes its place."""
    services = Services()
    try:
        yield services.node(), services.node()
    finally:
        services.close()


def type_in(site: Site, kind: str, node: RabbitMQ, database: str = "", **more: str) -> None:
    """Type the commands of the page of that kind, with `rabbitmqctl` for a node, and another name for the database."""
    (block,) = find(kind)
    assert ("shop_restored" in block.text) == bool(database)
    programs = site.folder / "bin"
    programs.mkdir(exist_ok=True)
    ctl = programs / "rabbitmqctl"
    ctl.write_text(f'#!/bin/sh\nexec {shlex.join(node.ctl_command)} "$@"\n')
    ctl.chmod(0o755)
    text = block.text.replace("python manage.py", f"{sys.executable} {ROOT / 'manage.py'}")
    text = text.replace("2026-01-31T13:45", "2100-01-01").replace("shop_restored", database)
    of_node = {name: value for name, value in node.environment.items() if os.environ.get(name) != value}
    environment = site.env | of_node | more
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eux", "-c", text], cwd=site.folder, env=environment, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def consume(site: Site) -> None:
    site.manage("consume", "--burst", "--no-relay")


def relay(site: Site) -> None:
    site.manage("relay", "--burst")


def test_both_sides_are_restored_and_every_message_of_the_backup_has_one_effect(
    nodes: tuple[RabbitMQ, RabbitMQ], site: SiteFactory, postgres: Database
) -> None:
    lost, new = nodes
    shop = site("postgres", broker=lost.url, handlers=HANDLERS)
    shop.manage("topology")
    for payload in ("processed before", "odd"):
        shop.run(PUBLISH.format(payload))
    relay(shop)
    consume(shop)  # one is processed, the other one's retry waits in the outbox
    wait_until(lambda: shop.value("SELECT COUNT(*) FROM messaging_publishedmessage WHERE due_at <= now()"))
    shop.run(PUBLISH.format("in the queue"))
    relay(shop)  # both are in the queue now
    shop.sql(LONG_AGO)
    shop.run(PUBLISH.format("pending"))
    type_in(shop, "save", lost)
    assert shop.states() == {"processed": 1, "retrying": 1}
    assert shop.states("published") == {"published": 4, "pending": 1}

    (shop.folder / "repaired").touch()
    shop.run(PUBLISH.format("after the backup"))
    relay(shop)
    consume(shop)
    assert [key for key, _ in shop.sql(EFFECTS)] == sorted(
        ["after the backup", "in the queue", "odd", "pending", "processed before"]
    )
    lost.kill()  # and with it the queues; of the database only the dump is left

    name = f"restored_{uuid4().hex[:8]}"
    try:
        back = shop.beside(ROOT, DATABASE_URL=postgres.dsn_of(name), MESSAGING_URL=new.url)
        type_in(back, "restore", new, name, MAINTENANCE_URL=postgres.dsn, RESTORED_URL=back.database_url)
        assert dict(back.sql(EFFECTS)) == {"processed before": 1}
        it_sends_nothing_where_relays_are_forbidden(back, new)
        type_in(back, "send again", new)
        relay(back)
        consume(back)
        assert dict(back.sql(EFFECTS)) == {"processed before": 1, "odd": 1, "in the queue": 1, "pending": 1}
        assert back.states() == {"processed": 4}
        assert set(back.states("published")) == {"published"}
    finally:
        postgres.drop(name)


def it_sends_nothing_where_relays_are_forbidden(back: Site, new: RabbitMQ) -> None:
    """A copy for staging: what was pending stays where it is."""
    staging = {"MESSAGING_OPTIONS": '{"RELAY": false}'}
    refused = back.manage("relay", "--burst", check=False, env=staging)
    assert refused.returncode != 0
    assert "nothing is sent from here" in refused.stderr + refused.stdout
    back.manage("consume", "--burst", env=staging)
    assert back.states("published")["pending"] == 1
    said = new.ctl("list_queues", "name", "messages")
    assert "billing\t0" in said
