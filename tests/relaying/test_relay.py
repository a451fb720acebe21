"""The relay against a real broker: nothing is lost, nothing is skipped, and what cannot be sent is visible."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from urllib.parse import unquote

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from messaging import conf
from messaging.backends.base import Outgoing
from messaging.db.clock import Now
from messaging.exceptions import ConfigurationError
from messaging.message import Message
from messaging.models import ProcessedMessage, PublishedMessage, Worker
from messaging.publishing.publisher import publish, publish_many
from messaging.relaying.relay import Relay
from messaging.signals import message_failed, message_published, message_unpublishable
from tests.options import set_options
from tests.relays import Desk, burst, relaying, state_is, states
from tests.settings import TEST_DB
from tests.waiting import wait_until

pytestmark = [pytest.mark.broker, pytest.mark.django_db(transaction=True)]

Out = PublishedMessage.State
In = ProcessedMessage.State


def test_a_burst_sends_what_is_due_and_marks_it_published(desk: Desk) -> None:
    desk.queue("hello")
    row = publish("hello", "Hello World", queue="hello")
    later = publish("hello", "later", queue="hello", delay=3600)
    told: list[PublishedMessage] = []
    receive = lambda rows, **kwargs: told.extend(rows)  # noqa: E731
    message_published.connect(receive, weak=False)
    try:
        burst()
    finally:
        message_published.disconnect(receive)
    row.refresh_from_db()
    later.refresh_from_db()
    assert (row.state, row.attempts, row.lease_token, row.due_at) == (Out.PUBLISHED, 1, None, None)
    assert row.published_at is not None
    assert later.state == Out.PENDING
    assert [one.pk for one in told] == [row.pk]
    assert desk.bodies("hello") == [b"Hello World"]
    assert not Worker.objects.exists()


def test_a_receiver_that_raises_changes_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.queue("hello")
    publish("hello", "x", queue="hello")

    def receive(**kwargs: Any) -> None:
        raise RuntimeError("a receiver's own fault")

    message_published.connect(receive, weak=False)
    try:
        burst()
    finally:
        message_published.disconnect(receive)
    assert states() == {Out.PUBLISHED: 1}


def test_it_declares_the_known_topology_first(desk: Desk, settings: Settings) -> None:
    set_options(settings, QUEUES={"billing": {"type": "classic", "bindings": [("messaging", "orders.#")]}})
    publish("orders.placed", {"order": 17})
    burst()
    assert desk.bodies("billing") == [b'{"order":17}']


@pytest.mark.mode(8)
def test_unroutable_messages_end_failed_after_their_tries(desk: Desk, settings: Settings) -> None:
    set_options(settings, UNROUTABLE=[0.05, 0.05, 0.05])
    desk.queue("hello")
    lost = [publish("nobody.listens", 1), publish("x", 1, exchange="no-such-exchange"), publish("x", 1, queue="gone")]
    tolerated = publish("nobody.listens", 1, mandatory=False)
    fine = publish_many([Message("hello", str(n), queue="hello") for n in range(50)])
    told: list[PublishedMessage] = []
    receive = lambda row, **kwargs: told.append(row)  # noqa: E731
    message_unpublishable.connect(receive, weak=False)
    try:
        with relaying():
            wait_until(lambda: states() == {Out.PUBLISHED: 51, Out.FAILED: 3}, what="every row at its end")
    finally:
        message_unpublishable.disconnect(receive)
    for row in lost:
        row.refresh_from_db()
        assert row.state == Out.FAILED
        assert row.attempts == 4
        assert "Unroutable" in row.error
    assert "nobody.listens" in lost[0].error
    assert "no-such-exchange" in lost[1].error
    assert "gone" in lost[2].error
    tolerated.refresh_from_db()
    assert tolerated.state == Out.PUBLISHED
    assert {row.pk for row in told} == {row.pk for row in lost}
    assert set(desk.bodies("hello")) == {str(n).encode() for n in range(len(fine))}


@pytest.mark.mode(53)
def test_what_no_queue_takes_waits_for_one_and_says_so_from_the_first_return(desk: Desk) -> None:
    rows = PublishedMessage.objects
    lost = [publish("nobody.listens", 1), publish("x", 1, exchange="late"), publish("x", 1, queue="late")]
    with relaying():
        wait_until(lambda: rows.waiting_for_queue().count() == 3, what="each of them waiting for a queue")
    assert all(row.unrouted and row.waits_for_queue for row in rows.all())
    desk.queue("late")
    desk.channel.exchange_declare("late", "fanout", durable=True)
    for exchange in ("late", "messaging"):
        desk.channel.queue_bind("late", exchange, "#")
    call_command("republish_messages", "--state", "waiting", stdout=StringIO())
    assert not rows.waiting_for_queue().exists()
    with relaying():
        wait_until(lambda: states() == {Out.PUBLISHED: 3}, what="each of them published")
    assert len(desk.bodies("late")) == len(lost)


def test_what_is_published_while_thousands_fall_due_does_not_wait_for_them(desk: Desk) -> None:
    desk.queue("work")
    desk.queue("soon")
    due = datetime.now(UTC) - timedelta(minutes=1)
    rows, waiting = PublishedMessage.objects, 0
    with relaying():
        while waiting < 6000:  # a database that stands still lets it be published when most of them are sent
            publish_many([Message("work", "late", queue="work", at=due)] * 15_000)
            wait_until(rows.filter(state=Out.PUBLISHED).exists, what="the relay at work")
            row = publish("soon", "now", queue="soon")
            waiting = rows.pending().count()
        wait_until(lambda: not rows.pending().exists(), what="all of them published")
    row.refresh_from_db()
    assert rows.filter(published_at__gt=row.published_at).count() > 3000
    assert set(states()) == {Out.PUBLISHED}
    assert set(desk.bodies("soon")) == {b"now"}


def test_a_site_whose_relay_is_off_sends_nothing(desk: Desk, settings: Settings) -> None:
    desk.queue("hello")
    publish("hello", "x", queue="hello")
    set_options(settings, RELAY=False)
    for run in (burst, lambda: call_command("relay", "--burst")):
        with pytest.raises((ConfigurationError, CommandError), match='"RELAY"\\] is False: nothing is sent from here'):
            run()
    assert states() == {Out.PENDING: 1}
    assert desk.bodies("hello") == []


@pytest.mark.mode(53)
def test_an_unroutable_message_is_tried_for_six_hours() -> None:
    pauses = conf.get().unroutable
    assert pauses[:5] == (1, 5, 30, 120, 600)
    assert set(pauses[5:]) == {1800}
    assert 6 * 3600 <= sum(pauses) <= 6.5 * 3600


def test_a_round_that_cannot_be_sent_takes_its_incoming_message_along(desk: Desk, settings: Settings) -> None:
    set_options(settings, UNROUTABLE=[])
    received = ProcessedMessage.objects.create(
        state=In.RETRYING, queue="gone", round=2, message_id="a", key=uuid.uuid4(), digest=uuid.uuid4(), retry_at=Now()
    )
    row = publish("gone", 1, queue="gone", message_id="a")
    PublishedMessage.objects.filter(pk=row.pk).update(inbox=received, round=2)
    failed: list[ProcessedMessage] = []
    receive = lambda row, **kwargs: failed.append(row)  # noqa: E731
    message_failed.connect(receive, weak=False)
    try:
        burst()
    finally:
        message_failed.disconnect(receive)
    received.refresh_from_db()
    assert received.state == In.FAILED
    assert received.retry_at is None
    assert received.failed_at is not None
    assert "Unroutable" in received.error
    assert [one.pk for one in failed] == [received.pk]


@pytest.mark.mode(11)
def test_a_row_that_cannot_be_encoded_fails_alone(desk: Desk) -> None:
    desk.queue("hello")
    rows = publish_many([Message("hello", str(n), queue="hello") for n in range(5)])
    PublishedMessage.objects.filter(pk=rows[1].pk).update(wire=b"\x00\xff nonsense")
    PublishedMessage.objects.filter(pk=rows[2].pk).update(headers=["not", "a", "dict"])
    PublishedMessage.objects.filter(pk=rows[3].pk).update(body_encoding="base64", body="%%%")
    burst()
    ends = dict(PublishedMessage.objects.values_list("pk", "state"))
    assert ends[rows[1].pk] == ends[rows[2].pk] == Out.FAILED
    assert ends[rows[0].pk] == ends[rows[4].pk] == Out.PUBLISHED


@pytest.mark.mode(11)
def test_a_message_over_which_the_broker_closes_the_channel_fails_alone(desk: Desk) -> None:
    desk.queue("hello")
    rows = publish_many([Message("hello", str(n), queue="hello") for n in range(200)])
    bad = rows[77]
    wire = publish("hello", "bad", queue="hello", headers={"when": b"bytes"})
    PublishedMessage.objects.filter(pk=wire.pk).delete()
    from messaging.wire.envelope import Envelope
    from messaging.wire.properties import Properties

    broken = Envelope("", "hello", Properties.build(message_id="bad", expiration="never"), b"bad")
    PublishedMessage.objects.filter(pk=bad.pk).update(wire=broken.to_wire())
    burst()
    bad.refresh_from_db()
    assert bad.state == Out.FAILED
    assert bad.error
    assert states() == {Out.PUBLISHED: 199, Out.FAILED: 1}
    assert set(desk.bodies("hello")) == {str(n).encode() for n in range(200) if n != 77}


def test_large_messages_are_read_one_by_one_however_many_small_ones_came_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = desk.queue("sizes")
    publish_many([Message(queue, b"x", queue=queue) for _ in range(300)])
    relay = Relay("default", held_bytes=4 * 1024 * 1024)
    relay.run(threading.Event(), burst=True)
    publish_many([Message(queue, b"x" * 1024 * 1024, queue=queue) for _ in range(20)])
    peaks = []
    send = relay._uplink.send

    def note(messages: Sequence[Outgoing]) -> None:
        send(messages)
        bodies = [one.row.__dict__.get("body", "") for one in relay._under_way.values() if one is not None]
        peaks.append((relay._bytes, sum(map(len, bodies))))

    monkeypatch.setattr(relay._uplink, "send", note)
    relay.run(threading.Event(), burst=True)
    assert PublishedMessage.objects.filter(state="published").count() == 320
    assert max(total for total, _ in peaks) <= 4 * 1024 * 1024
    assert max(read for _, read in peaks) <= 2 * 1024 * 1024  # the one that is being sent
    assert relay._bytes == 0


@pytest.mark.mode(68)
def test_what_is_too_large_for_the_relay_s_memory_fails_and_says_so(desk: Desk) -> None:
    queue = desk.queue("sizes")
    publish(queue, b"x" * 3 * 1024 * 1024, queue=queue)
    small = publish(queue, "small", queue=queue)
    Relay("default", held_bytes=1024 * 1024).run(threading.Event(), burst=True)
    assert PublishedMessage.objects.get(state="published").pk == small.pk
    assert 'set MESSAGING["default"]["HELD_BYTES"] to at least' in PublishedMessage.objects.get(state="failed").error


@pytest.mark.mode(12)
def test_a_full_queue_makes_its_messages_wait_and_spends_nothing(desk: Desk) -> None:
    desk.queue("full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    rows = publish_many([Message("full", str(n), queue="full") for n in range(3)])
    with relaying():
        wait_until(lambda: states().get(Out.PUBLISHED) == 1, what="one row published")
        taken: list[bytes] = []

        def drained() -> bool:
            taken.extend(desk.bodies("full"))
            return len(taken) == 3

        wait_until(drained, what="all three in the queue")
        wait_until(lambda: states() == {Out.PUBLISHED: 3}, what="all rows published")
    for row in rows:
        row.refresh_from_db()
        assert row.attempts == 1
        assert row.error == ""


@pytest.mark.mode(15)
def test_relays_share_the_work_and_none_sends_twice(desk: Desk, settings: Settings) -> None:
    set_options(settings, LEASE=60)  # however busy the machine is
    desk.queue("work")
    publish_many([Message("work", str(n), queue="work") for n in range(2000)])
    with relaying(2):
        wait_until(lambda: states() == {Out.PUBLISHED: 2000}, what="every row published")
    assert sorted(map(int, desk.bodies("work"))) == list(range(2000))


def test_an_abandoned_lease_is_taken_over(desk: Desk) -> None:
    desk.queue("work")
    publish_many([Message("work", str(n), queue="work") for n in range(10)])
    assert len(PublishedMessage.objects.lease("default", "a relay that dies", 0.5, 10)) == 10
    with relaying():
        wait_until(lambda: states() == {Out.PUBLISHED: 10}, what="the dead relay's rows published")
    assert len(desk.bodies("work")) == 10


def test_a_lower_id_that_commits_later_is_sent_too(desk: Desk) -> None:
    desk.queue("work")
    first = publish("work", "first", queue="work")
    low = first.pk
    burst()
    first.refresh_from_db()
    PublishedMessage.objects.filter(pk=low).delete()
    publish("work", "second", queue="work")
    burst()
    late = PublishedMessage(id=low, queue="work", routing_key="work", message_id="late", body="late")
    late.save(force_insert=True)
    burst()
    assert desk.bodies("work") == [b"first", b"second", b"late"]


def test_an_unreachable_broker_costs_nothing_and_is_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://user:se-cret@127.0.0.1:1/"}}
    row = publish("work", 1, queue="work")
    with caplog.at_level("WARNING", logger="messaging.relay"), relaying() as relays:
        wait_until(lambda: relays[0]._uplink._failures >= 3, what="three tries to connect")
    row.refresh_from_db()
    assert (row.state, row.attempts, row.lease_token, row.error) == (Out.PENDING, 0, None, "")
    warnings = [record for record in caplog.records if record.name == "messaging.relay"]
    assert len(warnings) == 1
    assert "se-cret" not in caplog.text


def test_a_relay_goes_on_after_its_connection_is_cut(desk: Desk, rabbitmq: Any, vhost_url: str) -> None:
    desk.queue("work")
    with relaying():
        publish("work", "1", queue="work")
        wait_until(lambda: states() == {Out.PUBLISHED: 1})
        rabbitmq.ctl("close_all_connections", "--vhost", unquote(vhost_url.rpartition("/")[2]), "test")
        publish("work", "2", queue="work")
        wait_until(lambda: states() == {Out.PUBLISHED: 2}, what="the second one published")


def test_a_running_relay_reports_itself_and_signs_off(desk: Desk) -> None:
    with relaying() as relays:
        wait_until(Worker.objects.exists, what="the worker's row")
        worker = Worker.objects.get()
        assert (worker.kind, worker.name, worker.alias) == ("relay", relays[0].name, "default")
    assert not Worker.objects.exists()


@pytest.mark.skipif(TEST_DB != "postgres", reason="NOTIFY is PostgreSQL's")
def test_notify_wakes_a_relay_long_before_its_next_look(desk: Desk, settings: Settings) -> None:
    desk.queue("work")
    set_options(settings, POLL_INTERVAL=600)
    with relaying() as relays:
        wait_until(lambda: relays[0]._uplink._is_declared, what="a connected relay")
        # It notifies itself, so that it knows whether notifications arrive before anybody has published.
        wait_until(lambda: relays[0]._listeners["default"].has_heard, what="a notification heard")
        row = publish("work", "1", queue="work")
        wait_until(state_is(row, Out.PUBLISHED), what="the row published")
