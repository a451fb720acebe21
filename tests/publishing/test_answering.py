"""Answers go to whom the question names, within the handler's transaction; strangers' names are not believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from pytest_django import Settings

from messaging import aanswer, answer, publish
from messaging.exceptions import PublishError
from messaging.handlers import Registry, registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from messaging.publishing.rows import seal
from messaging.wire.properties import Properties
from tests.deliveries import Arrived, arrived, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
rows = PublishedMessage.objects.filter(round=1)


def tell(message: ReceivedMessage) -> None:
    answer(message, {"price": 17}, headers={"n": 1}, type="price")


def handled(delivery: Arrived, function: Callable[..., Any] = tell, **options: Any) -> ProcessedMessage:
    known = Registry()
    own = registered(known, function, **options)
    processor = Processor(own.using, "worker-1", handlers=known)
    if own.batch is not None:
        processor.process_batch(own, [delivery])
    else:
        processor.process(delivery, lambda: None)
    return ProcessedMessage.objects.latest("pk")


def test_an_answer_goes_straight_to_the_queue_with_the_same_correlation_id() -> None:
    handled(arrived(message_id="asked", reply_to="asker", correlation_id="talk"))
    row = rows.get()
    exchange, routing_key, properties, body = seal(row)
    found = Properties.decode(properties)
    assert (exchange, routing_key, body) == ("", "asker", b'{"price":17}')
    assert (found.correlation_id, found.type, found.headers["n"]) == ("talk", "price", 1)
    assert not [name for name in found.headers if "routing" in name or "nonce" in name]
    assert (row.causation_id, row.mandatory, row.state) == ("asked", False, "pending")


async def tell_async(message: ReceivedMessage) -> None:
    row = await aanswer(message, 1)
    assert row.queue == "asker"
    assert row.pk is not None


def tell_each(messages: list[ReceivedMessage]) -> None:
    for message in messages:
        answer(message, 1)


def tell_twice(message: ReceivedMessage) -> None:
    answer(message, 1)
    if message.attempt == 1:
        raise ValueError


@pytest.mark.parametrize("options", [{"function": tell_async}, {"function": tell_each, "batch": 10}, {"atomic": False}])
def test_without_a_correlation_id_the_questions_own_id_is_it(options: dict[str, Any]) -> None:
    handled(arrived(message_id="asked", reply_to="asker"), **options)
    assert (rows.get().queue, rows.get().correlation_id) == ("asker", "asked")


def test_without_any_id_it_has_none() -> None:
    handled(arrived(message_id=None, reply_to="asker"))
    assert rows.get().correlation_id == ""


def test_an_answer_is_taken_back_with_the_handlers_transaction() -> None:
    handled(arrived(reply_to="asker"), tell_twice)
    assert not rows.exists()


def test_without_a_transaction_it_is_there_once_however_often_the_handler_runs() -> None:
    known = Registry()
    registered(known, tell_twice, atomic=False)
    processor = Processor("default", "worker-1", handlers=known)
    processor.process(arrived(reply_to="asker"), lambda: None)
    processor.process(sent(PublishedMessage.objects.get(round=2)), lambda: None)
    assert ProcessedMessage.objects.get().state == "processed"
    assert rows.count() == 1


def test_it_takes_the_way_on_which_the_question_came(settings: Settings) -> None:
    settings.MESSAGING = {"default": {}, "partner": {}}
    handled(arrived(reply_to="asker"), using="partner")
    assert rows.get().alias == "partner"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({}, "has no reply_to"),
        ({"reply_to": "two\nlines"}, "cannot be the name"),
        ({"reply_to": "asker\n"}, "cannot be the name"),
        ({"reply_to": "nul\0"}, "cannot be the name"),
        ({"reply_to": "\udcff"}, "cannot be the name"),
        ({"reply_to": "amq.rabbitmq.reply-to"}, "cannot be the name"),
        ({"reply_to": "work"}, "its own queue"),
        ({"reply_to": "known.dead"}, "dead letters"),
        ({"reply_to": "asker", "correlation_id": "\udcff"}, "cannot be sent back"),
        ({"reply_to": "asker", "correlation_id": "a\0"}, "cannot be sent back"),
    ],
)
def test_what_a_stranger_wrote_fails_the_message_at_once_in_words(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], text: str
) -> None:
    monkeypatch.setattr(registry, "_handlers", {})
    registered(registry, tell, queue="known")
    row = handled(arrived(**wrong))
    assert (row.state, row.attempts, row.exception_type) == ("failed", 1, "messaging.exceptions.Reject")
    assert text in row.error
    assert not rows.exists()


def test_it_can_be_an_error_that_nobody_takes_it_but_for_a_waiting_client() -> None:
    def insist(message: ReceivedMessage) -> None:
        answer(message, 1, mandatory=True)

    handled(arrived(reply_to="shop.prices"), insist)
    handled(arrived(reply_to="amq.rabbitmq.reply-to.g1h2AA5y"), insist)
    assert dict(rows.values_list("queue", "mandatory")) == {
        "shop.prices": True,
        "amq.rabbitmq.reply-to.g1h2AA5y": False,
    }


def test_outside_of_a_handler_the_way_is_told() -> None:
    message = ReceivedMessage(arrived(reply_to="asker").envelope, queue="work")
    with pytest.raises(PublishError, match=r"queue=message\.reply_to"):
        answer(message, 1)
    assert publish("asker", 1, queue=message.reply_to).queue == "asker"


def test_in_an_async_handler_the_plain_one_is_called_from_a_thread() -> None:
    async def run(message: ReceivedMessage) -> None:
        await sync_to_async(answer)(message, 1)

    handled(arrived(reply_to="asker"), run)
    assert rows.get().queue == "asker"
