"""CloudEvents in the inbox: the same by source and id, whatever else names them; and beside the release before."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.processing.processor import Processor
from messaging.wire.envelope import Envelope, key_of
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, envelope_of
from tests.processing.tools import Handle, next_round, nothing, only_row, statements

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]
State = ProcessedMessage.State
STRUCTURED = "application/cloudevents+json"
Make = Any


def binary(source: str, event_id: str, data: Any = 1, *, prefix: str = "cloudEvents:", **options: Any) -> Arrived:
    """A delivery of a binary event."""
    attributes = {"specversion": "1.0", "id": event_id, "source": source, "type": "counted"}
    return arrived(data, headers={prefix + name: value for name, value in attributes.items()}, **options)


def structured(source: str, event_id: str, data: Any = 1, **options: Any) -> Arrived:
    """A delivery of a structured event."""
    document = {"specversion": "1.0", "id": event_id, "source": source, "type": "counted", "data": data}
    return arrived(document, content_type=STRUCTURED, **options)


def count(message: ReceivedMessage) -> None:
    event = message.cloud_event
    assert event is not None
    Effect.objects.create(key=f"{event.source} {event.id}", value=repr(message.payload))


@pytest.fixture(params=[binary, structured], ids=["binary", "structured"])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.mark.parametrize("message_id", [None, "1"], ids=["without message_id", "with the same"])
def test_two_sources_that_count_into_one_queue_do_not_collide(
    handle: Handle, make: Make, message_id: str | None
) -> None:
    processor = handle(count)
    for source in ("/shop", "/stock"):
        for _ in range(2):
            delivery = make(source, "1", message_id=message_id)
            assert processor.process(delivery, nothing).action == "ack"
    assert sorted(Effect.objects.values_list("key", flat=True)) == ["/shop 1", "/stock 1"]
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {State.PROCESSED}
    assert sorted(ProcessedMessage.objects.values_list("message_id", flat=True)) == ["/shop 1", "/stock 1"]


def test_one_event_that_is_sent_again_under_another_message_id_has_one_effect(handle: Handle, make: Make) -> None:
    processor = handle(count)
    for message_id in ("a", "b", None):
        assert processor.process(make("/shop", "1", message_id=message_id), nothing).action == "ack"
    assert Effect.objects.count() == 1


def test_one_source_and_id_with_other_data_is_kept_and_flagged(handle: Handle, make: Make) -> None:
    processor = handle(count)
    for data in (1, 2, 2):
        processor.process(make("/shop", "1", data, message_id=None), nothing)
    assert Effect.objects.count() == 1
    assert ProcessedMessage.objects.filter(state=State.FAILED, error__contains="used before").count() == 1


def test_a_failed_event_comes_back_under_its_own_row(handle: Handle, make: Make) -> None:
    def fail_once(message: ReceivedMessage) -> None:
        if message.round == 1:
            raise ValueError
        count(message)

    processor = handle(fail_once)
    processor.process(make("/shop", "1", message_id="1"), nothing)
    again = next_round()
    exchange, routing_key, wire = "", "work", Envelope.from_wire(bytes(again.wire or b""), again.raw_body)
    processor.process(Arrived("work", exchange, routing_key, wire.properties, again.raw_body), nothing)
    row = only_row()
    assert (row.state, row.round, row.message_id) == (State.PROCESSED, 2, "/shop 1")
    assert Effect.objects.get().value == "1"


@pytest.mark.parametrize(
    "headers",
    [
        {"cloudEvents:id": "1", "cloudEvents:source": "/shop", "cloudEvents:type": "counted"},
        {"cloudEvents:specversion": "1.0", "cloudEvents:id": "1", "cloudEvents:type": "counted"},
        {"note": "cloudEvents"},
    ],
    ids=["without specversion", "without source", "by chance"],
)
def test_what_is_no_cloud_event_is_known_by_its_message_id(headers: dict[str, Any]) -> None:
    envelope = envelope_of(arrived(1, message_id="a", headers=headers))
    assert (envelope.message_id, envelope.key, envelope.former_key) == ("a", key_of("a"), None)
    nameless = envelope_of(arrived(1, message_id=None, headers=headers))
    assert (nameless.message_id, nameless.key, nameless.was_without_id) == ("", None, False)
    assert ReceivedMessage(envelope, queue="work").cloud_event is None


def test_a_body_that_is_no_event_although_it_says_so_rests_as_failed(handle: Handle) -> None:
    processor = handle(lambda message: message.payload)
    processor.process(arrived({"id": "1"}, content_type=STRUCTURED, message_id="a"), nothing)
    row = only_row()
    assert row.state == State.FAILED
    assert 'its "specversion" is missing' in row.error
    assert row.message_id == "a"


def test_both_prefixes_make_one_identity() -> None:
    first, second = (envelope_of(binary("/shop", "1", prefix=prefix)) for prefix in ("cloudEvents:", "cloudEvents_"))
    assert first.key == second.key == key_of("/shop 1")


def test_long_and_odd_ids_have_keys_that_differ() -> None:
    ids = ["x" * 300, "x" * 299 + "y", "a\x00b", "a\x01b"]
    keys = {envelope_of(binary("/shop", one)).key for one in ids}
    assert len(keys) == len(ids)
    assert all(len(envelope_of(binary("/shop", one)).message_id.encode()) <= 255 for one in ids)


# Beside the release before, which knew events by their message_id


def record_as_before(delivery: Arrived, **values: Any) -> ProcessedMessage:
    """The row that the release before wrote of a delivery."""
    envelope = delivery.envelope
    given = delivery.properties.message_id
    own = {"message_id": given or "", "key": key_of(given) if given else uuid.uuid4()}
    row = ProcessedMessage(**{**envelope.columns, **own, "alias": "default", "queue": "work", **values})
    row.save(force_insert=True)
    return row


def test_an_event_that_the_release_before_has_processed_is_not_processed_again(handle: Handle, make: Make) -> None:
    record_as_before(make("/shop", "1", message_id="1"), state=State.PROCESSED, attempts=1)
    processor: Processor = handle(count)
    for redelivered in (False, True):
        delivery = make("/shop", "1", message_id="1", redelivered=redelivered)
        assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 0
    processor.process(make("/stock", "1", message_id="1"), nothing)  # which has the same message_id
    assert Effect.objects.get().key == "/stock 1"


def test_a_batch_knows_what_the_release_before_has_processed(handle: Handle, make: Make) -> None:
    record_as_before(make("/shop", "1", message_id="1"), state=State.PROCESSED, attempts=1)

    def take(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            count(message)

    processor = handle(take, batch=10)
    handler = processor._station.handlers.all()[0]
    deliveries = [make("/shop", "1", message_id="1"), make("/stock", "1", message_id="1")]
    assert {one.action for one in processor.process_batch(handler, deliveries)} == {"ack"}
    assert Effect.objects.get().key == "/stock 1"


def test_a_claim_of_the_release_before_that_ran_out_is_counted_and_goes_round(handle: Handle, make: Make) -> None:
    for message_id in ("1", None):
        ProcessedMessage.objects.all().delete()
        delivery = make("/shop", "1", message_id=message_id, redelivered=True)
        claim = {"state": State.PROCESSING, "lease_token": uuid.uuid4(), "at_broker": True, "worker": "before"}
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        record_as_before(delivery, **claim, leased_until=long_ago, started_at=long_ago)
        processor = handle(count)
        processor.outages.up_since["default"] = -1e9  # long enough for a lease to tell
        assert processor.process(delivery, nothing).action == "ack", message_id
        row = only_row()
        assert (row.state, row.round) == (State.RETRYING, 2)
        assert Effect.objects.count() == 0


def test_only_events_with_another_message_id_cost_a_look(handle: Handle) -> None:
    processor = handle(count)
    processor.process(binary("/shop", "0"), nothing)  # connects

    def looks(delivery: Arrived) -> int:
        return statements(lambda: processor.process(delivery, nothing)).count("SELECT")

    plain = looks(binary("/shop", "1", message_id="/shop 1"))
    assert looks(binary("/shop", "2", message_id=None)) == plain
    assert looks(binary("/shop", "3", message_id="3")) > plain


def test_the_data_of_a_structured_event_is_the_payload() -> None:
    document = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "t", "datacontenttype": "text/plain"}
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"data": {"order": 17}}, {"order": 17}),
        ({"data": None}, None),
        ({}, None),
        ({"data_base64": "aGVsbG8="}, "hello"),
        ({"data_base64": "eyJhIjoxfQ==", "datacontenttype": "application/json"}, {"a": 1}),
        ({"data_base64": "AAE=", "datacontenttype": None}, b"\x00\x01"),
    ]
    for more, payload in cases:
        delivery = arrived({**document, **more}, content_type=f"{STRUCTURED}; charset=utf-8")
        assert ReceivedMessage(delivery.envelope, queue="work").payload == payload
