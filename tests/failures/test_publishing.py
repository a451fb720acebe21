"""Modes 1 to 18 of docs/reliability.md: from the publisher's commit to the broker's confirm.

Real relays as processes; those whose pauses are shortened run in threads of the test's own process.
"""

from __future__ import annotations

import json
import math
import struct
import time
import urllib.request
from contextlib import suppress
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

from messaging.message import Message
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.operations import Operator, release, replay
from messaging.publishing.publisher import publish as publish_one
from messaging.publishing.publisher import publish_many
from messaging.relaying.relay import WINDOW
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.acceptance.clients import depth
from tests.failures.tools import (
    CLASSIC,
    HANDLERS,
    is_published,
    proxied,
    publish,
    publishing,
    ready_to_publish,
    take_all,
    wait_for_one_effect_each,
)
from tests.options import set_options
from tests.relays import Desk, burst, relaying, states
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker
in_process = pytest.mark.django_db(transaction=True)
Out = PublishedMessage.State


@pytest.fixture
def made(site: SiteFactory, any_db: str) -> Site:
    """A site on each database, its queues declared."""
    made = site(any_db, handlers=HANDLERS, queues=CLASSIC, options={"LEASE": 3, "HEARTBEAT": 2})
    made.manage("topology")
    return made


@pytest.fixture
def alone(site: SiteFactory, own_rabbitmq: RabbitMQ) -> Site:
    """A site on PostgreSQL, its queues declared on a broker that may be killed."""
    url = own_rabbitmq.add_vhost(f"alone-{time.monotonic_ns()}")
    alone = site("postgres", handlers=HANDLERS, queues=CLASSIC, options={"LEASE": 3}, broker=url)
    alone.manage("topology")
    return alone


@pytest.fixture
def quick(desk: Desk, settings: Settings) -> None:
    """Try an unroutable message again at once."""
    set_options(settings, UNROUTABLE=[0.05, 0.05, 0.05])


def relay(site: Site, **env: str) -> Running:
    running = site.start("relay", env=env)
    running.wait_for_output("serves")
    return running


@pytest.mark.mode(1)
@in_process
def test_what_is_rolled_back_is_never_sent(desk: Desk) -> None:
    desk.queue("work")
    with relaying():
        with suppress(RuntimeError), transaction.atomic():
            publish_one("work", "its transaction fails", queue="work")
            raise RuntimeError
        with transaction.atomic():
            publish_one("work", "kept", queue="work")
            with suppress(RuntimeError), transaction.atomic():
                publish_one("work", "its savepoint fails", queue="work")
                raise RuntimeError
        with transaction.atomic():
            publish_one("work", "is rolled back in silence", queue="work")
            transaction.set_rollback(True)
        publish_one("work", "last", queue="work")
        wait_until(lambda: states() == {Out.PUBLISHED: 2}, what="the others published")
    assert sorted(desk.bodies("work")) == [b"kept", b"last"]


@pytest.mark.mode(4)
@pytest.mark.slow
def test_a_message_whose_confirm_is_lost_is_sent_again_and_handled_once(made: Site) -> None:
    with proxied(made) as (proxy, env):
        running = relay(made, **env)
        publish(made, 1, 1)
        wait_until(lambda: is_published(made, 1), what="a connected relay")
        publish_more = ready_to_publish(made, 2, 20)
        proxy.silent_downstream = True
        publish_more()
        wait_until(lambda: depth(made.broker_url, "work") >= 20, what="the messages at the broker")
        assert made.states("published") == {"published": 1, "pending": 19}
        running.wait_for_output("was lost")
        proxy.heal()
        wait_until(lambda: is_published(made, 20), what="the second sending confirmed")
    wait_until(lambda: depth(made.broker_url, "work") >= 39, what="both copies")
    made.manage("consume", "--burst", "--no-relay")
    wait_for_one_effect_each(made, 20)


@pytest.mark.mode(5)
def test_a_connection_reset_in_the_middle_of_a_batch_leaves_the_unconfirmed_pending(made: Site) -> None:
    with proxied(made) as (proxy, env):
        running = relay(made, **env)
        publish(made, 1, 10)
        wait_until(lambda: is_published(made, 10), what="a connected relay")
        publish_more = ready_to_publish(made, 11, 2000)
        proxy.silent_downstream = True
        publish_more()
        wait_until(lambda: depth(made.broker_url, "work") > 10, what="a part of the batch at the broker")
        proxy.refuses = True
        proxy.reset()
        running.wait_for_output("was lost")
        assert made.states("published") == {"published": 10, "pending": 1990}
        assert made.value("SELECT COUNT(*) FROM messaging_publishedmessage WHERE error <> ''") == 0
        proxy.heal()
        wait_until(lambda: is_published(made, 2000), what="every row published")
    assert {int(body) for body in take_all(made.broker_url, "work", 2000)} == set(range(1, 2001))


