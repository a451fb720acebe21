"""How RabbitMQ is kept from sending more than may be held, without handing anything back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from messaging.backends.base import QueueSpec, Topology
from messaging.backends.rabbitmq import RabbitMQ
from messaging.backends.rabbitmq.receiver import RabbitReceiver
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import CountedDeliveries, confirmed, message, send, unique
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

MB = 1024 * 1024
HEARTBEAT = 32  # seconds; one is sent in half the time


@pytest.fixture
def backend(broker_url: str) -> RabbitMQ:
    return rabbitmq_backend(broker_url, heartbeat=HEARTBEAT)


@pytest.fixture
def queue(backend: RabbitMQ) -> Iterator[str]:
    topology = Topology(queues=(QueueSpec(unique("q"), arguments={"x-delivery-limit": 5}),))
    backend.declare(topology)
    yield topology.queues[0].name
    backend.purge_and_delete(topology)


def fill(backend: RabbitMQ, queue: str, count: int, size: int) -> None:
    sender = backend.sender()
    sender.open()
    assert confirmed(send(sender, *(message(queue, b"x" * size) for _ in range(count))))
    sender.close()


def receiving(backend: RabbitMQ, queue: str, deliveries: CountedDeliveries, prefetch: int) -> RabbitReceiver:
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change, deliveries.allowance)
    receiver.open()
    receiver.consume(queue, prefetch)
    receiver.widen({queue})
    return receiver


def ready(backend: RabbitMQ, queue: str) -> int | None:
    return backend.depths([queue])[0].ready


@pytest.mark.mode(67)
def test_the_connection_outlives_a_pause_of_reading(backend: RabbitMQ, queue: str) -> None:
    deliveries = CountedDeliveries(5 * MB)
    fill(backend, queue, 20, 2 * MB)
    receiver = receiving(backend, queue, deliveries, 50)
    first = deliveries.wait(2)
    assert receiver._connection is not None
    io = receiver._connection.io
    wait_until(lambda: io._is_paused)
    heartbeats = io._heartbeat_checker
    seen, sent = io.bytes_received, heartbeats._heartbeat_frames_sent
    wait_until(lambda: heartbeats._heartbeat_frames_sent > sent, what="one, or RabbitMQ would end the connection")
    assert io.bytes_received > seen, "or pika would end it"
    assert len(deliveries.all) == 2
    assert receiver.is_open
    assert all(one.is_live for one in first)
    for number in range(20):
        deliveries.finish(deliveries.wait(number + 1)[number])
    assert deliveries.most == 4 * MB
    assert deliveries.changes == 0
    receiver.close(60)
    assert ready(backend, queue) == 0


@pytest.mark.mode(67)
def test_the_prefetch_follows_the_sizes_seen_and_hands_nothing_back(backend: RabbitMQ, queue: str) -> None:
    fill(backend, queue, 30, MB)
    deliveries = CountedDeliveries(4 * MB)
    receiver = receiving(backend, queue, deliveries, 20)
    deliveries.wait(4)
    # Four that fit, and the first, which the consumer with a prefetch of one was given.
    wait_until(lambda: ready(backend, queue) == 25, what="no more than fit are asked for")
    for number in range(30):
        deliveries.finish(deliveries.wait(number + 1)[number])
    assert deliveries.most == 4 * MB
    fill(backend, queue, 200, 10)
    deliveries.wait(30 + 20)  # with small messages there is room for as many as were asked for
    for one in deliveries.all[30:]:
        one.requeue()
    receiver.close()


def test_a_consumer_is_cancelled_while_nothing_is_read(
    backend: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.backends.rabbitmq.receiver._ANSWER_TIMEOUT", 240.0)
    fill(backend, queue, 10, 2 * MB)
    deliveries = CountedDeliveries(3 * MB)
    receiver = receiving(backend, queue, deliveries, 10)
    deliveries.wait(1)
    begun = time.monotonic()
    receiver.cancel(queue)
    assert time.monotonic() - begun < 200
    assert receiver.consuming == frozenset()
    deliveries.finish(deliveries.all[0])
    for one in deliveries.all[1:]:
        one.requeue()
    receiver.close(60)
    wait_until(lambda: ready(backend, queue) == 9)
