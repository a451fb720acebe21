"""What publishes, as a process of its own: `python -m benchmarks.site.jobs NAME COUNT [QUEUE]`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from django.db import connection, transaction

from benchmarks.payloads import payload
from messaging import Message, publish, publish_many

TOGETHER = 500  # messages of one call of `publish_many()`, one transaction each
PACE = 0.01  # seconds between two messages where latency is measured


def one_by_one(count: int, queue: str) -> dict[str, Any]:
    """All in one transaction; one message is published before, as by the peers, so that connecting does not count."""
    publish(queue, payload())
    began = time.perf_counter()
    with transaction.atomic():
        for _ in range(count):
            publish(queue, payload())
    return {"seconds": time.perf_counter() - began}


def together(count: int, queue: str) -> dict[str, Any]:
    """500 with each call, each call a transaction."""
    connection.ensure_connection()
    began, epoch = time.perf_counter(), time.time()
    for start in range(0, count, TOGETHER):
        publish_many([Message(queue, payload()) for _ in range(min(TOGETHER, count - start))])
    return {"seconds": time.perf_counter() - began, "began": epoch}


def together_after_one(count: int, queue: str) -> dict[str, Any]:
    """As `together()`; one message is published before, as by the peers."""
    publish_many([Message(queue, payload())])
    return together(count, queue)


def each_committed(count: int, queue: str) -> dict[str, Any]:
    """One transaction for each message."""
    connection.ensure_connection()
    epoch = time.time()
    for _ in range(count):
        publish(queue, payload())
    return {"began": epoch}


def paced(count: int, queue: str) -> dict[str, Any]:
    """100 a second; says when each was committed."""
    connection.ensure_connection()
    committed: dict[str, float] = {}
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began + number * PACE - time.perf_counter()))
        content = payload()
        with transaction.atomic():
            publish(queue, content)
        committed[content["key"]] = time.time()
    return {"committed": committed}


JOBS: dict[str, Callable[[int, str], dict[str, Any]]] = {
    job.__name__: job for job in (one_by_one, together, together_after_one, each_committed, paced)
}


if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])))