@pytest.mark.mode(6)
@pytest.mark.chaos
@pytest.mark.slow
def test_a_broker_that_is_killed_under_load_has_all_that_it_confirmed(alone: Site, own_rabbitmq: RabbitMQ) -> None:
    running = relay(alone)
    stop_publishing = publishing(alone, "work.x", "plain.x")
    wait_until(lambda: alone.states("published").get("published", 0) > 300, what="some confirmed", interval=0.01)
    own_rabbitmq.kill()
    running.wait_for_output("was lost")
    count = stop_publishing()
    assert set(alone.states("published")) == {"published", "pending"}
    own_rabbitmq.start()
    wait_until(lambda: is_published(alone, count), what="the rest published")
    assert running.stop() == 0
    consumer = alone.start("consume", "--no-relay")
    wait_for_one_effect_each(alone, count)
    assert consumer.stop() == 0


@pytest.mark.mode(8)
@in_process
def test_a_message_whose_binding_was_removed_is_not_called_published(desk: Desk, quick: None) -> None:
    desk.channel.exchange_declare("theirs", "topic", durable=True)
    desk.channel.queue_bind(desk.queue("work"), "theirs", "orders.#")
    first = publish_one("orders.placed", "first", exchange="theirs")
    burst()
    desk.channel.queue_unbind("work", "theirs", "orders.#")
    second = publish_one("orders.placed", "second", exchange="theirs")
    with relaying():
        wait_until(lambda: states() == {Out.PUBLISHED: 1, Out.FAILED: 1}, what="both at their end")
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, second.state) == (Out.PUBLISHED, Out.FAILED)
    assert "Unroutable" in second.error
    assert second.published_at is None
    assert desk.bodies("work") == [b"first"]


@pytest.mark.mode(9)
@in_process
def test_an_exchange_deleted_in_the_middle_of_a_batch_costs_its_own_messages_only(desk: Desk, quick: None) -> None:
    desk.channel.exchange_declare("doomed", "fanout", durable=True)
    desk.channel.queue_bind(desk.queue("doomed"), "doomed", "")
    desk.queue("work")
    both: tuple[dict[str, Any], ...] = ({"queue": "work"}, {"exchange": "doomed"})
    publish_many([Message("work", str(n), **both[n % 2]) for n in range(1000)])
    with relaying():
        wait_until(lambda: states().get(Out.PUBLISHED, 0) > 0, interval=0.005, what="the first confirms")
        desk.channel.exchange_delete("doomed")
        publish_many([Message("work", str(n), **both[n % 2]) for n in range(1000, 1100)])
        wait_until(lambda: Out.PENDING not in states(), what="every row at its end")
    ends = dict.fromkeys(range(1100), "")
    ends.update((int(row.body), row.state) for row in PublishedMessage.objects.all())
    assert {ends[n] for n in range(0, 1100, 2)} == {Out.PUBLISHED}
    assert {ends[n] for n in range(1001, 1100, 2)} == {Out.FAILED}
    assert set(ends.values()) == {Out.PUBLISHED, Out.FAILED}
    assert {int(body) for body in desk.bodies("work")} == set(range(0, 1100, 2))
    there = {int(body) for body in desk.bodies("doomed")}
    assert {n for n in range(1, 1100, 2) if ends[n] == Out.PUBLISHED} <= there


@pytest.mark.mode(10)
def test_a_body_over_the_brokers_limit_fails_alone(alone: Site, own_rabbitmq: RabbitMQ) -> None:
    # RabbitMQ 4 reads the setting once, as it starts, and asks a term from then on.
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    own_rabbitmq.ctl("eval", limit.format(100_000))
    try:
        alone.shell(
            "from messaging import Message, publish_many\n"
            "publish_many([Message('work.x', 'x' * (100_001 if n == 20 else 100)) for n in range(50)])"
        )
        alone.manage("relay", "--burst")
    finally:
        own_rabbitmq.ctl("eval", limit.format(16 * 1024 * 1024))
    [(length, error)] = alone.sql("SELECT length(body), error FROM messaging_publishedmessage WHERE state = 'failed'")
    assert length == 100_001
    assert "size" in error
    assert alone.states("published") == {"published": 49, "failed": 1}
    take_all(alone.broker_url, "work", 49)


@pytest.mark.mode(11)
@in_process
def test_a_header_over_which_the_broker_closes_the_connection_fails_alone(desk: Desk) -> None:
    desk.queue("work")
    rows = publish_many([Message("work", str(n), queue="work") for n in range(300)])
    nan = Properties(message_id="nan", raw_headers=b"\x01nd" + struct.pack(">d", math.nan))
    bad = PublishedMessage.objects.filter(pk=rows[111].pk)
    bad.update(wire=Envelope("", "work", nan, b"nan").to_wire())
    burst()
    assert bad.get().state == Out.FAILED
    assert "541" in bad.get().error
    assert states() == {Out.PUBLISHED: 299, Out.FAILED: 1}
    assert {int(body) for body in desk.bodies("work")} == set(range(300)) - {111}


