"""Messages for our queues, and getting them there."""

from __future__ import annotations

from collections.abc import Iterator

import pika

from benchmarks.payloads import encoded
from benchmarks.pipeline import Pipeline, Publication

EXCHANGE = "messaging"
SINGLE, BATCH, TIMED = "bench_single", "bench_batch", "bench_timed"  # queues, and their routing keys


def properties(message_id: str) -> pika.BasicProperties:
    """Persistent, with an id."""
    return pika.BasicProperties(content_type="application/json", delivery_mode=2, message_id=message_id)


def messages(count: int, queue: str) -> Iterator[Publication]:
    """`count` messages for one of the queues."""
    for _ in range(count):
        key, body = encoded()
        yield EXCHANGE, queue, body, properties(key)


def fill(url: str, queue: str, count: int) -> None:
    """Put messages into a queue, confirmed."""
    pipeline = Pipeline(url)
    try:
        pipeline.send(messages(count, queue))
    finally:
        pipeline.close()
