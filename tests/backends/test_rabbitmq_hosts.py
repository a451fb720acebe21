"""Several hosts in the URL: which one is used, and which one after it failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from messaging.backends.base import Topology
from messaging.backends.rabbitmq import RabbitMQ, parameters
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries
from tests.waiting import wait_until
from tools.proxy import Proxy

pytestmark = pytest.mark.broker


@pytest.fixture(autouse=True)
def _none_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "_failed", {})


@pytest.fixture
def ways(broker_url: str) -> Iterator[tuple[Proxy, Proxy]]:
    """Two ways to the broker, which look like two hosts."""
    url = urlsplit(broker_url)
    address = url.hostname or "localhost", url.port or 5672
    with Proxy(*address) as one, Proxy(*address) as other:
        yield one, other


@pytest.fixture
def backend(broker_url: str, ways: tuple[Proxy, Proxy]) -> RabbitMQ:
    url = urlsplit(broker_url)
    named = ",".join(f"127.0.0.1:{way.port}" for way in ways)
    return rabbitmq_backend(url._replace(netloc=f"{url.username}:{url.password}@{named}").geturl())


def test_the_first_host_is_used_while_it_is_well(backend: RabbitMQ, ways: tuple[Proxy, Proxy]) -> None:
    for _ in range(3):
        backend.declare(Topology())
    assert (ways[0].accepted, ways[1].accepted) == (3, 0)


def test_a_host_that_lost_a_connection_is_tried_after_the_others(backend: RabbitMQ, ways: tuple[Proxy, Proxy]) -> None:
    receiver = backend.receiver(Deliveries().on_delivery, Deliveries().on_change)
    receiver.open()
    ways[0].reset()
    wait_until(lambda: not receiver.is_open)
    receiver.open()
    backend.declare(Topology())  # other connections of the process know it too
    receiver.close()
    assert (ways[0].accepted, ways[1].accepted) == (1, 2)


def test_a_host_that_does_not_answer_is_tried_after_the_others(
    backend: RabbitMQ, ways: tuple[Proxy, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for_hosts = parameters.for_hosts

    def impatient(*args: Any) -> Any:
        found = for_hosts(*args)
        for host in found:
            if host.port == ways[0].port:
                host.stack_timeout = 1.0
        return found

    monkeypatch.setattr(parameters, "for_hosts", impatient)
    ways[0].blackhole()
    for _ in range(3):
        backend.depths(["any"])
    wait_until(lambda: (ways[0].accepted, ways[1].accepted) == (1, 3))


def test_a_failure_is_forgiven_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ("one", 1), ("other", 1)
    parameters.failed(*one)
    assert parameters.in_order([one, other]) == [other, one]
    parameters.failed(*other)
    assert parameters.in_order([one, other]) == [one, other], "both failed, this one earlier"
    monkeypatch.setattr(parameters, "FORGIVEN_AFTER", 0.0)
    assert parameters.in_order([one, other]) == [one, other]
    assert parameters.in_order([other, one]) == [other, one]