@pytest.mark.mode(13)
@in_process
def test_what_a_deleted_queue_took_along_can_be_replayed(desk: Desk, quick: None) -> None:
    desk.queue("fleeting")
    count, there, dropped = 0, set[int](), set[int]()
    with relaying():
        while not dropped:  # a broker that stands still has confirmed nothing that it dropped
            publish_many([Message("work", str(n), queue="fleeting") for n in range(count, count + 800)])
            count += 800
            while Out.PENDING in states():
                desk.channel.queue_delete("fleeting")
                desk.queue("fleeting")
            there.update(map(int, desk.bodies("fleeting")))
            dropped = {int(row.body) for row in PublishedMessage.objects.filter(state=Out.PUBLISHED)} - there
    assert set(states()) <= {Out.PUBLISHED, Out.FAILED}
    assert not ProcessedMessage.objects.exists()
    operator = Operator(name="tests")
    replay(PublishedMessage.objects.filter(state=Out.PUBLISHED), operator)
    release(PublishedMessage.objects.filter(state=Out.FAILED), operator)
    burst()
    assert states() == {Out.PUBLISHED: count}
    assert {int(body) for body in desk.bodies("fleeting")} == set(range(count))


@pytest.mark.mode(14)
@pytest.mark.slow
def test_during_a_memory_alarm_nothing_hangs_and_it_resumes(alone: Site, own_rabbitmq: RabbitMQ) -> None:
    first = relay(alone)
    publish(alone, 1, 1)
    wait_until(lambda: is_published(alone, 1), what="a connected relay")
    own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        publish(alone, 2, 2)
        first.wait_for_output("takes no messages for now")
        publish(alone, 3, 4000)
        held = "SELECT COUNT(*) FROM messaging_publishedmessage WHERE lease_token IS NOT NULL"
        assert alone.value(held) <= WINDOW
        assert first.stop() == 0
        assert alone.states("published") == {"published": 1, "pending": 3999}
        second = relay(alone)
        second.wait_for_output("takes no messages for now")
        assert alone.value(held) <= WINDOW
    finally:
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    wait_until(lambda: is_published(alone, 4000), what="every row published")
    assert second.stop() == 0
    assert {int(body) for body in take_all(alone.broker_url, "work", 4000)} == set(range(1, 4001))
    for told in (first.output, second.output):
        assert told.count("takes no messages for now") == 1
        assert "Traceback" not in told


@pytest.mark.mode(15)
@pytest.mark.slow
def test_two_relays_skip_no_row_and_send_none_twice(made: Site) -> None:
    made.env["MESSAGING_OPTIONS"] = json.dumps({"LEASE": 60})  # what lapses may be sent twice
    both = [relay(made), relay(made)]
    publish(made, 1, 10_000)
    wait_until(lambda: is_published(made, 10_000), what="every row published")
    assert [running.stop() for running in both] == [0, 0]
    assert sorted(map(int, take_all(made.broker_url, "work", 10_000))) == list(range(1, 10_001))


@pytest.mark.mode(16)
@pytest.mark.postgres
def test_a_lower_id_that_is_committed_after_a_higher_one_is_sent_too(site: SiteFactory) -> None:
    made = site("postgres", handlers=HANDLERS)
    running = relay(made)
    slow = made.start(
        "shell",
        "-c",
        "import os, time; from django.db import transaction; from messaging import publish\n"
        "with transaction.atomic():\n"
        "    print('written', publish('work.x', '1').pk, flush=True)\n"
        "    while not os.path.exists(os.environ['DATA_DIR'] + '/go'): time.sleep(0.02)\n",
    )
    low = int(slow.wait_for_output(r"written (\d+)")[1])
    publish(made, 2, 2)
    wait_until(lambda: is_published(made, 1), what="the higher one published")
    assert made.value("SELECT id FROM messaging_publishedmessage") > low
    (made.folder / "go").touch()
    assert slow.wait() == 0
    wait_until(lambda: is_published(made, 2), what="the lower one published")
    assert running.stop() == 0
    assert sorted(take_all(made.broker_url, "work", 2)) == [b"1", b"2"]


@pytest.mark.mode(17)
def test_a_web_request_succeeds_while_the_broker_is_down(made: Site) -> None:
    with proxied(made) as (proxy, env):
        proxy.refuses = True
        url, made.env["MESSAGING_URL"] = made.broker_url, env["MESSAGING_URL"]
        server = made.serve()
        for number in (1, 2, 3):
            with urllib.request.urlopen(f"{server}/order/?number={number}", timeout=60) as answer:
                assert (answer.status, answer.read()) == (200, b"placed")
        assert proxy.accepted == 0, "a request has asked for the broker"
    assert made.states("published") == {"pending": 3}
    assert made.value("SELECT COUNT(*) FROM app_effect WHERE key = 'order'") == 3
    made.env["MESSAGING_URL"] = url
    made.manage("consume", "--burst")
    assert made.states("published") == {"published": 3}
    assert made.states() == {"processed": 3}


@pytest.mark.mode(18)
def test_relay_and_consumer_use_the_next_host_when_the_first_is_down(site: SiteFactory) -> None:
    made = site("postgres", handlers=HANDLERS)
    server = made.broker_url.rpartition("@")[2]
    made.env["MESSAGING_URL"] = made.broker_url.replace(server, f"127.0.0.1:1,{server}")
    publish(made, 1, 10)
    made.manage("consume", "--burst")
    wait_for_one_effect_each(made, 10)
