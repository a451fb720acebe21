"""Relays inside the test's own process, on a real broker, and a channel to look at that broker with."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pika
from django.db import connections

from messaging.models import PublishedMessage
from messaging.relaying.relay import Relay


class Desk:
    """A channel of the test's own, to look at the broker with."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = 0  # it has none while a test waits for something
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()

    def queue(self, name: str, **arguments: Any) -> str:
        """Declare a durable queue."""
        self.channel.queue_declare(name, durable=True, arguments=arguments)
        return name

    def bodies(self, queue: str) -> list[bytes]:
        """Take all that is in a queue."""
        found = []
        while (message := self.channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(message[2])
        return found

    def close(self) -> None:
        """Disconnect, unless a test had that cut."""
        with suppress(pika.exceptions.AMQPError):
            self.connection.close()


@contextmanager
def relaying(count: int = 1, **options: Any) -> Iterator[list[Relay]]:
    """Run relays in threads; they end with the block."""
    stop = threading.Event()
    relays = [Relay("default", name=f"relay-{uuid.uuid4()}", **options) for _ in range(count)]

    def run(relay: Relay) -> None:
        try:
            relay.run(stop)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(relay,)) for relay in relays]
    for thread in threads:
        thread.start()
    try:
        yield relays
    finally:
        stop.set()
        for relay in relays:
            relay.wake()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)


def burst() -> None:
    """Send what is due, then stop."""
    Relay("default").run(threading.Event(), burst=True)


def states() -> dict[str, int]:
    """How many outgoing messages are in each state."""
    found: dict[str, int] = {}
    for state in PublishedMessage.objects.values_list("state", flat=True):
        found[state] = found.get(state, 0) + 1
    return found


def state_is(row: PublishedMessage, state: str) -> Callable[[], bool]:
    """A condition for `wait_until`."""

    def check() -> bool:
        row.refresh_from_db()
        return row.state == state

    return check
