"""The permissions of docs/how-to/broker-permissions.md, given to accounts of a broker: each does its work, no more."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from messaging.backends.base import ExchangeSpec, QueueSpec, Topology
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries, confirmed, message, send
from tests.docs.blocks import find
from tests.services import Broker

pytestmark = pytest.mark.broker

SITE = Topology((ExchangeSpec("messaging"),), (QueueSpec("billing", bindings=(("messaging", "orders.#"),)),))
FORBIDDEN = 403
PERSISTENT = pika.BasicProperties(delivery_mode=2)
Act = Callable[[BlockingChannel], Any]


@dataclass(frozen=True)
class Accounts:
    """The accounts of the page, in a virtual host of their own."""

    owner: str
    suffix: str

    def url(self, name: str) -> str:
        """The URL of one of them."""
        parts = urlsplit(self.owner)
        return parts._replace(netloc=f"{name}-{self.suffix}:x@{parts.hostname}:{parts.port}").geturl()

    def may(self, name: str, act: Act) -> bool:
        """Whether the broker lets one of them do that."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url(name)))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            act(channel)
        except ChannelClosedByBroker as error:
            if error.reply_code == FORBIDDEN:
                return False
            raise
        finally:
            connection.close()
        return True


@contextmanager
def accounts_at(rabbitmq: Broker, vhost_url: str) -> Iterator[Accounts]:
    """Make the accounts of the page, and delete them at the end."""
    made = Accounts(vhost_url, uuid4().hex[:8])
    commands = _commands("permissions")
    names = {name for _, name, _ in commands}
    for name in names:
        tags = "management" if name == "monitor" else ""
        rabbitmq.api("PUT", f"/api/users/{name}-{made.suffix}", {"password": "x", "tags": tags})
    _give(rabbitmq, made, commands, ("configure", "write", "read"))
    rabbitmq_backend(made.url("deploy")).declare(SITE)
    _give(rabbitmq, made, _commands("topic permissions"), ("exchange", "write", "read"))
    yield made
    for name in names:
        rabbitmq.api("DELETE", f"/api/users/{name}-{made.suffix}")


def _commands(kind: str) -> list[tuple[str, str, list[str]]]:
    """What a block of the page gives, to which account, and the values."""
    (block,) = find(kind)
    found = []
    for line in block.lines:
        _, command, _, _, name, *values = shlex.split(line)
        found.append((command.removeprefix("set_").replace("_", "-"), name, values))
    return found


def _give(
    rabbitmq: Broker, made: Accounts, commands: list[tuple[str, str, list[str]]], keys: tuple[str, str, str]
) -> None:
    vhost = quote(urlsplit(made.owner).path[1:], safe="")
    for what, name, values in commands:
        rabbitmq.api("PUT", f"/api/{what}/{vhost}/{name}-{made.suffix}", dict(zip(keys, values, strict=True)))


@pytest.fixture
def accounts(rabbitmq: Broker, vhost_url: str) -> Iterator[Accounts]:
    with accounts_at(rabbitmq, vhost_url) as made:
        yield made


@pytest.fixture(scope="module")
def refused(rabbitmq: Broker) -> Iterator[Accounts]:
    """Accounts for what the broker refuses, which leaves everything as it is; the site's queues and others' exist."""
    name = f"test-{uuid4().hex[:12]}"
    with accounts_at(rabbitmq, rabbitmq.add_vhost(name)) as made:
        rabbitmq_backend(made.owner).declare(Topology(queues=(QueueSpec("secrets", dead_letter=False),)))
        yield made
    rabbitmq.delete_vhost(name)


def publish(exchange: str, routing_key: str) -> Act:
    return lambda channel: channel.basic_publish(exchange, routing_key, b"{}", PERSISTENT)


def get(queue: str) -> Act:
    return lambda channel: channel.basic_get(queue, auto_ack=True)


def declare(queue: str) -> Act:
    return lambda channel: channel.queue_declare(queue, durable=True)


