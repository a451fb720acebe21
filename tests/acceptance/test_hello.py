"""The examples that the project began with: a plain pika script on one side, `manage.py consume` on the other."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.acceptance.clients import declare, depth, publish_hello
from tests.services import Broker
from tests.site import Running, Site, SiteFactory
from tests.waiting import DEADLINE, wait_until
from tools.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker

HANDLERS = """
import os, pathlib, time
from messaging import handler
from tests.app.models import Effect

FOLDER = pathlib.Path(os.environ["DATA_DIR"])

@handler("hello", max_attempts=3, backoff=0.1)
def hello(message):
    Effect.objects.create(key="hello", value=message.payload)
    if (FOLDER / "exit").exists():
        raise SystemExit(1)
    (FOLDER / "started").touch()
    while (FOLDER / "hold").exists():
        time.sleep(0.02)
"""

TYPES = ["quorum", pytest.param("classic", marks=pytest.mark.slow)]


@pytest.fixture(params=TYPES)
def hello(request: pytest.FixtureRequest, site: SiteFactory, any_db: str) -> Site:
    """A site with a handler of the queue `hello`, which exists: quorum or classic; SQLite or PostgreSQL."""
    made = site(any_db, handlers=HANDLERS, queues={"hello": {"type": request.param}})
    made.manage("topology")
    return made


def effects(site: Site) -> int:
    return int(site.value("SELECT COUNT(*) FROM app_effect"))


def wait_for_states(site: Site, *states: dict[str, int], deadline: float = DEADLINE) -> None:
    wait_until(lambda: site.states() in states, deadline=deadline, what=f"{states} in the inbox")


def listed(rabbitmq: Broker, site: Site) -> str:
    """What `rabbitmqctl list_queues name messages_ready messages_unacknowledged` says of the queue `hello`."""
    vhost = site.broker_url.rsplit("/", 1)[1]
    said = rabbitmq.ctl("-q", "list_queues", "-p", vhost, "name", "messages_ready", "messages_unacknowledged")
    return next((" ".join(line.split()) for line in said.splitlines() if line.split()[:1] == ["hello"]), "")


def test_a_plain_scripts_hello_world_is_processed(hello: Site) -> None:
    publish_hello(hello.broker_url)
    consumer = hello.start("consume", "hello")
    wait_for_states(hello, {"processed": 1})
    assert hello.sql("SELECT value FROM app_effect") == [("Hello World",)]
    assert consumer.stop() == 0
    assert depth(hello.broker_url, "hello") == 0


def test_killed_in_the_handler_the_message_goes_back_and_is_processed_once(hello: Site, rabbitmq: Broker) -> None:
    hold, started = hello.folder / "hold", hello.folder / "started"
    hold.touch()
    publish_hello(hello.broker_url)
    consumer = hello.start("consume", "hello")
    wait_until(started.exists, what="the handler's start")
    wait_until(lambda: listed(rabbitmq, hello) == "hello 0 1", what="one unacknowledged message")
    consumer.kill_process()  # the supervisor; its children must not outlive it
    wait_until(lambda: listed(rabbitmq, hello) == "hello 1 0", what="the message back in the queue")
    assert effects(hello) == 0
    hold.unlink()
    consumer = hello.start("consume", "hello")
    wait_for_states(hello, {"processed": 1})
    assert effects(hello) == 1
    assert consumer.stop() == 0


def test_a_handler_that_always_exits_ends_as_failed_without_a_loop(hello: Site) -> None:
    (hello.folder / "exit").touch()
    publish_hello(hello.broker_url)
    consumer = hello.start("consume", "hello")
    wait_for_states(hello, {"failed": 1})
    assert hello.sql("SELECT number, exception_type FROM messaging_attempt ORDER BY id") == [
        (1, "SystemExit"),
        (2, "SystemExit"),
        (3, "SystemExit"),
    ]
    assert effects(hello) == 0
    assert depth(hello.broker_url, "hello") == 0
    (hello.folder / "exit").unlink()
    hello.manage("requeue_messages", "--queue", "hello")
    wait_for_states(hello, {"processed": 1})
    assert effects(hello) == 1
    assert consumer.stop() == 0


@pytest.mark.parametrize("kind", TYPES)
def test_a_broker_restart_loses_neither_queue_nor_message(site: SiteFactory, own_rabbitmq: RabbitMQ, kind: str) -> None:
    made = site(
        "postgres",
        handlers=HANDLERS,
        queues={name: {"type": kind} for name in ("hello", "waiting")},
        broker=own_rabbitmq.add_vhost(f"restart-{uuid4().hex[:8]}"),
    )
    made.manage("topology")
    publish_hello(made.broker_url, "waiting")
    consumer = made.start("consume", "hello")
    publish_hello(made.broker_url)
    wait_for_states(made, {"processed": 1})
    own_rabbitmq.stop()
    own_rabbitmq.start()
    wait_until(lambda: depth(made.broker_url, "waiting") == 1, what="the message that waits")
    consumer.wait_for_output("Connected to .* again")  # by itself
    publish_hello(made.broker_url)
    wait_for_states(made, {"processed": 2})
    assert consumer.stop() == 0


def test_a_queue_that_is_not_durable_is_refused_with_a_way_out(site: SiteFactory) -> None:
    made = site(handlers=HANDLERS)
    declare(made.broker_url, "hello", durable=False)
    publish_hello(made.broker_url)
    consumer = made.start("consume", "hello")
    assert consumer.wait() not in (0, None)
    said = consumer.output
    assert 'queue "hello"' in said.lower()
    assert "durable" in said
    assert "delete" in said.lower(), "the way out"
    assert "Traceback" not in said
    assert "guest:guest" not in said
    assert depth(made.broker_url, "hello") == 1, "nothing was deleted"


def test_a_durable_classic_queue_declared_beforehand_is_used_as_it_is(site: SiteFactory, any_db: str) -> None:
    made = site(any_db, handlers=HANDLERS)  # our own declaration would make it a quorum queue
    publish_hello(made.broker_url, declare='channel.queue_declare("hello", durable=True)')
    consumer = made.start("consume", "hello")
    wait_for_states(made, {"processed": 1})
    assert said_once(consumer, "the queue is used as it is")
    assert consumer.stop() == 0


def said_once(process: Running, text: str) -> bool:
    return sum(text in line for line in process.output.splitlines()) == 1
