"""CloudEvents and declared events on their way out."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict

import pytest
import typing_extensions
from django.db import transaction

from messaging import CloudEvent, Event, Message, publish, publish_many
from messaging.contracts import events
from messaging.exceptions import PublishError
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import PublishedMessage
from messaging.publishing.rows import seal
from messaging.wire.envelope import Envelope, key_of
from messaging.wire.properties import Properties

pytestmark = [pytest.mark.django_db, pytest.mark.database]
STRUCTURED = "application/cloudevents+json"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENT = CloudEvent(
    type="shop.order.placed",
    source="/shop",
    data={"order": 17},
    id="17",
    time=NOON,
    subject="orders/17",
    dataschema="https://shop.example/order",
    extensions={"tenant": "acme", "priority": 3, "urgent": True},
)


def received(row: PublishedMessage) -> ReceivedMessage:
    """The message as its consumer gets it."""
    exchange, routing_key, properties, body = seal(row)
    envelope = Envelope.received(exchange, routing_key, Properties.decode(properties), body, row.queue)
    return ReceivedMessage(envelope, queue="q")


def test_a_binary_event_has_its_attributes_as_headers() -> None:
    row = publish("orders.placed", EVENT, headers={"tenant": "b"})
    assert json.loads(row.body) == {"order": 17}
    assert (row.content_type, row.message_id) == ("application/json", "/shop 17")
    assert row.headers == {
        "tenant": "b",
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": "17",
        "cloudEvents:source": "/shop",
        "cloudEvents:type": "shop.order.placed",
        "cloudEvents:subject": "orders/17",
        "cloudEvents:dataschema": "https://shop.example/order",
        "cloudEvents:tenant": "acme",
        "cloudEvents:priority": 3,
        "cloudEvents:urgent": True,
        "cloudEvents:time": "2026-01-31T12:00:00Z",
    }


def test_a_structured_event_is_one_document() -> None:
    row = publish("orders.placed", EVENT, content_type=STRUCTURED)
    assert (row.content_type, row.message_id, row.headers) == (STRUCTURED, "/shop 17", {})
    assert json.loads(row.body) == {
        "specversion": "1.0",
        "id": "17",
        "source": "/shop",
        "type": "shop.order.placed",
        "subject": "orders/17",
        "dataschema": "https://shop.example/order",
        "tenant": "acme",
        "priority": 3,
        "urgent": True,
        "time": "2026-01-31T12:00:00Z",
        "datacontenttype": "application/json",
        "data": {"order": 17},
    }


@pytest.mark.parametrize("content_type", [None, STRUCTURED], ids=["binary", "structured"])
@pytest.mark.parametrize("data", [{"order": 17}, [1, 2], "text", b"\x00\xff", None], ids=repr)
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_what_is_received_is_what_was_published(content_type: str | None, data: Any, encoding: str | None) -> None:
    if isinstance(data, bytes) and not content_type:
        encoding = None  # bytes are sent as they are, whatever is said of them
    event = replace(EVENT, data=data, extensions={"tenant": "ä"})
    row = publish("orders.placed", event, content_type=content_type, content_encoding=encoding)
    message = received(row)
    assert message.payload == data
    assert message.id == row.message_id
    assert message.envelope.key == key_of(row.message_id)
    assert message.envelope.former_key is None
    found = message.cloud_event
    assert found is not None
    assert replace(found, datacontenttype="") == event
    again = received(publish("orders.placed", found, content_type=content_type))  # handed on as it is
    assert again.cloud_event == found


def test_a_new_event_has_an_id_and_a_time() -> None:
    event = CloudEvent(type="t", source="/shop", data=1)
    rows = publish_many([Message("a", event), Message("a", event)])
    assert len({row.message_id for row in rows}) == 2
    found = received(rows[0]).cloud_event
    assert found is not None
    assert rows[0].message_id == f"/shop {uuid.UUID(found.id)}"
    assert found.time is not None
    assert abs((datetime.now(UTC) - found.time).total_seconds()) < 60


def test_the_ids_of_a_handler_without_a_transaction_are_the_same_in_each_run() -> None:
    event = CloudEvent(type="t", source="/shop", data=1)

    def run() -> list[str]:
        token = handler_context.set(HandlerContext(None, "default", False, uuid.UUID(int=1)))
        try:
            return [publish("a", event).message_id, publish("a", event).message_id, publish("b", event).message_id]
        finally:
            handler_context.reset(token)

    first = run()
    assert len(set(first)) == 3
    assert run() == first
    assert PublishedMessage.objects.count() == 3


@pytest.mark.parametrize(
    ("event", "options", "why"),
    [
        (replace(EVENT, source="a shop"), {}, "no spaces"),
        (replace(EVENT, source=""), {}, "needs a type and a source"),
        (replace(EVENT, type=""), {}, "needs a type and a source"),
        (replace(EVENT, id=17), {}, "id is 17; it must be text"),
        (replace(EVENT, id="a\x00"), {}, "NUL"),
        (replace(EVENT, time=NOON.replace(tzinfo=None)), {}, "time zone"),
        (replace(EVENT, extensions={"Tenant": "a"}), {}, "small letters and digits"),
        (replace(EVENT, extensions={"id": "a"}), {}, "no extension 'id'"),
        (replace(EVENT, extensions={"n": 2**31}), {}, "32 bits"),
        (replace(EVENT, extensions={"n": 1.5}), {}, "must be text"),
        (replace(EVENT, data={1, 2}), {}, "cannot be written as JSON"),
        (EVENT, {"message_id": "a"}, "leave message_id out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_event_is_refused_and_nothing_is_written(event: Any, options: dict[str, Any], why: str) -> None:
    for content_type in (None, STRUCTURED):
        with pytest.raises(PublishError, match=why), transaction.atomic():
            publish("orders.placed", event, content_type=content_type, **options)
    assert PublishedMessage.objects.count() == 0


@pytest.mark.parametrize("content_type", [None, STRUCTURED], ids=["binary", "structured"])
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_copy_is_another_event(content_type: str | None, encoding: str | None) -> None:
    row = publish("orders.placed", EVENT, content_type=content_type, content_encoding=encoding)
    row.refresh_from_db()
    copy = row.copied()
    copy.save()
    copy.refresh_from_db()
    before, after = received(row), received(copy)
    assert (before.cloud_event is None, after.cloud_event is None) == (False, False)
    assert after.cloud_event is not None
    assert before.cloud_event == replace(after.cloud_event, id="17")
    assert after.cloud_event.id != "17"
    assert after.id == copy.message_id == f"/shop {after.cloud_event.id}"


# Declared events


@dataclass
class Placed:
    order: int


class Cancelled(TypedDict):
    order: int
    why: NotRequired[str]


class Returned(typing_extensions.TypedDict):
    order: int


@pytest.fixture(autouse=True)
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "events", events.Events())


def test_an_event_says_routing_key_exchange_and_type() -> None:
    event = Event("orders.cancelled", Cancelled, exchange="partner", type="cancelled")
    row = publish(event, {"order": 17})
    assert (row.routing_key, row.exchange, row.type) == ("orders.cancelled", "partner", "cancelled")
    assert type(row.routing_key) is str
    row = publish(event, {"order": 17}, exchange="ours", type="other")
    assert (row.exchange, row.type) == ("ours", "other")
    row = publish(event, {"order": 17}, queue="straight")
    assert (row.exchange, row.queue, row.routing_key) == ("", "straight", "orders.cancelled")
    (row,) = publish_many([Message(event, {"order": 17, "why": "late"})])
    assert (row.routing_key, row.exchange, json.loads(row.body)["why"]) == ("orders.cancelled", "partner", "late")
    row = publish(event, CloudEvent(type="t", source="/shop", data={"order": 17}))
    assert received(row).payload == {"order": 17}


def test_an_event_takes_its_own_type_alone() -> None:
    placed, cancelled = Event("orders.placed", Placed), Event("orders.cancelled", Cancelled)
    returned = Event("orders.returned", Returned)
    for event, payload, why in (
        (placed, {"order": 17}, "is Placed, not dict"),
        (cancelled, [17], "is Cancelled, not list"),
        (cancelled, {"why": "late"}, 'lacks "order"'),
        (cancelled, {"order": 17, "who": "me"}, 'has "who", which Cancelled does not know'),
        (cancelled, CloudEvent(type="t", source="/shop", data={}), 'lacks "order"'),
        (returned, {}, 'lacks "order"'),
    ):
        with pytest.raises(PublishError, match=why):
            publish(event, payload)
    assert PublishedMessage.objects.count() == 0


def test_an_event_of_another_alias_goes_there(settings: Any) -> None:
    settings.MESSAGING = {"default": {}, "partner": {"EXCHANGE": "theirs"}}
    event = Event("orders.cancelled", Cancelled, using="partner")
    row = publish(event, {"order": 17})
    assert (row.alias, row.exchange) == ("partner", "theirs")
    with pytest.raises(PublishError, match='belongs to the alias "partner"'):
        publish_many([Message(event, {"order": 17})])
