"""Batches: many messages in one transaction."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.signals import message_processed
from tests.app.models import Effect
from tests.deliveries import arrived
from tests.processing.tools import Handle, effect, ignore, statements

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def test_a_batch_is_one_transaction(handle: Handle) -> None:
    def many(messages: list[ReceivedMessage]) -> None:
        Effect.objects.create(key="batch", value=str(len(messages)))

    processor = handle(many, batch=10)
    deliveries = [arrived(str(number)) for number in range(5)]
    handler = processor.route(deliveries[0])
    assert handler is not None
    assert {one.action for one in processor.process_batch(handler, list(deliveries))} == {"ack"}
    assert Effect.objects.get().value == "5"
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 5


def test_of_each_message_of_a_batch_it_is_said_that_it_is_processed(handle: Handle) -> None:
    told: list[ProcessedMessage] = []

    def hear(row: ProcessedMessage, duration: float, **_: Any) -> None:
        assert duration > 0
        told.append(row)

    processor = handle(ignore, batch=10)
    deliveries = [arrived(str(number)) for number in range(3)]
    handler = processor.route(deliveries[0])
    assert handler is not None
    message_processed.connect(hear)
    try:
        processor.process_batch(handler, list(deliveries))
    finally:
        message_processed.disconnect(hear)
    assert [row.message_id for row in told] == [one.properties.message_id for one in deliveries]
    assert {(row.state, row.attempts, row.handler, row.worker) for row in told} == {
        (State.PROCESSED, 1, handler.name, "worker-1")
    }
    assert [row.raw_body for row in told] == [one.body for one in deliveries]


def test_a_bad_message_in_a_batch_is_isolated(handle: Handle) -> None:
    def many(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            if message.payload == "bad":
                raise ValueError("bad one")
            effect(message)

    processor = handle(many, batch=10)
    deliveries = [arrived("good"), arrived("bad"), arrived("good")]
    handler = processor.route(deliveries[0])
    assert handler is not None
    processor.process_batch(handler, list(deliveries))
    assert Effect.objects.count() == 2
    assert ProcessedMessage.objects.filter(state=State.PROCESSED, attempts=1).count() == 2
    assert ProcessedMessage.objects.get(state=State.RETRYING).attempts == 1


def test_a_batch_costs_as_many_statements_whatever_its_size(handle: Handle) -> None:
    processor = handle(ignore, batch=500)

    def run(count: int) -> list[str]:
        deliveries = [arrived(str(number)) for number in range(count)]
        handler = processor.route(deliveries[0])
        assert handler is not None
        return statements(lambda: processor.process_batch(handler, deliveries))

    run(2)  # a new connection of MariaDB's is asked once how its session is
    few, many = run(2), run(300)
    assert len(few) <= 5
    if connection.vendor == "sqlite":  # takes 999 parameters
        assert len(many) <= 15
    else:
        assert few == many
