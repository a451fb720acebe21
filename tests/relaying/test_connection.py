"""A relay's connection while a queue of the topology is down: what may be sent, and what is said of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
from django.db.models.functions import Now
from pytest_django import Settings

from messaging import conf
from messaging.backends.base import Difference, Topology
from messaging.backends.rabbitmq.connection import Connection
from messaging.exceptions import BrokerUnavailable, QueueUnavailable
from messaging.models import PublishedMessage
from messaging.models.light import LIGHT
from messaging.publishing.publisher import publish
from messaging.relaying.connection import DECLARE_PAUSE, Uplink
from messaging.relaying.leases import Leases
from tests.options import set_options
from tests.relays import Desk, relaying, states
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

Out = PublishedMessage.State
AWAY = QueueUnavailable("It may lack bindings.", ("billing",))


class Broker:
    """What it says to a declaration."""

    def __init__(self) -> None:
        self.answer: BrokerUnavailable | None = None
        self.asked = 0

    def declare(self, _topology: Topology) -> list[Difference]:
        self.asked += 1
        if self.answer is not None:
            raise self.answer
        return []


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def uplink(
    desk: Desk,
    settings: Settings,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Uplink]:
    caplog.set_level(logging.WARNING, "messaging.relay")
    bindings = [("messaging", "order.*"), ("others", "paid")]
    set_options(settings, EXCHANGE="messaging", QUEUES={"billing": {"bindings": bindings}, "mail": {}})
    # A broker that stands still for a while is not away.
    monkeypatch.setattr(Connection.open, "__defaults__", (120.0,))
    monkeypatch.setattr("messaging.backends.rabbitmq.sender.CONNECT_TIMEOUT", 120.0)
    uplink = Uplink(conf.get())
    monkeypatch.setattr(uplink._backend, "declare", broker.declare)
    yield uplink
    uplink.close()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """How the lines of the log begin."""
    own = [record for record in caplog.records if record.name == "messaging.relay"]
    return [" ".join(record.getMessage().split()[:2]) for record in own]


def try_again(uplink: Uplink) -> bool:
    uplink._next_open = uplink._next_look = uplink._next_declare = 0.0
    return uplink.connect()


@pytest.mark.parametrize("is_known", [True, False])
def test_what_a_queue_that_is_away_would_take_is_withheld_until_it_is_back(
    broker: Broker, uplink: Uplink, caplog: pytest.LogCaptureFixture, is_known: bool
) -> None:
    if is_known:
        assert uplink.connect()
        uplink._sender.close()
    taken = [("messaging", "order.paid"), ("others", "whatever its type says"), ("", "billing")]
    others = [("messaging", "mail.sent"), ("messaging", "order"), ("", "mail"), ("", "order.paid")]
    for _ in range(2):  # each time it is told
        broker.answer = AWAY
        uplink._sender.close()
        assert [try_again(uplink) for _ in range(3)] == [True] * 3
        assert [uplink.withholds(*one) for one in taken] == [uplink.status] * 3 == [str(AWAY)] * 3
        assert [uplink.withholds(*one) for one in others] == [""] * 4
        broker.answer = None
        assert [try_again(uplink) for _ in range(3)] == [True] * 3
        assert [uplink.withholds(*one) for one in (*taken, *others)] == [""] * 7
    assert told(caplog) == ["A queue", "All queues"] * 2


def test_a_declaration_that_fails_is_repeated_soon_but_not_at_once(broker: Broker, uplink: Uplink) -> None:
    broker.answer = AWAY
    assert uplink.connect()
    broker.answer = BrokerUnavailable("It takes no more connections.")
    uplink._next_look = uplink._next_declare = 0.0
    asked = broker.asked
    assert [uplink.connect() for _ in range(5)] == [True] * 5
    assert broker.asked == asked + 1
    uplink._sender.close()
    for _ in range(8):
        begun = time.monotonic()
        assert not try_again(uplink)
        assert begun < uplink._next_open, "not at once"
        assert uplink.pause <= DECLARE_PAUSE, "the broker is there, so it is asked soon"
    broker.answer = None
    assert try_again(uplink)


@pytest.mark.django_db(transaction=True)
def test_rows_that_are_withheld_wait_unread_and_spend_nothing(
    desk: Desk, settings: Settings, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.answer = AWAY
    read = []
    monkeypatch.setattr("messaging.backends.rabbitmq.RabbitMQ.declare", lambda _, topology: broker.declare(topology))
    monkeypatch.setattr(Leases, "read", lambda _, row: read.append(row))
    set_options(settings, QUEUES={"billing": {}})
    queue = desk.queue("work")
    waiting = [publish("billing", body, queue="billing") for body in (b"small", b"x" * (LIGHT + 1))]
    publish(queue, b"sent", queue=queue)
    with relaying():
        wait_until(lambda: states() == {Out.PUBLISHED: 1, Out.PENDING: 2}, what="the other is sent")
        told = PublishedMessage.objects.filter(error=str(AWAY), attempts=0, lease_token=None, due_at__gt=Now())
        wait_until(lambda: told.count() == len(waiting), what="they wait")
    assert read == []
