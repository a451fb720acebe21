"""The page that edits a failed message: who may, what it shows before anything is done, what it says of the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.checks import run_checks
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from messaging import conf
from messaging.exceptions import ConfigurationError
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage
from tests.admin_rows import INCOMING, incoming, inline_code, staff

pytestmark = pytest.mark.django_db
ALL = ("view_processedmessage", "view_payload_processedmessage", "edit_requeue_processedmessage")


@pytest.fixture(autouse=True)
def _switched_on(settings: Settings) -> None:
    settings.MESSAGING_CONSOLE = {"EDIT": True}


def url(row: Any, page: str = "edit") -> str:
    return f"{INCOMING}{row.pk}/{page}/"


def data(row: Any, **values: Any) -> dict[str, Any]:
    return {"seen": row.round, "body": '{"order": 18}', "headers": '{"tenant": "acme"}', **values}


def text_of(response: Any) -> str:
    return str(response.content.decode())


def test_shows_the_change_before_it_is_done_then_does_it_and_tells_it(admin_client: Client) -> None:
    row = incoming(body=b'{"order":17,"price":1.50}')
    page = text_of(admin_client.get(url(row)))
    assert "{\n  &quot;order&quot;: 17,\n  &quot;price&quot;: 1.50\n}" in page
    changed = data(row, body='{\r\n  "order": 17,\r\n  "price": 2.50\r\n}', _look="1")
    shown = text_of(admin_client.post(url(row), changed))
    assert "-  &quot;price&quot;: 1.50" in shown
    assert "+  &quot;price&quot;: 2.50" in shown
    assert not PublishedMessage.objects.exists()
    assert not inline_code(shown)
    [body] = re.findall(r'<textarea name="body" hidden>\n(.*?)</textarea>', shown, re.DOTALL)
    again = {**changed, "body": body.replace("&quot;", '"'), "_confirm": "1", "reason": "price"}
    answer = admin_client.post(url(row), again, follow=True)
    copy = ProcessedMessage.objects.get(edited_from=row)
    assert answer.redirect_chain[-1][0] == url(copy, "change")
    assert copy.body == '{\n  "order": 17,\n  "price": 2.50\n}'
    assert f'href="{url(row, "change")}"' in text_of(answer), "where it came from"
    before = text_of(admin_client.get(url(row, "change")))
    assert f'href="{url(copy, "change")}"' in before
    assert "msg-diff-new" in before
    assert "edited and requeued" in before.lower()
    assert (AuditRecord.objects.get().reason, LogEntry.objects.get().object_id) == ("price", str(row.pk))


@pytest.mark.parametrize("missing", ALL)
def test_takes_the_right_and_the_right_to_see_the_payload(missing: str) -> None:
    row = incoming()
    assert staff(*ALL, name="all").get(url(row)).status_code == 200
    client = staff(*set(ALL) - {missing})
    assert client.get(url(row)).status_code == 403
    assert client.post(url(row), data(row, _confirm="1")).status_code == 403
    if missing != ALL[0]:
        assert url(row) not in text_of(client.get(url(row, "change")))
    assert not PublishedMessage.objects.exists()


@pytest.mark.parametrize("console_settings", [{}, {"EDIT": False}, {"EDIT": "yes"}, None])
def test_is_off_unless_the_site_says_otherwise(admin_client: Client, settings: Settings, console_settings: Any) -> None:
    settings.MESSAGING_CONSOLE = console_settings
    row = incoming()
    assert admin_client.get(url(row)).status_code == 403
    assert url(row) not in text_of(admin_client.get(url(row, "change")))


def test_is_offered_where_it_can_be_done(admin_client: Client) -> None:
    assert url(row := incoming()) in text_of(admin_client.get(url(row, "change")))
    assert url(other := incoming("processed")) not in text_of(admin_client.get(url(other, "change")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"body": "{"}, "The body is not valid JSON"),
        ({"headers": "[]"}, "must be a JSON object"),
        ({"headers": '{"traceparent": "00"}'}, "cannot be set here"),
        ({"headers": '{"x-messaging-round": 7}'}, "cannot be set here"),
        ({"headers": '{"n": NaN}'}, "not a JSON number"),
        ({"body": '{\n  "order": 17\n}'}, "Nothing was changed"),
    ],
)
def test_what_cannot_be_sent_is_said_and_nothing_is_done(
    admin_client: Client, values: dict[str, str], said: str
) -> None:
    row = incoming()
    page = text_of(admin_client.post(url(row), data(row, **values, _confirm="1")))
    assert said in page
    assert not PublishedMessage.objects.exists()
    assert ProcessedMessage.objects.get().state == "failed"


def test_what_is_no_json_although_it_should_be_can_be_corrected(admin_client: Client) -> None:
    row = incoming(body=b'{"order": 17')
    assert "{&quot;order&quot;: 17</textarea>" in text_of(admin_client.get(url(row)))
    admin_client.post(url(row), data(row, body='{"order": 17}', _confirm="1"))
    assert ProcessedMessage.objects.get(edited_from=row).body == '{"order": 17}'


def test_says_why_nothing_can_be_edited(admin_client: Client) -> None:
    assert "never received" in text_of(admin_client.get(url(incoming(wire=None))))
    assert "it is processed" in text_of(admin_client.get(url(incoming("processed"))))


def test_what_changed_meanwhile_is_skipped(admin_client: Client) -> None:
    row = incoming()
    ProcessedMessage.objects.update(round=2)
    answer = admin_client.post(url(row), data(row, _confirm="1"), follow=True)
    assert "it changed meanwhile" in text_of(answer)
    assert not PublishedMessage.objects.exists()


def test_goes_back_to_the_form_with_what_was_typed(admin_client: Client) -> None:
    row = incoming()
    page = text_of(admin_client.post(url(row), data(row, body='{"order": 99}', _further="1")))
    assert "{&quot;order&quot;: 99}</textarea>" in page
    assert 'name="_look"' in page


def test_costs_few_queries(admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    row = incoming()
    with django_assert_max_num_queries(10):
        admin_client.get(url(row))
    admin_client.post(url(row), data(row, _confirm="1"))
    for one in ProcessedMessage.objects.all():
        with django_assert_max_num_queries(10):
            admin_client.get(url(one, "change"))


def test_the_setting_is_checked(settings: Settings) -> None:
    settings.MESSAGING_CONSOLE = {"EDT": True}
    [found] = [one for one in run_checks() if one.id == "messaging.E013"]
    assert '"EDIT"' in (found.hint or "")
    with pytest.raises(ConfigurationError, match="EDT"):
        conf.console()
    settings.MESSAGING_CONSOLE = ["EDIT"]
    assert "messaging.E013" in [one.id for one in run_checks()]
