"""What was published in a test, and the words in which an assertion about it fails."""

from __future__ import annotations

import datetime
from decimal import Decimal
from unittest.mock import ANY

import pytest
from django.db import transaction

from messaging import Message, publish, publish_many
from messaging.exceptions import ConfigurationError
from messaging.models import PublishedMessage
from messaging.testing import assert_not_published, assert_published, published

pytestmark = pytest.mark.django_db


def keys(rows: list[PublishedMessage]) -> list[str]:
    return [row.routing_key for row in rows]


def test_what_was_published_is_listed_in_order_whether_it_is_due_or_not() -> None:
    publish("orders.placed", {"order": 1}, delay=3600)
    publish_many([Message("orders.paid", {"order": 1}), Message("mail.sent", "Hello", queue="mail")])
    publish("stock.taken", b"\x00", exchange="their.exchange")
    assert keys(published()) == ["orders.placed", "orders.paid", "mail.sent", "stock.taken"]
    assert keys(published("orders.*")) == ["orders.placed", "orders.paid"]
    assert keys(published("orders.paid")) == ["orders.paid"]
    assert keys(published(queue="mail")) == ["mail.sent"]
    assert keys(published(exchange="their.exchange")) == ["stock.taken"]
    assert [row.payload for row in published()] == [{"order": 1}, {"order": 1}, "Hello", b"\x00"]


def test_drafts_and_what_was_rolled_back_are_not_published() -> None:
    PublishedMessage.objects.create(routing_key="a.draft", message_id="1", state="draft")
    with transaction.atomic():
        publish("rolled.back", 1)
        assert keys(published()) == ["rolled.back"]
        transaction.set_rollback(True)
    assert published() == []
    assert_not_published()


def test_an_unknown_alias_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no alias"):
        published(using="elsewhere")


def test_the_matching_rows_are_returned_in_order() -> None:
    rows = [publish("orders.placed", {"order": number}) for number in (17, 18)]
    publish("orders.cancelled", {"order": 17})
    assert assert_published("orders.placed") == rows
    assert assert_published("orders.placed", {"order": 18}, count=1) == rows[1:]
    assert assert_published("orders.*", {"order": 17}, count=2) == [rows[0], published()[2]]
    assert len(assert_published()) == 3
    assert_published("orders.shipped", count=0)
    assert_not_published("orders.placed", {"order": 19})
    assert_not_published("orders.shipped")


def test_a_payload_is_compared_as_it_arrives_and_any_part_may_be_left_open() -> None:
    day = datetime.date(2026, 3, 1)
    publish("orders.placed", {"order": 17, "day": day, "sum": Decimal("9.90"), "lines": (1, 2), "by": {"id": 4}})
    assert_published("orders.placed", {"order": 17, "day": day, "sum": Decimal("9.90"), "lines": (1, 2), "by": ANY})
    assert_published("orders.placed", {"order": ANY, "day": day, "sum": "9.90", "lines": [1, 2], "by": {"id": ANY}})
    publish("nothing", None)
    assert_published("nothing", None)
    assert_not_published("orders.placed", None)


def test_headers_and_other_fields_are_compared_where_they_are_named() -> None:
    moment = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    headers = {"tenant": "north", "trace": b"\x01", "at": moment}
    publish("mail.sent", "Hello", queue="mail", headers=headers, correlation_id="c-1", priority=5)
    assert_published("mail.sent", headers={"tenant": "north"}, queue="mail", correlation_id="c-1", priority=5)
    assert_published(exchange="", type="")
    assert_not_published(exchange="messaging")
    assert_not_published(priority=None)
    assert_published(headers=headers)
    assert_published(headers={"tenant": ANY})
    assert_not_published(headers={"tenant": "south"})
    assert_not_published(headers={"absent": ANY})
    assert_not_published(queue="post")


def test_a_misspelt_field_is_not_taken_for_a_difference() -> None:
    with pytest.raises(TypeError, match=r"no field 'que'; it has .*queue"):
        assert_not_published("orders.placed", que="mail")


def test_a_failure_shows_what_was_published_and_what_comes_nearest() -> None:
    publish("orders.cancelled", {"order": 3})
    publish("orders.placed", {"order": 17, "lines": [{"item": "tea", "count": 1}]})
    publish("mail.sent", "Hello", queue="mail")
    with pytest.raises(AssertionError) as failed:
        assert_published("orders.placed", {"order": 17, "lines": [{"item": "tea", "count": 2}], "by": "Ann"})
    first, *others = str(failed.value).splitlines()
    assert first.startswith('No message with routing key "orders.placed", payload {"order": 17, "lines": [{')
    assert first.endswith('"by": "Ann"} was published.')
    assert others == [
        "The nearest is number 2:",
        "    payload['lines'][0]['count'] is 1, not 2",
        "    payload['by'] is missing; it should be \"Ann\"",
        "Published were:",
        '    1. orders.cancelled: {"order": 3}',
        '    2. orders.placed: {"order": 17, "lines": [{"item": "tea", "count": 1}]}',
        '    3. mail.sent (queue "mail"): "Hello"',
    ]


def test_a_misspelt_routing_key_is_recognised_as_nearest() -> None:
    publish("stock.taken", {"order": 17})
    publish("order.placed", {"order": 17})
    with pytest.raises(AssertionError, match=r'number 2:\n    routing_key is "order.placed", not "orders.placed"\n'):
        assert_published("orders.placed", {"order": 17})


def test_a_failure_is_short_however_much_was_published() -> None:
    publish_many([Message("orders.placed", "x" * 10_000) for _ in range(100)])
    with pytest.raises(AssertionError) as failed:
        assert_published("orders.paid", "y" * 10_000)
    lines = str(failed.value).splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 300
    assert lines[-1] == "    and 80 more"


def test_a_wrong_number_is_told() -> None:
    publish("orders.placed", {"order": 17})
    with pytest.raises(AssertionError, match=r'^1 message with routing key "orders.placed" was published, not 2.\n'):
        assert_published("orders.placed", count=2)
    with pytest.raises(AssertionError, match=r"^No messages with payload 1 were published, not 2.\n"):
        assert_published(payload=1, count=2)


def test_a_failure_says_so_when_nothing_was_published() -> None:
    with pytest.raises(
        AssertionError, match=r'^No message with routing key "a" was published\.\nNothing was published\.$'
    ):
        assert_published("a")


def test_a_message_that_should_not_be_there_is_shown() -> None:
    publish("orders.placed", {"order": 17})
    with pytest.raises(AssertionError) as failed:
        assert_not_published("orders.#")
    assert (
        str(failed.value) == '1 message with routing key "orders.#" was published:\n    1. orders.placed: {"order": 17}'
    )


def test_a_body_that_is_not_what_its_content_type_says_is_shown_as_it_is() -> None:
    publish("orders.placed", b"not json", content_type="application/json")
    with pytest.raises(AssertionError, match=r"orders\.placed: b'not json'"):
        assert_published("orders.placed", {"order": 17})
    assert_published("orders.placed", b"not json")
