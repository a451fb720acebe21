"""Typed payloads on the road: what does not fit fails at once, what is not known yet comes again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from messaging import Message, ReceivedMessage, payload_version, publish
from messaging.contracts import payloads
from messaging.contracts import upgrades as ladders
from messaging.exceptions import PublishError
from messaging.handlers import Registry, handler, registry
from messaging.message import HandlerContext, handler_context
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.operations.editing import is_locked
from messaging.processing.processor import Processor
from messaging.processing.rehearsing import rehearse
from messaging.publishing.publisher import publish_many
from messaging.testing import drain
from messaging.wire.envelope import VERSION
from tests.admin_rows import incoming
from tests.app.models import Effect
from tests.deliveries import Arrived, arrived, sent
from tests.processing.tools import Handle, effect, next_round, only_row, statements
from tests.test_house import Tracer

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


@dataclass
class Item:
    sku: str
    price: Decimal


@dataclass
class Order:
    items: list[Item]


@payload_version(2)
@dataclass
class Moved:
    city: str


FINE = {"items": [{"sku": "a", "price": "1.50"}]}
BAD = {"items": [{"sku": "a", "price": "1.50"}, {"sku": "b", "price": "secret"}]}


def note(message: ReceivedMessage[Order]) -> None:
    Effect.objects.create(key=message.id, value=str(message.payload.items[0].price))


async def note_async(message: ReceivedMessage[Order]) -> None:
    await Effect.objects.acreate(key=message.id, value=str(message.payload.items[0].price))


class Noting:
    def __call__(self, message: ReceivedMessage[Order]) -> None:
        note(message)

    def method(self, message: ReceivedMessage[Order]) -> None:
        note(message)


def with_more(message: ReceivedMessage[Order], more: str) -> None:
    note(message)


@functools.wraps(note)
def decorated(*arguments: Any) -> Any:
    return note(*arguments)


def many(messages: list[ReceivedMessage[Order]]) -> None:
    for message in messages:
        note(message)


def move(message: ReceivedMessage[Moved]) -> None:
    Effect.objects.create(key=message.id, value=message.payload.city)


def by_argument(message: Any) -> None:
    note(message)


def process(processor: Processor, *deliveries: Arrived) -> list[str]:
    return [processor.process(delivery, lambda: None).action for delivery in deliveries]


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (note, {}),
        (note, {"atomic": False}),
        (note_async, {}),
        (Noting(), {}),
        (Noting().method, {}),
        (functools.partial(with_more, more="x"), {}),
        (decorated, {}),
        (many, {"batch": 5}),
        (by_argument, {"payload": Order}),
    ],
)
def test_a_payload_arrives_as_an_instance_or_fails_at_once(
    handle: Handle, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    processor = handle(function, **options)
    assert process(processor, arrived(FINE)) in (["ack"], ["done"])
    assert Effect.objects.get().value == "1.50"
    process(processor, arrived(BAD))
    row = ProcessedMessage.objects.get(state=State.FAILED)
    assert row.error == "The payload does not fit Order: items[1].price: expected a decimal number, found other text."
    assert row.attempts == 1
    assert not PublishedMessage.objects.exists(), "no retry"
    attempt = Attempt.objects.get()
    assert attempt.exception_type == "messaging.exceptions.PayloadError"
    assert "secret" not in row.error + attempt.exception_message + attempt.traceback


def test_what_is_put_around_a_function_leaves_its_payload_what_it_is(handle: Handle) -> None:
    own = handle(note).route(arrived(FINE))
    assert own is not None
    around = dataclasses.replace(own, function=by_argument)
    contract = payloads.contract_of(around)
    assert contract is not None
    assert contract.kind is Order


def test_of_a_batch_only_the_one_that_does_not_fit_fails(handle: Handle) -> None:
    processor = handle(many, batch=10)
    deliveries = [arrived(FINE), arrived(BAD), arrived(FINE)]
    found = processor.route(deliveries[0])
    assert found is not None
    processor.process_batch(found, list(deliveries))
    assert Effect.objects.count() == 2
    assert ProcessedMessage.objects.filter(state=State.PROCESSED, attempts=1).count() == 2
    assert ProcessedMessage.objects.get(state=State.FAILED).attempts == 1


def test_a_typed_payload_costs_no_statement_and_an_untyped_one_no_call(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    untyped, typed = handle(effect), handle(note)
    process(untyped, arrived("first"))
    plain = statements(lambda: process(untyped, arrived("second")))
    process(typed, arrived(FINE))
    assert statements(lambda: process(typed, arrived(FINE))) == plain

    def fails(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("messaging.processing.execution.receive", fails)
    tracer = Tracer()
    with tracer.installed(), tracer.counting():
        publish("work.done", {"of": "no class"}, headers={"tenant": "a"})
        assert process(untyped, arrived("third")) == ["ack"]
    assert Effect.objects.filter(value="third").exists()
    assert [name for name in tracer.files if name.startswith("contracts/")] == []
    assert "publishing/rows.py" in tracer.files


def test_a_version_that_is_not_known_yet_comes_again_as_long_as_retries_last(
    handle: Handle, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladders, "_steps", {Moved: {1: [lambda payload: {"city": payload["town"]}]}})
    settings.MESSAGING = {"default": {"URL": "database://", "RETRY": {"max_attempts": 2}}}
    processor = handle(move, max_attempts=1)
    process(processor, arrived({"place": "Paris"}, headers={VERSION: 3}))
    row = only_row()
    assert (row.state, row.attempts) == (State.RETRYING, 1), "although its handler says one attempt"
    assert "this release takes 2" in row.error
    retry = next_round()
    assert retry.headers[VERSION] == 3, "it comes to the next consumer as what it is"
    process(processor, sent(retry))
    assert only_row().state == State.FAILED


def test_an_older_version_is_lifted_and_its_retry_keeps_what_was_sent(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladders, "_steps", {Moved: {1: [lambda payload: {"city": payload["town"]}]}})
    processor = handle(move)
    process(processor, arrived({"town": "Paris"}), arrived({"city": "Rome"}, headers={VERSION: 2}))
    process(processor, arrived({"city": "Lima"}, headers={VERSION: "2"}))
    assert sorted(Effect.objects.values_list("value", flat=True)) == ["Lima", "Paris", "Rome"]
    process(processor, arrived({"nothing": 1}))  # the step itself fails: like an error of the handler
    assert ProcessedMessage.objects.get(state=State.RETRYING).error == "KeyError: 'town'"
    assert next_round().payload == {"nothing": 1}


@pytest.mark.parametrize("version", ["two", 0, -1, True, 1.5, 2**40, None, b"2"])
def test_a_header_that_is_no_version_fails_at_once(handle: Handle, version: Any) -> None:
    process(handle(move), arrived({"city": "Rome"}, headers={VERSION: version}))
    assert only_row().state == State.FAILED
    assert VERSION in only_row().error


def test_the_version_travels_in_a_header_and_the_first_in_none() -> None:
    assert publish("orders.placed", Order([Item("a", Decimal(1))])).headers == {}
    assert publish("moved", Moved("Rome")).headers == {VERSION: 2}
    assert publish("moved", Moved("Rome"), headers={"tenant": "a", "at": b"\0"}).headers[VERSION] == 2
    assert publish("moved", {"city": "Rome"}, headers={VERSION: 2}).headers == {VERSION: 2}
    assert publish("moved", Moved("Rome"), headers={VERSION: 2}).headers == {VERSION: 2}
    for wrong in (3, 1):
        with pytest.raises(PublishError, match="the payload is version 2"):
            publish("moved", Moved("Rome"), headers={VERSION: wrong})
    for nonsense in ("2", 0, True, 2**31):
        with pytest.raises(PublishError, match="whole number"):
            publish("moved", {}, headers={VERSION: nonsense})
    for row in PublishedMessage.objects.filter(routing_key="moved"):
        delivery = sent(row)
        assert ReceivedMessage(delivery.envelope, queue="q").version == 2
        assert delivery.properties.headers.get(VERSION) == 2


def test_the_version_is_no_part_of_who_a_message_is() -> None:
    one = arrived({"city": "Rome"}, message_id="a").envelope
    other = arrived({"city": "Rome"}, message_id="a", headers={VERSION: 2}).envelope
    assert (one.key, one.digest, one.headers_digest) == (other.key, other.digest, other.headers_digest)


def test_derived_ids_are_those_of_the_same_content_without_a_version(handle: Handle) -> None:
    import uuid

    message = ReceivedMessage(arrived("x", message_id="cause").envelope, queue="q")
    ids = []
    for payload in (Moved("Rome"), {"city": "Rome"}):
        token = handler_context.set(HandlerContext(message, "default", False, uuid.UUID(int=1 << 70 | 5)))
        try:
            ids.append(publish_many([Message("moved", payload)])[0].message_id)
        finally:
            handler_context.reset(token)
    assert ids[0] == ids[1]


def test_an_operator_may_change_the_version_with_the_content() -> None:
    assert not is_locked(VERSION)
    assert is_locked("x-messaging-round")


@pytest.fixture
def site_registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(registry, "_handlers", {})
    return registry


@pytest.mark.usefixtures("site_registry")
def test_a_rehearsal_and_a_drain_take_the_same_road() -> None:
    handler("rehearsed", "orders.placed", rehearse=True)(note)
    row = incoming("failed", queue="rehearsed")
    report = rehearse(ProcessedMessage.objects.get(pk=row.pk), row.round, 20)
    assert report.state == "failed"
    assert report.error.startswith("The payload does not fit Order: items: is missing")
    publish("orders.placed", Order([Item("a", Decimal("2.50"))]))
    publish("orders.placed", BAD)
    drained = drain(raise_errors=False)
    assert [row.error.partition(": ")[0] for row in drained.failed] == ["The payload does not fit Order"]
    assert Effect.objects.get().value == "2.50"
