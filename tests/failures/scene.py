"""The handlers and the plain AMQP client of the trouble tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika

from messaging.wire.properties import Properties
from tests.backends.tools import confirmed, message
from tests.backends.tools import send as send_and_wait
from tests.site import Running, Site
from tests.waiting import DEADLINE, wait_until

HANDLERS = """
import os, time, uuid
from pathlib import Path
from messaging import handler
from tests.app.models import Effect

FOLDER = Path(os.environ["DATA_DIR"])

def wait_for_go(name):
    (FOLDER / f"started-{name}.{uuid.uuid4().hex}").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.02)

def effect(message):
    Effect.objects.create(key=message.id or uuid.uuid4().hex, value="done")

@handler("work", "work.#", backoff=0.1)
def work(message):
    do = message.payload.get("do")
    if do == "during":
        wait_for_go(do)
    effect(message)
    if do == "after":
        wait_for_go(do)
    if do == "fail" and message.attempt == 1:
        wait_for_go(do)
        raise ValueError("on purpose")
    if do == "slow":
        time.sleep(0.01)

@handler("long", "long.#", backoff=0.1, atomic=False)
def long(message):
    effect(message)
    if message.payload.get("do") == "after":
        wait_for_go("long")
"""


@contextlib.contextmanager
def channel(site: Site) -> Iterator[Any]:
    """A channel of a client that knows nothing of us, with confirms."""
    connection = pika.BlockingConnection(pika.URLParameters(site.broker_url))
    with contextlib.closing(connection):
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened


def send(site: Site, queue: str, *ids: str | None, body: bytes = b"{}", **properties: Any) -> None:
    """Messages straight to a queue, without any database."""
    with channel(site) as broker:
        for message_id in ids:
            found = {"content_type": "application/json", "delivery_mode": 2, "message_id": message_id} | properties
            broker.basic_publish("", queue, body, pika.BasicProperties(**found), mandatory=True)


def send_raw(site: Site, queue: str, raw_headers: bytes) -> None:
    """A message with headers that no client library would write."""
    from tests.backends.test_rabbitmq import rabbitmq_backend

    sender = rabbitmq_backend(site.broker_url).sender()
    sender.open()
    properties = Properties(content_type="application/json", delivery_mode=2, raw_headers=raw_headers)
    assert confirmed(send_and_wait(sender, message(queue, b"{}", raw=properties.encode())))
    sender.close()


def ready(site: Site, queue: str) -> int:
    """How many messages wait in a queue at the broker."""
    with channel(site) as broker:
        return int(broker.queue_declare(queue, passive=True).method.message_count)


def consume(site: Site, *arguments: str, **options: Any) -> Running:
    """Start a consumer and wait until it consumes."""
    running = site.start("consume", *arguments, **options)
    running.wait_for_output(r"Connected to")
    return running


def started(site: Site, *names: str) -> None:
    """Wait until handlers wait for `go()`."""
    for name in names:
        wait_until(lambda name=name: list(site.folder.glob(f"started-{name}.*")), what=f"{name} to start")


def go(site: Site) -> None:
    """Let the waiting handlers end."""
    (site.folder / "go").touch()


def processed(site: Site, count: int, deadline: float = DEADLINE) -> None:
    """Wait until so many messages were processed, and that nothing else is recorded."""
    try:
        wait_until(lambda: site.states() == {"processed": count}, deadline=deadline, what=f"{count} processed messages")
    except AssertionError as error:
        outbox = site.states("published")
        raise AssertionError(f"{error} The inbox has {site.states()}, the outbox {outbox}.") from None


def effects(site: Site) -> tuple[int, int]:
    """How many effects there are, and of how many messages."""
    return site.sql("SELECT COUNT(*), COUNT(DISTINCT key) FROM app_effect")[0]  # type: ignore[return-value]


def attempts(site: Site) -> int:
    """How many failed attempts were recorded."""
    return int(site.value("SELECT COUNT(*) FROM messaging_attempt"))
