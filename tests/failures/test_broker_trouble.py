"""The broker killed, blocked, silent or restarted: work goes on by itself, and one line per role says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.backends.tools import crashed
from tests.failures.journal import ALARM, AWAY, CONSUMER, QUEUE, RELAY, SECRET, assert_told_once
from tests.failures.scene import HANDLERS, attempts, channel, consume, effects, processed, ready, send
from tests.services import Broker
from tests.site import Site, SiteFactory
from tests.waiting import wait_until
from tools.proxy import Proxy
from tools.rabbitmq import RabbitMQ, add_vhost, delete_vhost, vhost_of

# Two heartbeats of a second with their grace, and what a busy machine takes; with heartbeats of a minute it were 130 s.
NOTICED = 2 * (1 + 5) + 90
PUBLISH = "from messaging import publish\nfor number in range({}): publish('work.a', {{}})"
SLOW_COMMITS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON messaging_processedmessage
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
"""


@pytest.fixture
def own_vhost(own_rabbitmq: RabbitMQ) -> Iterator[str]:
    """A virtual host of the node that may be stopped, for a user whose password is not his name."""
    vhost, user = f"trouble-{uuid4().hex[:8]}", "operator"
    own_rabbitmq.api("PUT", f"/api/users/{user}", {"password": SECRET, "tags": ""})
    add_vhost(own_rabbitmq.management_url, vhost, user)
    add_vhost(own_rabbitmq.management_url, vhost, "guest")
    yield f"amqp://{user}:{SECRET}@127.0.0.1:{own_rabbitmq.port}/{vhost}"
    with contextlib.suppress(Exception):
        delete_vhost(own_rabbitmq.management_url, vhost)


