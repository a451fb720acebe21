"""The messages of all measurements: JSON bodies of 1 KB, each with an id of its own."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pika

from benchmarks.pipeline import Pipeline, Publication

EXCHANGE = "messaging"
SINGLE, BATCH, TIMED = "bench_single", "bench_batch", "bench_timed"  # queues, and their routing keys
BODY_SIZE = 1024  # bytes
_FILLER = "x" * (BODY_SIZE - len(json.dumps({"key": str(uuid.uuid4()), "filler": ""})))


def payload() -> dict[str, Any]:
    """What is sent: a key, which its effect is recorded under, and filler."""
    return {"key": str(uuid.uuid4()), "filler": _FILLER}


def encoded() -> tuple[str, bytes]:
    """A key and the body that holds it."""
    content = payload()
    return content["key"], json.dumps(content).encode()


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
