"""Consumers inside the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from messaging.consuming.consumer import Consumer, Plan
from tests.waiting import wait_until


@contextmanager
def consuming(*queues: str, concurrency: int = 1) -> Iterator[Consumer]:
    """A consumer of the alias "default" in threads, from when it runs until it has stopped."""
    consumer = Consumer(Plan("default", queues, concurrency=concurrency), "here")

    def run() -> None:
        try:
            consumer.run()
        finally:
            connections.close_all()  # this thread's; nobody else can

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: consumer._status().startswith("running"))
        yield consumer
    finally:
        consumer.stop()
        thread.join(60)
        connections.close_all()
