"""What a sender does after a queue refused a message: the channel is replaced, and nothing on it is forgotten.

A quorum queue whose leader's node was killed is refused by RabbitMQ 3.10 on the same channel for ever, although another
node leads meanwhile; tests/acceptance/test_cluster.py shows that.
"""

from __future__ import annotations

import os
import resource

import pytest

from messaging.backends.base import Fate
from messaging.exceptions import BrokerUnavailable
from tests.acceptance.clients import declare
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import confirmed, fates, message, send
from tests.services import Broker
from tests.waiting import wait_until
from tools.rabbitmq import vhost_of

pytestmark = pytest.mark.broker


def declare_full(url: str) -> None:
    """The queue `full`, which takes one message, and `good`."""
    declare(url, "full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    declare(url, "good", durable=True)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker may take long to answer for what is under way on a channel that is to be replaced."""
    monkeypatch.setattr("messaging.backends.rabbitmq.sender._PATIENCE", 600.0)


def channels(rabbitmq: Broker, vhost: str) -> set[str]:
    """The channels in a virtual host."""
    lines = rabbitmq.ctl("list_channels", "pid", "vhost").splitlines()
    return {line.split()[0] for line in lines if line.split()[-1] == vhost}


@pytest.mark.usefixtures("_patient")
def test_after_a_refusal_the_next_messages_go_over_a_new_channel(rabbitmq: Broker, vhost_url: str) -> None:
    declare_full(vhost_url)
    sender = rabbitmq_backend(vhost_url).sender()
    sender.open()
    vhost = vhost_of(vhost_url)
    before = channels(rabbitmq, vhost)
    assert len(before) == 1
    outcomes = send(sender, message("full"), message("full"))
    assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.NACKED]
    wait_until(lambda: len(now := channels(rabbitmq, vhost)) == 1 and now != before, what="one channel, a new one")
    assert confirmed(send(sender, message("good")))
    sender.close()


@pytest.mark.usefixtures("_patient")
def test_no_outcome_is_lost_while_channels_are_replaced(vhost_url: str) -> None:
    declare_full(vhost_url)
    sender = rabbitmq_backend(vhost_url).sender()
    sender.open()
    send(sender, message("full"))
    for _ in range(40):
        batch = [message(queue) for queue in ("good", "full", "good") * 50]
        sender.send(batch[:75])
        sender.send(batch[75:])
        found = fates(sender, batch)
        assert confirmed(found[one.token] for one in batch if one.routing_key == "good")
        assert {found[one.token].fate for one in batch if one.routing_key == "full"} == {Fate.NACKED}
    sender.close()


def test_a_limit_of_connections_is_named_as_such(rabbitmq: Broker, vhost_url: str) -> None:
    rabbitmq.ctl("set_vhost_limits", "-p", vhost_of(vhost_url), '{"max-connections": 0}')
    with pytest.raises(BrokerUnavailable, match=r"connection limit \(0\) is reached; raise it"):
        rabbitmq_backend(vhost_url).sender().open()
    with pytest.raises(BrokerUnavailable, match="refused the virtual host"):
        rabbitmq_backend(rabbitmq.url_of("nowhere")).sender().open()


def test_a_process_that_may_open_no_more_files_says_so_and_goes_on(broker_url: str) -> None:
    sender = rabbitmq_backend(broker_url).sender()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(1)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(BrokerUnavailable, match="this process can open no connection: Too many open files"):
            sender.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    sender.open()
    sender.close()
