"""Middleware around what is published: it adds as if the caller had, and leaves no message out in silence."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError
from django.utils.decorators import async_only_middleware
from pytest_django import Settings

from messaging import Message, apublish, publish, publish_many
from messaging.exceptions import ConfigurationError, PublishError
from messaging.handlers import Registry
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from messaging.publishing.rows import seal
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.deliveries import registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
rows = PublishedMessage.objects
seen: list[Any] = []
tenant: ContextVar[str] = ContextVar("tenant", default="acme")
Use = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()
    tenant.set("acme")  # asgiref gives back what an async function sets


@pytest.fixture
def use(settings: Settings) -> Use:
    """Puts functions of this module around what is published."""

    def put(*functions: Any) -> None:
        paths = [f"{__name__}.{function.__name__}" for function in functions]
        settings.MESSAGING = {"default": {"PUBLISH_MIDDLEWARE": paths}}

    return put


def adding(get_outcome: Any) -> Any:
    def around(message: Message) -> Any:
        seen.append(message.routing_key)
        assert isinstance(message.headers, dict)
        message.headers["tenant"] = tenant.get()
        return get_outcome(message)

    return around


def renaming(get_outcome: Any) -> Any:
    def around(message: Message) -> Any:
        return get_outcome(replace(message, routing_key=f"{message.routing_key}.{message.headers['tenant']}"))  # type: ignore[index]

    return around


@async_only_middleware
def in_async(get_outcome: Any) -> Any:
    async def around(message: Message) -> Any:
        message.headers["async"] = tenant.get()  # type: ignore[index]
        return await get_outcome(message)

    return around


def test_what_is_added_is_sent_and_the_first_is_outermost(use: Use) -> None:
    use(adding, in_async, renaming)
    own = {"n": 1}
    row = publish("orders", 17, headers=own)
    row.refresh_from_db()
    assert (row.headers, row.routing_key) == ({"n": 1, "tenant": "acme", "async": "acme"}, "orders.acme")
    assert Properties.decode(seal(row)[2]).headers["tenant"] == "acme"
    assert own == {"n": 1}


def test_each_of_many_passes_it_and_all_are_written_or_none(use: Use) -> None:
    use(adding)
    shared = {"n": 1}
    publish_many(Message(f"k.{number}", number, headers=shared) for number in range(3))
    assert seen == ["k.0", "k.1", "k.2"]
    assert [row.headers for row in rows.order_by("pk")] == [{"n": 1, "tenant": "acme"}] * 3
    use(adding, choosy)
    with pytest.raises(PublishError, match="is bad"):
        publish_many([Message("good", 1), Message("bad", 1)])
    assert rows.count() == 3


def test_async_code_has_its_context_there(use: Use) -> None:
    async def view() -> list[PublishedMessage]:
        tenant.set("theirs")
        return [await apublish("k", 1), await sync_to_async(publish)("k", 1)]

    use(adding, in_async)
    assert [row.headers for row in async_to_sync(view)()] == [{"tenant": "theirs", "async": "theirs"}] * 2


def in_a_handler(run: Callable[[], Any]) -> Any:
    """As a handler with `atomic=False` does it."""
    message = ReceivedMessage(Envelope("", "k", Properties.build(message_id="cause"), b""), queue="q")
    token = handler_context.set(HandlerContext(message, "default", False, uuid.UUID(int=7)))
    try:
        return run()
    finally:
        handler_context.reset(token)


def test_ids_that_derive_from_content_are_those_of_a_caller_who_gave_it_all(use: Use, settings: Settings) -> None:
    use(adding)
    added = in_a_handler(lambda: publish("k", 1))
    assert in_a_handler(lambda: publish("k", 1)).pk == added.pk
    settings.MESSAGING = {"default": {}}
    assert in_a_handler(lambda: publish("k", 1, headers={"tenant": "acme"})).pk == added.pk
    assert in_a_handler(lambda: publish("k", 1)).pk != added.pk


def test_a_retry_is_not_published_anew(use: Use) -> None:
    def fail(message: ReceivedMessage) -> None:
        seen.append(dict(message.headers))
        raise ValueError

    use(adding)
    known = Registry()
    registered(known, fail, queue="work")
    processor = Processor("default", "worker-1", handlers=known)
    processor.process(sent(publish("work", 1, queue="work")), lambda: None)
    again = rows.get(round=2)
    processor.process(sent(again), lambda: None)
    assert seen == ["work", {"tenant": "acme"}, {"tenant": "acme"}]
    assert ProcessedMessage.objects.get().attempts == 2


# What it may do wrong


def choosy(get_outcome: Any) -> Any:
    def around(message: Message) -> Any:
        if message.routing_key == "bad":
            raise ValueError("bad is bad")
        if message.routing_key == "refused":
            raise PublishError("We do not say that.")
        if message.routing_key == "locked":
            raise OperationalError("deadlock")
        if message.routing_key == "dropped":
            return None
        if message.routing_key == "other":
            get_outcome(message)
            return PublishedMessage()
        return get_outcome(message)

    return around


@async_only_middleware
def choosy_async(get_outcome: Any) -> Any:
    async def around(message: Message) -> Any:
        if message.routing_key == "dropped":
            return None
        if message.routing_key == "bad":
            raise ValueError("bad is bad")
        return await get_outcome(message)

    return around


@pytest.mark.parametrize(
    ("key", "function", "error", "text"),
    [
        ("bad", "choosy", PublishError, r'"tests\.publishing\.test_surrounding\.choosy" .* failed: ValueError: bad is'),
        ("bad", "choosy_async", PublishError, r"choosy_async.* failed: ValueError: bad is"),
        ("refused", "choosy", PublishError, "^We do not say that"),
        ("locked", "choosy", OperationalError, "deadlock"),
        ("dropped", "choosy", PublishError, "choosy.* has to return what get_outcome"),
        ("dropped", "choosy_async", PublishError, "choosy_async.* has to return what get_outcome"),
        ("other", "choosy", PublishError, "choosy.* has to return what get_outcome"),
    ],
)
def test_its_errors_name_it_and_nothing_is_written(
    use: Use, key: str, function: str, error: type[Exception], text: str
) -> None:
    use(adding, globals()[function])
    with pytest.raises(error, match=text) as raised:
        publish(key, 1)
    assert not rows.exists()
    if error is OperationalError:
        assert "choosy" in raised.value.__notes__[0]


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError("its own")


@pytest.mark.parametrize("payload", [{"x": object()}, "\ud800"])
def test_errors_of_the_message_stay_its_own(use: Use, payload: Any) -> None:
    use(adding, in_async)
    with pytest.raises(PublishError) as raised:
        publish("k", payload)
    assert "MIDDLEWARE" not in str(raised.value)
    with pytest.raises(LookupError, match="its own"):
        publish("k", 1, message_id=Unspeakable())  # type: ignore[arg-type]


def test_what_is_no_message_does_not_reach_it(use: Use) -> None:
    use(adding)
    for wrong in (5, Message("k", 1, headers=5)):  # type: ignore[arg-type]
        with pytest.raises(PublishError, match=r"Message objects|must be a dict"):
            publish_many([wrong])  # type: ignore[list-item]
    assert seen == []


def test_one_that_is_not_there_is_a_setting_that_is_wrong(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"PUBLISH_MIDDLEWARE": ["no.such.module"]}}
    with pytest.raises(ConfigurationError, match=r'\["PUBLISH_MIDDLEWARE"\] names "no\.such\.module"'):
        publish("k", 1)
