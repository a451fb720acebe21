"""A stream as a queue is refused wherever it can be noticed: it would skip what comes while nobody consumes."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging.backends.base import QueueSpec, Topology
from messaging.backends.rabbitmq import RabbitMQ
from messaging.exceptions import TopologyError, UnusableQueue
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries, unique
from tests.waiting import wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def channel(broker_url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def stream(channel: BlockingChannel) -> Iterator[str]:
    name = unique("stream")
    channel.queue_declare(
        name, durable=True, arguments={"x-queue-type": "stream", "x-max-age": "1h", "x-max-length-bytes": 10**6}
    )
    yield name
    channel.queue_delete(name)


@pytest.mark.mode(54)
@pytest.mark.parametrize("declare", [True, False])
def test_a_stream_is_refused_before_anything_is_consumed(backend: RabbitMQ, stream: str, declare: bool) -> None:
    known = Topology(queues=(QueueSpec(stream, declare=declare, dead_letter=False),))
    assert [found.severity for found in backend.compare(known) if "stream:" in found.problem] == ["error"]
    with pytest.raises(TopologyError, match="it is a stream"):
        backend.declare(known)


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum"}, {"x-max-length": 5}, {"x-expires": 60_000}])
def test_other_queues_of_others_are_none(
    backend: RabbitMQ, channel: BlockingChannel, arguments: dict[str, object]
) -> None:
    name = unique("other")
    channel.queue_declare(name, durable=True, arguments=arguments)
    assert backend.declare(Topology(queues=(QueueSpec(name, declare=False, dead_letter=False),))) == []
    channel.queue_delete(name)


@pytest.mark.mode(54)
def test_a_stream_that_shows_itself_with_its_first_delivery_is_refused(
    broker_url: str, channel: BlockingChannel, stream: str
) -> None:
    deliveries = Deliveries()
    receiver = rabbitmq_backend(broker_url).receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(stream, 10)
    for body in (b"first", b"second"):
        channel.basic_publish("", stream, body)
    wait_until(lambda: stream not in receiver.consuming)
    with pytest.raises(UnusableQueue, match="it is a stream"):
        receiver.consume(stream, 10)
    assert not deliveries.all
    receiver.close()


def test_whoever_writes_a_streams_header_stops_nobody(broker_url: str, channel: BlockingChannel) -> None:
    name, deliveries = unique("forged"), Deliveries()
    channel.queue_declare(name, durable=True)
    receiver = rabbitmq_backend(broker_url).receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(name, 10)
    forged = pika.BasicProperties(headers={"x-stream-offset": 7})
    for body in (b"first", b"second"):
        channel.basic_publish("", name, body, forged)
    wait_until(lambda: name not in receiver.consuming)
    receiver.consume(name, 10)
    deliveries.wait(2)
    assert receiver.consuming == {name}
    receiver.close()
    channel.queue_delete(name)
