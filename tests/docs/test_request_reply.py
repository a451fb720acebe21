"""docs/how-to/request-reply.md: a question that is answered by a consumer, on a real broker and without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from django.db import transaction
from pytest_django import Settings

from messaging import publish
from messaging.backends import get_backend
from messaging.handlers import registry
from messaging.models import PublishedMessage
from messaging.testing import ask
from tests.consumers import consuming
from tests.docs.blocks import DOCS, blocks_of, find
from tests.docs.test_snippets import run
from tests.relays import relaying
from tests.waiting import wait_until

PAGE = DOCS / "how-to" / "request-reply.md"


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's first handler is the only one."""
    monkeypatch.setattr(registry, "_handlers", {})
    run(next(block for block in blocks_of(PAGE) if block.kind == "handlers"))


@contextmanager
def answering() -> Iterator[None]:
    """A consumer and a relay in threads."""
    with consuming("prices"), relaying():
        yield


@pytest.fixture(params=[pytest.param("rabbitmq", marks=pytest.mark.broker), "embedded"])
def broker(request: pytest.FixtureRequest, settings: Settings, transactional_db: None) -> str:
    """Each broker in turn; its URL."""
    url = request.getfixturevalue("vhost_url") if request.param == "rabbitmq" else "database://"
    settings.MESSAGING = {"default": {"URL": url, "POLL_INTERVAL": 0.05, "LEASE": 3}}
    return str(url)


def test_a_script_waits_for_its_answer_and_leaves_no_queue(broker: str, shop: None) -> None:
    (block,) = find("ask")
    with answering():
        assert run(block) == "{'sku': 'A-17', 'price': 1200}\n"
        with pytest.raises(TimeoutError, match=r"No answer to 'nobody' within 0\.1 seconds"):
            ask("nobody", 1, timeout=0.1, queue="nobody", mandatory=False)
        queues = PublishedMessage.objects.exclude(reply_to="").values_list("reply_to", flat=True)
        assert len(set(queues)) == 2
        assert [depth.exists for depth in get_backend("default").depths(queues)] == [False, False]


@pytest.mark.broker
def test_a_client_that_waits_by_direct_reply_to_is_answered(
    vhost_url: str, settings: Settings, transactional_db: None, shop: None
) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "POLL_INTERVAL": 0.05}}
    got: list[Any] = []
    with answering(), pika.BlockingConnection(pika.URLParameters(vhost_url)) as connection:
        channel = connection.channel()
        channel.basic_consume("amq.rabbitmq.reply-to", lambda *given: got.append(given[2:]), auto_ack=True)
        properties = pika.BasicProperties(
            reply_to="amq.rabbitmq.reply-to", correlation_id="talk", content_type="application/json"
        )
        channel.basic_publish("messaging", "prices.asked", b'{"sku": "A-17"}', properties)
        wait_until(lambda: connection.process_data_events(time_limit=0) or got, what="the answer")
        ((found, body),) = got
        assert (found.correlation_id, body) == ("talk", b'{"sku":"A-17","price":1200}')
        row = PublishedMessage.objects.get()
        wait_until(lambda: PublishedMessage.objects.get(pk=row.pk).state == "published")


@pytest.mark.broker
def test_an_answer_for_nobody_troubles_nobody(
    vhost_url: str, settings: Settings, transactional_db: None, shop: None
) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "POLL_INTERVAL": 0.05}}
    with answering():
        publish("prices.asked", {"sku": "A-17"}, reply_to="gone")
        wait_until(lambda: PublishedMessage.objects.filter(queue="gone", state="published", attempts=1).exists())


@pytest.mark.django_db
def test_without_a_broker_the_answer_is_among_what_was_published(shop: None) -> None:
    names: dict[str, Any] = {}
    (block,) = find("replies")
    run(block, names)
    names["test_a_price_is_told"]()


@pytest.mark.django_db
def test_inside_a_transaction_nobody_would_be_asked() -> None:
    with transaction.atomic(), pytest.raises(RuntimeError, match="only after its end"):
        ask("prices.asked", 1)
    assert not PublishedMessage.objects.exists()
