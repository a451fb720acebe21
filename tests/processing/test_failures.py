"""What a recorded failure says to the code, beside what it says to people."""

from __future__ import annotations

from typing import Any

import pytest

from messaging.exceptions import DeadLettered, HandlerTimeout, ProcessDied
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from messaging.processing.station import ALONE
from messaging.supervising.ledger import Entry
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, envelope_of, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
DEATH = {"queue": "work", "reason": "expired", "exchange": "messaging", "routing-keys": ["work.do"]}
RENAMED = {"exception_type": "elsewhere.Renamed"}


def before(flag: str, error: type[Exception]) -> dict[str, Any]:
    """What the release before leaves in a row."""
    return {flag: None, "exception_type": f"messaging.exceptions.{error.__name__}"}


def do(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.id, value="done")
    if message.payload == "fail":
        raise ValueError("no")


def nothing() -> None:
    pass


@pytest.fixture
def processor() -> Processor:
    registry = Registry()
    registered(registry, do, max_attempts=5)
    return Processor("default", "worker-1", handlers=registry)


def round_of() -> Arrived:
    return sent(PublishedMessage.objects.get(state="pending"))


def killed(processor: Processor, delivery: Arrived, error: ProcessDied | HandlerTimeout) -> None:
    """Have its first delivery killed."""
    envelope = envelope_of(delivery)
    entry = Entry(
        alias="default", queue="work", key=str(envelope.key), digest=str(envelope.digest), round=1,
        message_id=delivery.properties.message_id or "", database="default", handler="tests.do", started=1.0,
        headers_digest=str(envelope.headers_digest),
    )  # fmt: skip
    assert processor.record_crash(entry, error)


@pytest.mark.parametrize("written", [RENAMED, before("process_died", ProcessDied)])
def test_that_a_process_died_is_told_by_no_name(processor: Processor, written: dict[str, Any]) -> None:
    delivery = arrived()
    killed(processor, delivery, ProcessDied("killed"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    assert ProcessedMessage.objects.get().process_died
    ProcessedMessage.objects.update(**written)
    assert processor.process(round_of(), nothing, alone=False) == ALONE
    assert processor.process(round_of(), nothing).action == "ack"
    assert Effect.objects.count() == 1


def test_a_later_failure_of_another_kind_may_run_beside_others(processor: Processor) -> None:
    delivery = arrived("fail")
    killed(processor, delivery, ProcessDied("killed"))
    delivery.redelivered = True
    processor.process(delivery, nothing)
    again = round_of()
    PublishedMessage.objects.update(state="published", due_at=None)
    processor.process(again, nothing)
    assert ProcessedMessage.objects.get().process_died is None
    assert processor.process(round_of(), nothing, alone=False) != ALONE


@pytest.mark.parametrize("written", [RENAMED, before("timed_out", HandlerTimeout)])
def test_that_a_handler_was_late_is_told_by_no_name(processor: Processor, written: dict[str, Any]) -> None:
    delivery = arrived()
    killed(processor, delivery, HandlerTimeout("ran longer than its timeout of 1 s"))
    assert Attempt.objects.get().timed_out
    Attempt.objects.update(**written)
    delivery.redelivered = True
    processor.process(delivery, nothing)
    row = ProcessedMessage.objects.get()
    assert (row.exception_type, row.process_died) == ("messaging.exceptions.HandlerTimeout", None)


@pytest.mark.parametrize("written", [RENAMED, before("dead_lettered", DeadLettered)])
def test_that_the_broker_gave_it_up_is_told_by_no_name(processor: Processor, written: dict[str, Any]) -> None:
    delivery = arrived("x")
    letter = arrived(
        "x", queue="work.dead", routing_key="work.dead", message_id=delivery.properties.message_id,
        headers={"x-death": [DEATH]},
    )  # fmt: skip
    letter.exchange = ""
    assert processor.record_dead(letter).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.dead_lettered) == (State.FAILED, True)
    ProcessedMessage.objects.update(**written)
    processor.process(delivery, nothing)
    assert ProcessedMessage.objects.get().state == State.PROCESSED
    assert Effect.objects.count() == 1
