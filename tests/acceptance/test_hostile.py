"""Strangers with a raw client, a real broker and a real consumer: all that arrives ends as a row, and work goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError

from tests.corpus import HUGE, TARGET, Hostile, corpus, huge
from tests.site import Site, SiteFactory
from tests.waiting import wait_until
from tools.log_lines import without_failures

HANDLERS = """
from messaging import handler, publish

@handler("hostile", "#", max_attempts=2, backoff=0.1)
def look(message):
    publish("after", 1, exchange="amq.fanout", mandatory=False)
    if message.round == 1:
        raise ValueError("not yet")
    message.payload
"""


class _Encoded(pika.BasicProperties):  # type: ignore[misc]
    """Properties that are sent as the bytes that they are."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def encode(self) -> list[bytes]:
        return [self._raw]


def send(url: str, messages: Iterable[Hostile]) -> list[Hostile]:
    """Send with confirms; returns what the broker took. It ends the channel or connection over what it refuses."""
    taken, channels = [], _channels(url)
    channel = next(channels)
    for hostile in messages:
        exchange, key = ("", TARGET) if hostile.straight else ("messaging", hostile.routing_key)
        raw: Any = key.encode("utf-8", "surrogateescape")
        try:
            channel.basic_publish(exchange, raw, hostile.body, _Encoded(hostile.properties), mandatory=True)
        except AMQPError:
            channel = next(channels)
        else:
            taken.append(hostile)
    channels.close()
    return taken


def _channels(url: str) -> Generator[Any, None, None]:
    while True:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            with contextlib.suppress(AMQPError):
                connection.close()


def wait_for_the_end(site: Site, count: int) -> None:
    """Wait until so many messages are recorded and each has ended."""

    def ended() -> bool:
        states = site.states()
        return sum(states.values()) == count and set(states) <= {"processed", "failed"}

    with contextlib.suppress(AssertionError):
        wait_until(ended, deadline=240)
    assert ended(), (count, site.states())


@pytest.mark.broker
@pytest.mark.parametrize("db", ["postgres", "sqlite"])
@pytest.mark.slow
def test_strangers_neither_stop_the_consumer_nor_lose_a_message(site: SiteFactory, db: str) -> None:
    shop = site(db, handlers=HANDLERS)
    consumer = shop.start("consume", "hostile", "--concurrency", "4")
    consumer.wait_for_output("Connected to")
    workers = "SELECT pid FROM messaging_worker WHERE kind = 'consume'"
    wait_until(lambda: shop.sql(workers))
    before = shop.sql(workers)
    wait_until(lambda: send(shop.broker_url, [huge()]), what="the queue")
    taken = send(shop.broker_url, corpus())
    assert len(taken) >= 300
    wait_for_the_end(shop, len(taken) + 1)
    assert shop.value("SELECT COUNT(*) FROM messaging_processedmessage WHERE state = 'failed' AND error = ''") == 0
    longest = shop.value("SELECT MAX(LENGTH(body)) FROM messaging_processedmessage WHERE body_encoding = 'base64'")
    assert longest >= HUGE * 4 // 3

    shop.manage("requeue_messages", "--queue", TARGET)
    wait_for_the_end(shop, len(taken) + 1)
    shop.shell('from messaging import publish; publish("normal", {"order": 17}, message_id="normal")')
    processed = "SELECT COUNT(*) FROM messaging_processedmessage WHERE message_id = 'normal' AND state = 'processed'"
    wait_until(lambda: shop.value(processed) == 1)
    assert shop.sql(workers) == before
    assert "Traceback" not in without_failures(consumer.output)
    assert "died" not in consumer.output
    assert consumer.stop() == 0
