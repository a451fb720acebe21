"""Writing a message in the admin: what is accepted can be sent, and what is not is said at its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from messaging.models import AuditRecord, PublishedMessage
from messaging.publishing.rows import seal
from tests.admin_rows import INCOMING, OUTGOING, outgoing, staff

pytestmark = pytest.mark.django_db
ADD = f"{OUTGOING}add/"


def form(**values: Any) -> dict[str, Any]:
    return {"using": "default", "routing_key": "orders.placed", "format": "json", "body": '{"order": 17}', **values}


def test_publishing_writes_a_pending_row_an_audit_record_and_log_entries(admin_client: Client) -> None:
    response = admin_client.post(ADD, form(headers='{"tenant": "acme", "n": 1}', mandatory="on", _publish="1"))
    row = PublishedMessage.objects.get()
    assert response.headers["Location"] == f"{OUTGOING}{row.pk}/change/"
    assert (row.state, row.exchange, row.routing_key) == ("pending", "messaging", "orders.placed")
    assert (row.body, row.content_type) == ('{"order": 17}', "application/json")
    assert (row.headers, row.mandatory) == ({"tenant": "acme", "n": 1}, True)
    assert row.due_at is not None
    assert row in PublishedMessage.objects.due("default")
    assert AuditRecord.objects.get().action == "publish"
    assert LogEntry.objects.count() == 2
    seal(row)


def test_a_draft_waits_until_it_is_published(admin_client: Client) -> None:
    admin_client.post(ADD, form(body='{"a":   1.50}', message_id="mine", priority="5", expiration="1.5", _draft="1"))
    draft = PublishedMessage.objects.get()
    assert (draft.state, draft.due_at, draft.message_id) == ("draft", None, "mine")
    assert (draft.priority, draft.expiration, draft.mandatory) == (5, 1500, False)
    url = f"{OUTGOING}{draft.pk}/change/"
    page = admin_client.get(url)
    assert "{&quot;a&quot;:   1.50}" in page.content.decode()
    again = {name: value for name, value in page.context["form"].initial.items() if value is not None}
    assert not again.pop("mandatory")
    admin_client.post(url, {**again, "body": '{"a": 2}', "_draft": "1"})
    draft.refresh_from_db()
    assert (draft.state, draft.body, draft.message_id, draft.priority, draft.expiration) == (
        "draft", '{"a": 2}', "mine", 5, 1500,
    )  # fmt: skip
    admin_client.post(url, {**again, "body": '{"a": 3}', "_publish": "1"})
    draft.refresh_from_db()
    assert (draft.state, draft.body) == ("pending", '{"a": 3}')
    assert PublishedMessage.objects.count() == 1
    late = admin_client.post(url, {**again, "body": '{"a": 4}', "_draft": "1"}, follow=True)
    assert late.status_code == 200
    draft.refresh_from_db()
    assert draft.body == '{"a": 3}'


def test_two_editors_of_a_draft_do_not_change_what_one_published(admin_client: Client) -> None:
    from messaging.admin import compose

    draft = outgoing("draft")
    stale = PublishedMessage.objects.get(pk=draft.pk)
    PublishedMessage.objects.filter(pk=draft.pk).update(state="pending")
    other = PublishedMessage(exchange="messaging", routing_key="x", body="changed", publish_at=timezone.now())
    assert not compose._write(other, stale, "default")
    draft.refresh_from_db()
    assert draft.body != "changed"


def test_a_scheduled_draft_is_due_at_its_time(admin_client: Client) -> None:
    admin_client.post(ADD, form(publish_at="2199-01-01T10:00", _publish="1"))
    assert not PublishedMessage.objects.exists()  # more than ten years ahead
    later = (timezone.now() + timezone.timedelta(days=2)).strftime("%Y-%m-%dT%H:%M")  # type: ignore[attr-defined]
    admin_client.post(ADD, form(publish_at=later, _draft="1"))
    draft = PublishedMessage.objects.get()
    page = admin_client.get(f"{OUTGOING}{draft.pk}/change/").content.decode()
    assert f'value="{later}:00"' in page
    admin_client.post(f"{OUTGOING}{draft.pk}/publish/")
    draft.refresh_from_db()
    assert draft.state == "pending"
    assert draft.due_at == draft.publish_at
    assert draft not in PublishedMessage.objects.due("default")
    assert "It will be sent in" in admin_client.get(f"{OUTGOING}{draft.pk}/change/").content.decode()


def test_text_goes_as_text_and_straight_to_a_queue(admin_client: Client) -> None:
    admin_client.post(ADD, form(format="text", body="Hello\r\nWorld", queue="hello", routing_key="", _publish="1"))
    row = PublishedMessage.objects.get()
    assert (row.queue, row.exchange, row.routing_key) == ("hello", "", "hello")
    assert (row.body, row.content_type) == ("Hello\nWorld", "text/plain; charset=utf-8")
    assert seal(row)[:2] == ("", "hello")


def test_text_is_encoded_as_its_content_type_says(admin_client: Client) -> None:
    data = form(format="text", body="中文", content_type="text/plain; charset=gb18030", _draft="1")
    admin_client.post(ADD, data)
    row = PublishedMessage.objects.get()
    assert row.raw_body == "中文".encode("gb18030")
    page = admin_client.get(f"{OUTGOING}{row.pk}/change/").content.decode()
    assert 'name="_draft"' not in page  # the form could not hold it
    assert f"{OUTGOING}{row.pk}/publish/" in page


@pytest.mark.parametrize(
    ("values", "field", "text"),
    [
        ({"body": "{broken"}, "body", "line 1, column 2"),
        ({"body": ""}, "body", "not valid JSON"),
        ({"body": "NaN"}, "body", "NaN is not a JSON number"),
        ({"body": "[" * 100_000}, "body", "not valid JSON"),
        ({"body": "9" * 5000}, "body", "not valid JSON"),
        ({"body": "a\x00b", "format": "text"}, "body", "Null characters"),
        ({"headers": "[1]"}, "headers", "must be a JSON object"),
        ({"headers": "{"}, "headers", "not valid JSON"),
        ({"headers": '{"a": ' * 500 + "1" + "}" * 500}, "headers", "deep"),
        ({"headers": '{"a": 99999999999999999999}'}, "headers", "64 bits"),
        ({"headers": '{"a": "\\ud800"}'}, "headers", "surrogate"),
        ({"headers": '{"\\ud800": 1}'}, "headers", "surrogate"),
        ({"headers": '{"' + "x" * 300 + '": 1}'}, "headers", "AMQP allows 255"),
        ({"headers": '{"a": Infinity}'}, "headers", "Infinity is not a JSON number"),
        ({"headers": '{"x-messaging-round": 9}'}, None, "is for this app alone"),
        ({"routing_key": "k" * 256}, "routing_key", "256 bytes; AMQP allows 255"),
        ({"routing_key": "中" * 100}, "routing_key", "300 bytes; AMQP allows 255"),
        ({"routing_key": "a\x00"}, "routing_key", "Null characters"),
        ({"routing_key": ""}, "routing_key", "Give a routing key or a queue"),
        ({"queue": "q", "exchange": "e"}, "queue", "Give either"),
        ({"queue": "q" * 300}, "queue", "AMQP allows 255"),
        ({"exchange": "é" * 200}, "exchange", "AMQP allows 255"),
        ({"message_id": "m" * 256}, "message_id", "AMQP allows 255"),
        ({"priority": "256"}, "priority", "255"),
        ({"priority": "x"}, "priority", "whole number"),
        ({"expiration": "-1"}, "expiration", "0"),
        ({"expiration": "nan"}, "expiration", "number"),
        ({"expiration": "1e30"}, "expiration", "less than"),
        ({"publish_at": "yesterday"}, "publish_at", "valid date"),
        ({"publish_at": "9999-12-31T23:59"}, "publish_at", "ten years"),
        ({"format": "xml"}, "format", "valid choice"),
        ({"using": "nowhere"}, "using", "valid choice"),
        ({"format": "text", "content_type": "text/plain; charset=ascii", "body": "é"}, None, "cannot be encoded"),
        ({"format": "text", "content_type": "text/plain; charset=nonsense"}, None, "cannot be encoded"),
    ],
)
def test_bad_input_is_said_at_its_field_and_nothing_is_saved(
    admin_client: Client, values: dict[str, Any], field: str | None, text: str
) -> None:
    for button in ("_publish", "_draft"):
        response = admin_client.post(ADD, {**form(**values), button: "1"})
        assert response.status_code == 200
        errors = response.context["form"].errors
        assert errors
        if field:
            assert text in str(errors[field])
        assert text in str(errors)
        assert "Nothing was saved" in response.content.decode()
        assert not PublishedMessage.objects.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"headers": '{"a": "\\u0000"}'}, {"body": '"\\ud800"'}, {"queue": "does-not-exist", "routing_key": ""},
        {"exchange": "nowhere"}, {"publish_at": "0001-01-01T00:00"}, {"body": "1"}, {"body": "null"},
        {"format": "text", "body": ""}, {"headers": '{"a": null, "b": [1, {"c": 1.5}]}'}, {"routing_key": "k" * 255},
        {"expiration": "0"}, {"content_type": "application/vnd.x+json"}, {"exchange": "'; DROP TABLE x; --"},
    ],
)  # fmt: skip
def test_what_is_odd_but_can_be_sent_is_sent(admin_client: Client, values: dict[str, Any]) -> None:
    response = admin_client.post(ADD, form(**values, _publish="1"), follow=True)
    assert response.status_code == 200
    row = PublishedMessage.objects.get()
    assert row.state == "pending"
    seal(row)


def test_errors_inside_folded_fields_are_unfolded(admin_client: Client) -> None:
    assert "<details" in admin_client.get(ADD).content.decode()
    assert "<details" not in admin_client.post(ADD, form(priority="x")).content.decode()


def test_an_address_can_fill_in_the_destination(admin_client: Client) -> None:
    page = admin_client.get(f"{ADD}?queue=billing%22%3E&body=ignored").content.decode()
    assert 'value="billing&quot;&gt;"' in page
    assert "ignored" not in page


def test_writing_takes_its_permission() -> None:
    client = staff("view_publishedmessage")
    assert client.get(ADD).status_code == 403
    assert client.post(ADD, form(_publish="1")).status_code == 403
    assert ADD not in client.get(OUTGOING).content.decode()
    draft = outgoing("draft")
    page = client.get(f"{OUTGOING}{draft.pk}/change/").content.decode()
    assert 'name="_publish"' not in page
    client.post(f"{OUTGOING}{draft.pk}/change/", form(_publish="1"))
    draft.refresh_from_db()
    assert draft.state == "draft"


def test_a_writer_without_the_right_to_see_payloads_does_not_see_a_drafts_body() -> None:
    draft = outgoing("draft", body=b'{"secret": 1}')
    client = staff("view_publishedmessage", "publish_publishedmessage")
    page = client.get(f"{OUTGOING}{draft.pk}/change/").content.decode()
    assert "secret" not in page
    assert f"{OUTGOING}{draft.pk}/publish/" in page


def test_a_writer_who_may_see_nothing_else_comes_back_to_the_index() -> None:
    client = staff("publish_publishedmessage")
    assert client.get(ADD).status_code == 200
    assert client.post(ADD, form(_publish="1")).headers["Location"] == "/admin/"
    assert PublishedMessage.objects.get().state == "pending"
    assert client.get(INCOMING).status_code == 403


def test_several_brokers_can_be_chosen_from(settings: Any, admin_client: Client) -> None:
    settings.MESSAGING = {"default": {}, "partner": {"EXCHANGE": "theirs"}}
    assert '<select name="using"' in admin_client.get(ADD).content.decode()
    admin_client.post(ADD, form(using="partner", _publish="1"))
    row = PublishedMessage.objects.get()
    assert (row.alias, row.exchange) == ("partner", "theirs")


def test_headers_that_json_cannot_hold_are_not_lost_by_the_form(admin_client: Client) -> None:
    from messaging import publish

    row = publish("x", {"a": 1}, headers={"raw": b"\xff"})
    PublishedMessage.objects.filter(pk=row.pk).update(state="draft")
    page = admin_client.get(f"{OUTGOING}{row.pk}/change/").content.decode()
    assert 'name="_draft"' not in page
    assert json.dumps({"!bytes": "/w=="}).replace('"', "&quot;") in page


def test_a_draft_that_is_too_large_for_a_form_has_a_page_with_its_beginning(admin_client: Client) -> None:
    row = outgoing("draft", body=b"x" * 3_000_000, content_type="text/plain")
    response = admin_client.get(f"{OUTGOING}{row.pk}/change/")
    assert "form" not in response.context
    assert len(response.content) < 200_000
    assert "only the beginning is shown" in response.content.decode()
    assert f"{row.pk}/publish/" in response.content.decode()