def declare_limited(site: Site, queue: str, limit: int) -> None:
    """Somebody's queue, whose messages are dead-lettered once they were delivered more often than `limit` says."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": limit}
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.dead"}
    with channel(site) as broker:
        broker.queue_declare(queue, durable=True, arguments=arguments | dead)


def through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "stop_app"])
def test_a_broker_that_ends_and_comes_back_is_one_line_each_time(
    site: SiteFactory, own_rabbitmq: RabbitMQ, own_vhost: str, end: str
) -> None:
    made = site(db="postgres", handlers=HANDLERS, broker=own_vhost)
    running = consume(made)
    send(made, "work", "first")
    processed(made, 1)
    getattr(own_rabbitmq, end)()
    made.run(PUBLISH.format(20))
    running.wait_for_output("Trying again until it works")
    own_rabbitmq.start_app() if end == "stop_app" else own_rabbitmq.start()
    processed(made, 21)
    running.wait_for_output("Connected to .* again; consuming")
    assert (effects(made), attempts(made)) == ((21, 21), 0)
    assert running.stop() == 0
    assert_told_once(running, CONSUMER, RELAY)


@pytest.mark.slow
def test_during_an_alarm_publishing_stops_and_consuming_goes_on(
    site: SiteFactory, own_rabbitmq: RabbitMQ, own_vhost: str
) -> None:
    made = site(db="postgres", handlers=HANDLERS, broker=own_vhost)
    made.manage("topology")
    send(made, "work", *map(str, range(20)))
    own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        running = consume(made)
        processed(made, 20)
        made.run(PUBLISH.format(5000))
        running.wait_for_output("takes no messages for now; they wait in the outbox: low on memory")
        assert made.states("published").get("published", 0) == 0
        assert made.value("SELECT COUNT(*) FROM messaging_publishedmessage WHERE lease_token IS NOT NULL") <= 2000
    finally:
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    running.wait_for_output("takes messages again")
    wait_until(lambda: made.states("published") == {"published": 5000}, what="the outbox sent")
    assert running.stop() == 0
    assert_told_once(running, ALARM)


@pytest.mark.mode(45)
def test_a_silent_network_is_noticed_within_two_heartbeats(site: SiteFactory, vhost_url: str) -> None:
    with Proxy("127.0.0.1", urlsplit(vhost_url).port or 5672) as proxy:
        options = {"HEARTBEAT": 1}
        made = site(db="postgres", handlers=HANDLERS, broker=through(vhost_url, proxy), options=options)
        running = consume(made)
        send(made, "work", "first")
        processed(made, 1)
        proxy.blackhole()
        made.run(PUBLISH.format(20))
        running.wait_for_output("messages wait in the outbox", deadline=NOTICED)
        running.wait_for_output("Trying again until it works", deadline=NOTICED)
        proxy.heal()
        proxy.cut()
        processed(made, 21)
        running.wait_for_output("Connected to .* again; consuming")
        assert (effects(made), attempts(made)) == ((21, 21), 0)
        assert running.stop() == 0
        assert_told_once(running, CONSUMER, RELAY, may_recur=True)


@pytest.mark.mode(34)
@pytest.mark.parametrize("db", ["postgres", "sqlite"])
@pytest.mark.slow
def test_a_connection_cut_while_handlers_run_loses_and_doubles_nothing(
    site: SiteFactory, db: str, vhost_url: str
) -> None:
    with Proxy("127.0.0.1", urlsplit(vhost_url).port or 5672) as proxy:
        made = site(db=db, handlers=HANDLERS, broker=through(vhost_url, proxy))
        running = consume(made)
        for cut in range(3):
            made.run(PUBLISH.format(100))
            wait_until(lambda seen=100 * cut: sum(made.states().values()) > seen, what="handlers that run")
            proxy.reset()
        processed(made, 300)
        assert running.stop() == 0
        made.manage("consume", "--burst")  # what the last cut gave back may not have come again before the stop
        assert (effects(made), attempts(made)) == ((300, 300), 0)
        assert ready(made, "work") == ready(made, "work.dead") == 0


@pytest.mark.mode(35)
def test_a_deleted_queue_is_one_line_and_back_within_seconds(site: SiteFactory) -> None:
    made = site(db="postgres", handlers=HANDLERS)
    running = consume(made)
    with channel(made) as broker:
        broker.queue_delete("work")
    running.wait_for_output(r"Connected to .* again; consuming .*work")
    made.run(PUBLISH.format(3))
    processed(made, 3)
    assert running.stop() == 0
    assert_told_once(running, QUEUE)


@pytest.mark.mode(69)
def test_a_queue_that_is_down_holds_up_no_other(site: SiteFactory, rabbitmq: Broker, vhost_url: str) -> None:
    with Proxy("127.0.0.1", urlsplit(vhost_url).port or 5672) as proxy:
        queues = {"long": {"type": "classic"}}
        made = site(db="postgres", handlers=HANDLERS, queues=queues, broker=through(vhost_url, proxy))
        running = consume(made)
        with crashed(rabbitmq, "long", vhost_of(vhost_url)):
            proxy.cut()
            running.wait_for_output("Trying again until it works")
            made.run(PUBLISH.format(20))
            processed(made, 20)
        running.wait_for_output("queue long is back, and is consumed")
        made.run(PUBLISH.format(5).replace("work.a", "long.a"))
        processed(made, 25)
        assert running.stop() == 0
        assert_told_once(running, CONSUMER, RELAY, AWAY, besides=['queue "long": it exists and cannot be used now'])


@pytest.mark.mode(41)
@pytest.mark.slow
def test_rolling_restarts_dead_letter_nothing(site: SiteFactory) -> None:
    """Of our own queue, and of somebody's whose limit is RabbitMQ 4's, where every disconnect counts."""
    made = site(db="postgres", handlers=HANDLERS, options={"STOP_TIMEOUT": 5})
    declare_limited(made, "long", 20)
    made.manage("topology")
    for queue in ("work", "long"):
        send(made, queue, *(f"{queue}{number}" for number in range(500)), body=b'{"do": "slow"}')
    for restart in range(25):
        running = consume(made, "--concurrency=1")
        seen = sum(made.states().values())
        wait_until(lambda seen=seen: sum(made.states().values()) > seen, what="work to go on")
        running.kill() if restart % 2 else running.stop()
    assert sum(made.states().values()) < 1000, "the backlog was too short to prove anything"
    running = consume(made, "--processes=2")
    processed(made, 1000)
    assert ready(made, "work.dead") == ready(made, "long.dead") == 0
    assert made.value("SELECT COUNT(*) FROM app_effect WHERE value = 'done'") >= 1000
    assert made.value("SELECT COUNT(DISTINCT key) FROM app_effect") == 1000
    assert running.stop() == 0


@pytest.mark.mode(41)
@pytest.mark.slow
def test_processes_that_live_for_one_slow_commit_have_nothing_dead_lettered(site: SiteFactory) -> None:
    """So slow that by then the process has long been there, and could hold as many messages as it may."""
    known = {"long": {"declare": False, "arguments": {"x-delivery-limit": 6}}}
    made = site(db="postgres", handlers=HANDLERS, options={"QUEUES": known})
    declare_limited(made, "long", 6)
    made.manage("topology")
    made.sql(SLOW_COMMITS)
    send(made, "long", *(f"long{number}" for number in range(60)))
    for _ in range(9):
        running = consume(made, "--concurrency=1")
        seen = sum(made.states().values())
        wait_until(lambda seen=seen: sum(made.states().values()) > seen, what="a message to be recorded")
        running.kill()
    made.sql("DROP TRIGGER slow ON messaging_processedmessage")
    running = consume(made, "--processes=2")
    processed(made, 60)
    assert effects(made)[1] == 60
    assert running.stop() == 0
