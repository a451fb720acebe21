"""Accounts that may do little, connections that carry little: what exists is used, what is in the way is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pika
import pytest
from pytest_django import Settings

from messaging import topology
from messaging.backends.base import ExchangeSpec, QueueSpec, Topology
from messaging.backends.rabbitmq import parameters
from messaging.exceptions import TopologyError, UnusableQueue
from messaging.handlers import Registry
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries, confirmed, message, send, unique
from tests.services import Broker

pytestmark = pytest.mark.broker


@dataclass(frozen=True)
class Account:
    """One that may read and write, and configure nothing."""

    url: str
    owner_url: str


@pytest.fixture
def account(rabbitmq: Broker, vhost_url: str) -> Iterator[Account]:
    name, vhost = f"u{uuid4().hex[:8]}", urlsplit(vhost_url).path[1:]
    rabbitmq.api("PUT", f"/api/users/{name}", {"password": "x", "tags": ""})
    rights = {"configure": "^$", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", f"/api/permissions/{quote(vhost, safe='')}/{name}", rights)
    parts = urlsplit(vhost_url)
    yield Account(parts._replace(netloc=f"{name}:x@{parts.hostname}:{parts.port}").geturl(), vhost_url)
    rabbitmq.api("DELETE", f"/api/users/{name}")


def known(**options: Any) -> Topology:
    exchange = unique("exchange")
    return Topology((ExchangeSpec(exchange),), (QueueSpec(unique("q"), bindings=((exchange, "k.#"),), **options),))


@pytest.mark.mode(59)
def test_what_exists_is_used_by_an_account_that_may_not_declare(account: Account) -> None:
    wanted = known()
    rabbitmq_backend(account.owner_url).declare(wanted)
    backend = rabbitmq_backend(account.url)
    found = backend.declare(wanted)
    assert {one.severity for one in found} == {"warning"}
    assert all("may not declare it" in one.problem for one in found)
    assert {one.severity for one in backend.compare(wanted)} == {"warning"}
    sender, deliveries = backend.sender(), Deliveries()
    sender.open()
    (queue,) = wanted.queues
    assert confirmed(send(sender, message(queue.name)))
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue.name, 1)
    deliveries.wait(1)
    receiver.close()
    sender.close()


def test_what_is_missing_cannot_be_declared_without_the_right(account: Account) -> None:
    with pytest.raises(TopologyError, match="Give the broker's user the permission"):
        rabbitmq_backend(account.url).declare(known())


def test_a_queue_that_is_not_ours_has_no_exchange_declared_either(account: Account, settings: Settings) -> None:
    name = unique("theirs")
    rabbitmq_backend(account.owner_url).declare(Topology(queues=(QueueSpec(name),)))
    options = {"URL": account.url, "EXCHANGE": unique("ours"), "QUEUES": {name: {"declare": False}}}
    settings.MESSAGING = {"default": options}
    wanted = topology.build("default", Registry())
    for found in (rabbitmq_backend(account.url).declare(wanted), rabbitmq_backend(account.owner_url).compare(wanted)):
        assert [(one.severity, "is not declared" in one.problem) for one in found] == [("warning", True)]
    rabbitmq_backend(account.owner_url).declare(Topology((ExchangeSpec(options["EXCHANGE"]),)))
    assert rabbitmq_backend(account.url).declare(wanted) == []


def test_with_a_queue_of_ours_beside_it_the_exchange_is_declared(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://x/", "QUEUES": {"theirs": {"declare": False}, "ours": {}}}}
    assert topology.build("default", Registry()).exchanges[0].declare


def test_too_few_channels_are_told(vhost_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for_hosts = parameters.for_hosts

    def narrow(*args: Any) -> list[pika.ConnectionParameters]:
        found = for_hosts(*args)
        for one in found:
            one.channel_max = 1  # what the broker's own limit comes to
        return found

    monkeypatch.setattr(parameters, "for_hosts", narrow)
    backend, deliveries = rabbitmq_backend(vhost_url), Deliveries()
    names = [unique("a"), unique("b")]
    backend.declare(Topology(queues=tuple(QueueSpec(name, dead_letter=False) for name in names)))
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(names[0], 1)
    with pytest.raises(UnusableQueue, match="RabbitMQ allows 1 channels on a connection"):
        receiver.consume(names[1], 1)
    receiver.close()
