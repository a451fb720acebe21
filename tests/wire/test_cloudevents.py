"""CloudEvents to and from the official library, in both modes; and by its binding for RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.v1.event import CloudEvent as TheirEvent

from messaging import CloudEvent, Message, conf
from messaging.message import ReceivedMessage
from messaging.publishing.rows import Composer, seal
from messaging.wire.envelope import Envelope, key_of
from messaging.wire.properties import Properties

STRUCTURED = "application/cloudevents+json"
TIME = datetime(2026, 1, 31, 12, 30, 15, 250000, tzinfo=UTC)
ATTRIBUTES = {
    "specversion": "1.0", "id": "17", "source": "/shop", "type": "shop.order.placed", "subject": "orders/ü",
    "time": TIME, "dataschema": "https://shop.example/order", "tenant": "acme",
}  # fmt: skip
DATA = {"order": 17, "article": "Teapöt", "lines": [{"n": 1}]}


def delivered(headers: dict[str, Any], content_type: str | None, body: bytes) -> ReceivedMessage:
    """A message as a handler gets it."""
    properties = Properties.decode(Properties.build(headers=headers, content_type=content_type).encode())
    return ReceivedMessage(Envelope.received("events", "orders.placed", properties, body, "q"), queue="q")


def through_amqp(event: TheirEvent, mode: str) -> ReceivedMessage:
    found = {"binary": amqp.to_binary_event, "structured": amqp.to_structured_event}[mode](event)
    return delivered(found.application_properties, found.properties.get("content-type"), found.application_data)


def through_rabbitmq(event: TheirEvent, mode: str) -> ReceivedMessage:
    found = {"binary": rabbitmq.to_binary_event, "structured": rabbitmq.to_structured_event}[mode](event)
    return delivered(found.headers, found.content_type, found.body)


@pytest.mark.parametrize("send", [through_amqp, through_rabbitmq])
@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    ("data", "content_type"),
    [(DATA, "application/json"), (DATA, None), ("<order/>", "text/xml"), (b"\x00\xff", "application/octet-stream")],
    ids=["json", "unnamed", "text", "bytes"],
)
def test_what_the_library_sends_is_read(
    send: Callable[[TheirEvent, str], ReceivedMessage], mode: str, data: Any, content_type: str | None
) -> None:
    theirs = TheirEvent({**ATTRIBUTES, **({"datacontenttype": content_type} if content_type else {})}, data)
    message = send(theirs, mode)
    assert message.payload == data
    assert message.id == "/shop 17"
    assert message.envelope.key == key_of("/shop 17")
    assert message.cloud_event == CloudEvent(
        type="shop.order.placed",
        source="/shop",
        data=data,
        id="17",
        time=TIME,
        subject="orders/ü",
        datacontenttype=content_type or "",
        dataschema="https://shop.example/order",
        extensions={"tenant": "acme"},
    )


@pytest.mark.django_db
@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    ("data", "content_type"),
    [(DATA, "application/json"), ("<order/>", "text/xml"), (b"\x00\xff", "application/octet-stream")],
    ids=["json", "text", "bytes"],
)
def test_what_is_sent_is_read_by_the_library(mode: str, data: Any, content_type: str) -> None:
    ours = CloudEvent(
        type="shop.order.placed",
        source="/shop",
        data=data,
        id="17",
        time=TIME,
        subject="orders/ü",
        datacontenttype=content_type,
        dataschema="https://shop.example/order",
        extensions={"tenant": "acme"},
    )
    wanted = STRUCTURED if mode == "structured" else None
    _, _, wire, body = seal(Composer(conf.get()).compose(Message("orders.placed", ours, content_type=wanted)))
    properties = Properties.decode(wire)
    given = {"content-type": properties.content_type}
    theirs = amqp.from_amqp_event(amqp.AMQPMessage(given, properties.headers, body))
    assert theirs.get_data() == data
    assert theirs.get_attributes() == {**ATTRIBUTES, "datacontenttype": content_type}
