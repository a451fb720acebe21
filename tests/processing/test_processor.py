"""The processor, on a real database: what runs, what is recorded, and what never happens twice."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage
from messaging.testing.draining import Arrival
from messaging.wire import envelope as envelope_module
from messaging.wire.envelope import Envelope
from tests.app.models import Effect
from tests.deliveries import arrived, in_a_thread, sent
from tests.processing.tools import Handle, effect, ignore, next_round, nothing, only_row, statements

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def test_a_message_is_processed_and_recorded_in_one_row(handle: Handle) -> None:
    delivery = arrived({"order": 17}, headers={"tenant": "a"})
    assert handle().process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round, row.queue) == (State.PROCESSED, 1, 1, "work")
    assert row.message_id == delivery.properties.message_id
    assert row.headers == {"tenant": "a"}
    assert row.raw_body == delivery.body
    assert row.processed_at is not None
    assert Effect.objects.get().value == "{'order': 17}"
    assert Attempt.objects.count() == 0


def test_the_same_message_twice_has_one_effect(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    for redelivered in (False, True, False):
        delivery.redelivered = redelivered
        assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 1
    assert ProcessedMessage.objects.count() == 1


def test_messages_without_ids_are_not_deduped(handle: Handle) -> None:
    processor = handle()
    for _ in range(2):
        processor.process(arrived("Hello World", message_id=None), nothing)
    assert Effect.objects.count() == 2


def test_an_id_reused_for_other_content_is_kept_and_flagged(handle: Handle) -> None:
    processor = handle()
    processor.process(arrived("one", message_id="a"), nothing)
    for _ in range(2):  # its redelivery adds nothing
        assert processor.process(arrived("two", message_id="a"), nothing).action == "ack"
    assert Effect.objects.count() == 1
    flagged = ProcessedMessage.objects.get(state=State.FAILED)
    assert flagged.raw_body == b"two"
    assert "used before" in flagged.error


@pytest.mark.parametrize("ids", [("id", "ID"), ("a", "a "), ("\udcff", "\udcfe"), ("x" * 255, "x" * 254 + "y")])
def test_ids_that_a_collation_might_equate_are_different(handle: Handle, ids: tuple[str, str]) -> None:
    processor = handle(ignore)
    for identity in ids:
        processor.process(arrived("same", message_id=identity), nothing)
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 2


def test_a_first_delivery_costs_one_statement_beside_its_handlers(handle: Handle) -> None:
    processor, delivery = handle(), arrived()
    processor.process(arrived(), nothing)  # connects
    expected = {
        "postgresql": ["INSERT", "INSERT"],
        "sqlite": ["SELECT", "INSERT", "INSERT"],  # looks first, since it records last
        "mysql": ["SET", "INSERT", "INSERT", "SELECT"],  # sees whether a deadlock took the record away
    }
    assert statements(lambda: processor.process(delivery, nothing)) == expected[connection.vendor]


def test_a_delivery_is_read_once(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    received = Envelope.received
    monkeypatch.setattr(Envelope, "received", lambda *all_: read.append("envelope") or received(*all_))
    pack = envelope_module.pack_body
    monkeypatch.setattr(envelope_module, "pack_body", lambda body: read.append("body") or pack(body))
    delivery = arrived()
    parcel = Arrival("work", "messaging", "work.do", delivery.properties, delivery.body)
    processor = handle()
    processor.route(parcel)  # on arrival
    assert read == ["envelope", "body"]
    assert processor.process(parcel, nothing).action == "ack"
    assert read == ["envelope", "body"]


def test_a_large_body_is_not_held_twice_before_its_turn_comes(handle: Handle) -> None:
    delivery = arrived(b"x" * 100_000, content_type="text/plain")
    parcel = Arrival("work", "messaging", "work.do", delivery.properties, delivery.body)
    processor = handle(ignore)
    assert processor.route(parcel) is not None
    assert "columns" not in parcel.envelope.__dict__
    assert processor.process(parcel, nothing).action == "ack"
    assert only_row().raw_body == delivery.body


def test_a_message_near_the_brokers_delivery_limit_goes_round_by_the_inbox(handle: Handle) -> None:
    processor = handle()
    assert processor.process(arrived(redelivered=True, headers={"x-delivery-count": 17}), nothing).action == "ack"
    assert only_row().state == State.RETRYING
    assert only_row().attempts == 0
    again = sent(next_round())
    assert "x-delivery-count" not in again.properties.headers
    processor.process(again, nothing)
    assert only_row().state == State.PROCESSED
    assert Effect.objects.count() == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"x-delivery-count": 9}, False),
        ({"x-delivery-count": 10}, True),
        ({"x-delivery-count": "many"}, False),
    ],
)
def test_half_of_the_brokers_delivery_limit_is_near(handle: Handle, headers: dict[str, object], expected: bool) -> None:
    assert handle().is_near_limit(arrived(redelivered=True, headers=headers)) is expected


def test_twins_in_two_transactions_have_one_effect_and_spend_no_attempt(handle: Handle) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        effect(message)
        entered.set()
        leave.wait(60)

    processor, delivery = handle(slow), arrived()

    thread = in_a_thread(lambda: processor.process(delivery, nothing))
    assert entered.wait(60)
    if connection.vendor == "sqlite":
        leave.set()
        thread.join()
    settlement = processor.process(delivery, nothing)
    if connection.vendor != "sqlite":
        assert (settlement.action, settlement.after) == ("set_aside", 2.0)
    leave.set()
    thread.join()
    assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 1
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)
