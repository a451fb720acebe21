"""A message as a row keeps it, and what is written on one that expired."""

from __future__ import annotations

import time
from typing import NamedTuple

from messaging.backends.base import Outgoing
from messaging.exceptions import WireError
from messaging.wire.envelope import ROW, wire_text
from messaging.wire.fields import decode_short, encode_short
from messaging.wire.properties import Properties, prepend_header

DELIVERY_COUNT = "x-delivery-count"  # RabbitMQ's name for how often a message came back


class Letter(NamedTuple):
    """Address and properties of a stored message."""

    exchange: str
    routing_key: str
    properties: Properties


def seal(message: Outgoing) -> bytes:
    """Exchange, routing key and properties as bytes, the row header added. Raises WireError for what AMQP lacks."""
    address = encode_short(message.exchange, "The exchange name") + encode_short(message.routing_key, "The routing key")
    return address + prepend_header(message.properties, ROW, message.token)


def unseal(wire: bytes) -> Letter:
    """Inverse of `seal()`."""
    exchange, offset = decode_short(wire, 0)
    routing_key, offset = decode_short(wire, offset)
    return Letter(exchange, routing_key, Properties.decode(wire[offset:]))


def seconds_to_live(properties: bytes) -> float | None:
    """After how many seconds it expires; None for never. Raises WireError for an expiration that is no number."""
    expiration = Properties.decode(properties).expiration
    if expiration is None:
        return None
    if not (expiration.isascii() and expiration.isdigit()) or len(expiration) > 10:
        raise WireError(f"The expiration {expiration[:20]!r} is not a number of milliseconds.")
    return int(expiration) / 1000


def delivered(wire: bytes, deliveries: int) -> Letter:
    """A stored message as its receiver sees it: one that came back says how often, as in a quorum queue.

    What cannot be read is the properties' `problem`, so that it ends in the inbox and not before its queue's others.
    """
    try:
        letter = unseal(wire)
    except WireError as error:
        return Letter("", "", Properties(problem=str(error)))
    if deliveries < 2:
        return letter
    return letter._replace(properties=letter.properties.edited(add_headers={DELIVERY_COUNT: deliveries - 1}))


def dead(wire: bytes, queue: str, dead_queue: str) -> bytes:
    """A stored message that expired in `queue`, as its dead-letter queue gets it; the headers are RabbitMQ's."""
    exchange, routing_key, properties = unseal(wire)
    death = {
        "count": 1,
        "reason": "expired",
        "queue": queue,
        "time": int(time.time()),
        "exchange": wire_text(exchange),
        "routing-keys": [wire_text(routing_key)],
        "original-expiration": properties.expiration or "",
    }
    first = {
        "x-first-death-reason": "expired",
        "x-first-death-queue": queue,
        "x-first-death-exchange": wire_text(exchange),
    }
    marked = properties.edited(
        drop_headers=[DELIVERY_COUNT], add_headers={"x-death": [death], **first}, expiration=None
    )
    return encode_short("", "The exchange name") + encode_short(dead_queue, "The routing key") + marked.encode()
