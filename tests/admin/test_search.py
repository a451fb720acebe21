"""Searching the lists: values in payloads, and by what else one can filter; what it costs and what it must not tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.admin import filters, search
from messaging.models import ProcessedMessage
from messaging.monitoring import readings
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, OUTGOING, incoming, inline_code, outgoing, staff

pytestmark = pytest.mark.django_db
on_postgres = pytest.mark.skipif(connection.vendor != "postgresql", reason="payloads are searched in PostgreSQL")


@pytest.fixture(autouse=True)
def _settings(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(search, "PATIENCE", 60)
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True}
    readings.forget()
    yield
    readings.forget()


def hide(value: Any, **about: Any) -> Any:
    return {**value, "card": "***"} if about["part"] == "payload" else value


def found(client: Client, page: str, **query: str) -> list[int]:
    response = client.get(page, query)
    assert response.status_code == 200
    assert inline_code(response.content.decode()) == []
    return [row.pk for row in response.context["cl"].result_list]


def of(**payload: Any) -> bytes:
    return json.dumps(payload).encode()


@pytest.mark.parametrize(
    ("term", "path", "values"),
    [
        ("order.id:17", ("order", "id"), (17, "17")),
        ("order.id: 17", ("order", "id"), (17, "17")),
        ('order.id:"17"', ("order", "id"), ("17",)),
        ("status:paid in full", ("status",), ("paid in full",)),
        ("at:10:30", ("at",), ("10:30",)),
        ("done:true", ("done",), (True, "true")),
        ("gone:null", ("gone",), (None, "null")),
        ("items[].sku:A-1", ("items", "[]", "sku"), ("A-1",)),
        ("[].sku:A-1", ("[]", "sku"), ("A-1",)),
        ("naïve-key.中:文", ("naïve-key", "中"), ("文",)),
        ("n:NaN", ("n",), ("NaN",)),
        ("n:[1]", ("n",), ("[1]",)),
    ],
)
def test_a_term_names_a_path_and_a_value(term: str, path: tuple[str, ...], values: tuple[Any, ...]) -> None:
    what = search.wanted(term)
    assert what is not None
    assert what.path == path
    assert [(type(value), value) for value in what.values] == [(type(value), value) for value in values]
    for pattern, value in zip(what.patterns, values, strict=True):
        assert what.is_in(json.loads(pattern)), (pattern, value)


@pytest.mark.parametrize(
    "term", ["", "plain", "orders.", ":17", "a:", "a b:1", "a..b:1", ".a:1", "a[0]:1", "x" * 300, "a.b" * 50 + ":1"]
)
def test_other_terms_are_none(term: str) -> None:
    what = search.wanted(term)
    assert what is None or len(what.path) <= search.DEEPEST


def test_a_value_is_not_one_of_another_kind() -> None:
    assert not search.Wanted(("a",), (1,)).is_in({"a": True})
    assert search.Wanted(("a",), (1,)).is_in({"a": 1.0})
    assert not search.Wanted(("a",), ("1",)).is_in({"a": 1})
    assert not search.Wanted(("a", "[]"), ("1",)).is_in({"a": "1"})
    assert not search.Wanted(("a", "b"), (1,)).is_in([1])


@on_postgres
@pytest.mark.parametrize("make", [incoming, outgoing])
def test_values_in_payloads_are_found(make: Any, admin_client: Client) -> None:
    page = INCOMING if make is incoming else OUTGOING
    state = "processed" if make is incoming else "published"
    rows = [
        make(state, body=of(order={"id": 17, "note": "中"})),
        make(state, body=of(order={"id": "17"}, done=True)),
        make(state, body=of(items=[{"sku": "A-1"}, {"sku": "B"}])),
        make(state, body=b'{"text": "nul \\u0000"}'),
        make(state, body=b"{broken"),
        make(state, body=b"order.id:17", content_type="text/plain"),
        make(state, body=b"\x00\xff"),
        make(state, body=of(big="x" * 140_000, order={"id": 17})),
        make(state, body=b""),
    ]  # fmt: skip
    expected = {
        "order.id:17": [1, 0], 'order.id:"17"': [1], "order.note:中": [0], "done:true": [1], "items[].sku:A-1": [2],
        "order.id:18": [], "items.sku:A-1": [], "order:17": [],
    }  # fmt: skip
    for term, numbers in expected.items():
        assert found(admin_client, page, q=term) == [rows[number].pk for number in numbers], term
    assert found(admin_client, page, q="order.id:17", state="failed") == []


@on_postgres
def test_an_id_with_a_colon_is_still_found(admin_client: Client) -> None:
    old = incoming("processed", message_id="order:17", body=of(order=18))
    ProcessedMessage.objects.filter(pk=old.pk).update(received_at=timezone.now() - timedelta(days=9))
    new = incoming("processed", body=of(order=17))
    assert found(admin_client, INCOMING, q="order:17") == [new.pk, old.pk]


@on_postgres
def test_the_time_window_is_kept_and_said(admin_client: Client) -> None:
    row = incoming("processed", body=of(n=1))
    ProcessedMessage.objects.filter(pk=row.pk).update(received_at=timezone.now() - timedelta(days=3))
    assert found(admin_client, INCOMING, q="n:1") == []
    assert "past 24 hours" in admin_client.get(INCOMING, {"q": "n:1"}).content.decode()
    assert found(admin_client, INCOMING, q="n:1", period="7d") == [row.pk]
    assert "past 7 days" in admin_client.get(INCOMING, {"q": "n:1", "period": "7d"}).content.decode()


@on_postgres
def test_many_are_shown_as_the_newest_and_a_page_at_a_time(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST", 60)
    rows = [incoming("processed", body=of(n=1)) for _ in range(62)]
    newest = [row.pk for row in reversed(rows)]
    assert found(admin_client, INCOMING, q="n:1") == newest[:50]
    assert found(admin_client, INCOMING, q="n:1", p="2") == newest[50:60]
    assert "Only the newest 60 messages" in admin_client.get(INCOMING, {"q": "n:1"}).content.decode()


@on_postgres
def test_a_search_that_takes_too_long_is_cut_off_and_says_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming("processed", body=of(n=1))
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE OR REPLACE FUNCTION messaging_payload(body text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT "
            "AS $$ BEGIN PERFORM pg_sleep(60); RETURN '{}'; END $$"
        )
    monkeypatch.setattr(search, "PATIENCE", 1)
    html = admin_client.get(INCOMING, {"q": "n:1"}).content.decode()
    assert "The search was cut off after 1 seconds" in html
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",), "the limit is that statement's alone"


@on_postgres
def test_a_search_tells_nothing_that_is_redacted(admin_client: Client, settings: Any) -> None:
    row = incoming("processed", body=of(card="4111", order=17))
    assert found(admin_client, INCOMING, q="card:4111") == [row.pk]
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True, "REDACT": f"{__name__}.hide"}
    assert found(admin_client, INCOMING, q="card:4111") == []
    assert found(admin_client, INCOMING, q="order:17") == [row.pk]
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True, "REDACT": "no.where"}
    assert found(admin_client, INCOMING, q="order:17") == []
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True}
    client = staff("view_processedmessage")
    assert found(client, INCOMING, q="card:4111") == []
    assert "so they are not searched for you" in client.get(INCOMING, {"q": "card:4111"}).content.decode()


@on_postgres
def test_it_takes_no_more_queries_than_a_page_may_and_can_use_an_index() -> None:
    incoming("processed", body=of(n=1))
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        assert len(found(client, INCOMING, q="n:1", period="24h")) == 1
    assert len(queries) <= 10, [query["sql"][:100] for query in queries]
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        # What others may still see of earlier tests' rows would keep this transaction from using the new index.
        cursor.execute("TRUNCATE messaging_processedmessage CASCADE")
        cursor.execute("CREATE INDEX ON messaging_processedmessage USING gin (messaging_payload(body) jsonb_path_ops)")
        cursor.execute("SET LOCAL enable_seqscan = off")
    row = incoming("processed", body=of(n=1))
    rows = ProcessedMessage.objects.filter(search.Holds('{"n": 1}'))
    assert "messaging_processedmessage_messaging_payload_idx" in rows.explain()
    assert list(rows) == [row]
    incoming("processed", body=b'{"a": "\\u0000"}')  # what the index cannot hold is stored all the same
    incoming("processed", body=b"[" * 100_000)


@on_postgres
def test_a_found_message_opens_and_its_list_is_exported(admin_client: Client) -> None:
    row = incoming("processed", body=of(n=1))
    incoming("processed", body=of(n=2))
    page = admin_client.get(f"{INCOMING}{row.pk}/change/", {"_changelist_filters": "q=n:1"})
    assert page.status_code == 200
    raw = b"".join(admin_client.post(f"{INCOMING}export/?q=n:1", {"format": "json"}))  # type: ignore[arg-type]
    assert [one["id"] for one in json.loads(raw)] == [row.pk]


def test_where_payloads_are_not_searched_a_list_says_what_is(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {}
    incoming("processed", body=of(n=1))
    html = admin_client.get(INCOMING, {"q": "n:1"}).content.decode()
    for words in ("Payloads are not searched on this site", "What can be searched for:", "Exact message id"):
        assert words in html
    assert "In payloads of JSON" not in html
    html = admin_client.get(INCOMING, {"q": "nothing"}).content.decode()
    assert "What can be searched for:" in html
    assert "not searched on this site" not in html
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": "yes"}
    assert "True or False" in admin_client.get(INCOMING, {"q": "n:1"}).content.decode()


def test_failures_are_filtered_by_their_exception(admin_client: Client) -> None:
    boom = incoming("failed", exception_type="shop.errors.Boom")
    builtin = incoming("failed", exception_type="ValueError")
    incoming("failed", exception_type="shop.errors.Kaboom")
    for typed in ("Boom", "shop.errors.Boom", "errors.Boom", " Boom "):
        assert found(admin_client, INCOMING, exception=typed) == [boom.pk], typed
    assert found(admin_client, INCOMING, exception="ValueError") == [builtin.pk]
    assert found(admin_client, INCOMING, exception="rror") == []
    html = admin_client.get(
        INCOMING, {"exception": "<b>", "state": "failed", "queue": "billing", "q": "x"}
    ).content.decode()
    form = html.partition('class="msg-typed"')[2].partition("</form>")[0]
    for name, value in (("state", "failed"), ("queue", "billing"), ("q", "x")):
        assert f'<input type="hidden" name="{name}" value="{value}">' in form
    assert 'name="exception" value="&lt;b&gt;"' in form
    assert "exception: <strong>&lt;b&gt;</strong>" in html


def test_messages_are_filtered_by_how_long_they_ran(admin_client: Client) -> None:
    slow, slower = incoming("processed", duration=2_000_000), incoming("processed", duration=70_000_000)
    incoming("processed", duration=500_000)
    incoming("processed")
    assert found(admin_client, INCOMING, run="1s") == [slower.pk, slow.pk]
    assert found(admin_client, INCOMING, run="1m") == [slower.pk]
    assert len(found(admin_client, INCOMING, run="nonsense")) == 4


def test_both_look_at_so_many_rows_and_say_so(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "LOOKED_AT", 2)
    rows = [incoming("processed", duration=2_000_000, exception_type="Boom") for _ in range(4)]
    for query in ({"run": "1s"}, {"exception": "Boom"}):
        response = admin_client.get(INCOMING, query)
        assert [row.pk for row in response.context["cl"].result_list] == [rows[3].pk, rows[2].pk]
        assert "Look further back" in response.content.decode()
    failed = [incoming("failed", exception_type="Boom") for _ in range(4)]
    assert found(admin_client, INCOMING, state="failed", exception="Boom") == [row.pk for row in reversed(failed)]
