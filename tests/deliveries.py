"""What the tests of the processor share: deliveries without a broker, and a registry of their own."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from messaging.backends.base import Delivery
from messaging.handlers import Handler, Registry
from messaging.models import PublishedMessage
from messaging.publishing.rows import seal
from messaging.wire.bodies import encode_body
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties


@dataclass
class Arrived:
    """A delivery as a backend would hand it over."""

    queue: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    redelivered: bool = False

    @property
    def envelope(self) -> Envelope:
        """The message in it, as it now stands: tests change deliveries."""
        return envelope_of(self)


def arrived(
    payload: Any = "hello",
    *,
    queue: str = "work",
    routing_key: str = "work.do",
    message_id: str | None = "",
    redelivered: bool = False,
    headers: dict[str, Any] | None = None,
    content_type: str | None = None,
    **properties: Any,
) -> Arrived:
    """A delivery of a new message; `message_id=None` for one without an id."""
    body, guessed = encode_body(payload, content_type)
    identity = str(uuid.uuid4()) if message_id == "" else message_id
    built = Properties.build(
        headers=headers, content_type=content_type or guessed, message_id=identity, delivery_mode=2, **properties
    )
    return Arrived(queue, "messaging", routing_key, built, body, redelivered)


class Parcel(Delivery):
    """A delivery without a broker's channel, which remembers how it was settled.

    Args:
        payload, options: as for `arrived()`, but without an id unless one is given: all are copies of one message.
        age: seconds since it arrived.
    """

    def __init__(self, queue: str = "work", payload: Any = "", *, age: float = 0.0, **options: Any) -> None:
        for name, value in vars(arrived(payload, queue=queue, **{"message_id": None, **options})).items():
            setattr(self, name, value)
        self.received_at = time.monotonic() - age
        self.settled: list[str] = []
        self.live = True

    def ack(self) -> bool:
        self.settled.append("ack")
        return self.live

    def requeue(self) -> bool:
        self.settled.append("requeue")
        return self.live

    @property
    def is_live(self) -> bool:
        return self.live


def envelope_of(delivery: Arrived) -> Envelope:
    """The message in a delivery."""
    return Envelope.received(
        delivery.exchange, delivery.routing_key, delivery.properties, delivery.body, delivery.queue
    )


def sent(row: PublishedMessage, *, redelivered: bool = False) -> Arrived:
    """The delivery of an outbox row."""
    exchange, routing_key, properties, body = seal(row)
    return Arrived(row.queue, exchange, routing_key, Properties.decode(properties), body, redelivered)


def registered(registry: Registry, function: Callable[..., Any], **options: Any) -> Handler:
    """Register a function and return its handler."""
    values: dict[str, Any] = {
        "queue": "work",
        "routing_keys": (),
        "using": "default",
        "database": "default",
        "atomic": True,
        "timeout": None,
        "max_attempts": 3,
        "backoff": 10,
        "batch": None,
    }
    handler = Handler(function=function, **{**values, **options})
    registry.add(handler)
    return handler


def in_a_thread(function: Callable[[], object]) -> threading.Thread:
    """Run with a database connection of its own."""

    def run() -> None:
        try:
            function()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@dataclass
class Acks:
    """Counts acknowledgements."""

    times: list[str] = field(default_factory=list)

    def __call__(self) -> None:
        self.times.append("ack")