def bind(queue: str, exchange: str, routing_key: str) -> Act:
    return lambda channel: channel.queue_bind(queue, exchange, routing_key)


def delete(queue: str) -> Act:
    return lambda channel: channel.queue_delete(queue)


def test_each_account_can_do_its_work(accounts: Accounts, management_url: str) -> None:
    assert rabbitmq_backend(accounts.url("deploy")).declare(SITE) == []
    for name in ("relay", "consumer"):  # what exists is used, and told of
        found = rabbitmq_backend(accounts.url(name)).declare(SITE)
        assert {one.severity for one in found} == {"warning"}
    sender = rabbitmq_backend(accounts.url("relay")).sender()
    sender.open()
    outgoing = [message("billing"), message("billing", exchange="messaging", routing_key="orders.placed")]
    assert confirmed(send(sender, *outgoing, message("billing.dead")))
    sender.close()
    deliveries = Deliveries()
    receiver = rabbitmq_backend(accounts.url("consumer")).receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    for queue in ("billing", "billing.dead"):
        receiver.consume(queue, 10)
    for delivery in deliveries.wait(3):
        assert delivery.ack()
    receiver.close()
    parts = urlsplit(management_url)
    host = parts.netloc.rpartition("@")[2]
    own = parts._replace(netloc=f"monitor-{accounts.suffix}:x@{host}").geturl()
    watching = rabbitmq_backend(accounts.url("monitor"), management_url=own)
    assert [(depth.queue, depth.exists) for depth in watching.depths(["billing"])] == [("billing", True)]
    assert [one.severity for one in watching.compare(SITE) if one.severity == "error"] == []
    assert watching.unseen == ""


def test_partners_publish_and_consume_under_their_routing_keys(accounts: Accounts) -> None:
    assert accounts.may("partner-in", declare("partner.copies"))
    assert accounts.may("partner-in", bind("partner.copies", "messaging", "orders.#"))
    assert not accounts.may("partner-in", bind("partner.copies", "messaging", "secrets.#"))
    assert accounts.may("partner-out", publish("messaging", "orders.placed"))
    assert not accounts.may("partner-out", publish("messaging", "secrets.told"))
    assert accounts.may("partner-in", get("partner.copies"))


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("relay", get("billing")),
        ("relay", get("billing.dead")),
        ("relay", declare("other")),
        ("relay", delete("billing")),
        ("relay", bind("billing", "messaging", "#")),
        ("consumer", publish("messaging", "orders.placed")),
        ("consumer", publish("", "billing")),
        ("consumer", get("secrets")),
        ("consumer", delete("billing")),
        ("consumer", declare("other")),
        ("monitor", get("billing")),
        ("monitor", publish("messaging", "orders.placed")),
        ("monitor", publish("", "billing")),
        ("monitor", delete("billing")),
        ("partner-out", publish("", "billing")),
        ("partner-out", publish("", "billing.dead")),
        ("partner-out", get("billing")),
        ("partner-out", declare("other")),
        ("partner-in", publish("messaging", "orders.placed")),
        ("partner-in", publish("", "billing.dead")),
        ("partner-in", get("billing")),
        ("partner-in", bind("billing", "messaging", "orders.#")),
        ("partner-in", delete("billing")),
        ("deploy", get("billing.dead")),
        ("deploy", get("secrets")),
        ("deploy", publish("messaging", "orders.placed")),
    ],
)
def test_no_account_can_do_another_ones_work(refused: Accounts, name: str, act: Act) -> None:
    assert not refused.may(name, act)


def test_what_is_said_of_the_default_exchange_is_so(accounts: Accounts) -> None:
    """It leads into every queue of the virtual host, whoever has it."""
    rabbitmq_backend(accounts.owner).declare(Topology(queues=(QueueSpec("secrets", dead_letter=False),)))
    for name in ("deploy", "relay"):
        assert accounts.may(name, publish("", "secrets"))
