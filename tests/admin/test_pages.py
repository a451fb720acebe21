"""The admin's pages: what they show, what they cost, and that nothing hostile gets through."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from messaging.admin import base, paginator, payload
from messaging.backends import get_backend
from messaging.backends.base import QueueSpec, Topology
from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage, QueueControl, Worker
from messaging.models.operations import STOPPED
from messaging.monitoring import readings
from messaging.operations import Operator, requeue
from messaging.wire.bodies import pack_body
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, inline_code, outgoing, staff

pytestmark = pytest.mark.django_db

EVERYTHING = (
    "view_processedmessage", "requeue_processedmessage", "discard_processedmessage", "view_payload_processedmessage",
    "view_publishedmessage", "publish_publishedmessage", "replay_publishedmessage", "discard_publishedmessage",
    "view_payload_publishedmessage", "view_queuecontrol", "pause_queuecontrol", "view_auditrecord", "view_worker",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7|add:7 }}"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {
        "default": {"URL": "amqp://guest:hush-secret@127.0.0.1:1/", "QUEUES": {"billing": {}, "mail": {}}},
    }
    readings.forget()
    yield
    readings.forget()


@pytest.fixture
def story() -> Any:
    """A message with every kind of row around it."""
    row = incoming("failed", error="Boom", exception_type="shop.Boom", attempts=3, fingerprint="f1", causation_id="c-1")
    now = timezone.now()
    for number in range(1, 4):
        Attempt.objects.create(
            message=row, number=number, round=number, worker="web1:7", exception_type="shop.Boom",
            exception_message="Boom", traceback="Traceback (most recent call last):\n  File <x>\n" * 3,
            started_at=now - timedelta(seconds=2), crashed=number == 2,
        )  # fmt: skip
    requeue(ProcessedMessage.objects.filter(pk=row.pk), Operator(name="nina", reason="fixed the deploy"))
    ProcessedMessage.objects.filter(pk=row.pk).update(state="failed")
    outgoing(message_id=row.message_id)
    outgoing(causation_id=row.message_id, correlation_id=row.message_id, routing_key="invoice.created")
    incoming("processed", message_id="c-1", routing_key="cause.of")
    Worker.objects.create(name="w", kind="consume", host="web1", pid=7, queues=["billing"], paused=["mail"])
    QueueControl.objects.create(queue="mail", paused=True, changed_by="nina", reason="down")
    return row


def pages(row: Any) -> list[str]:
    out, draft = outgoing("failed", error="unroutable"), outgoing("draft")
    return [
        INCOMING, f"{INCOMING}?state=failed&queue=billing&period=24h", f"{INCOMING}?q={row.message_id}",
        f"{INCOMING}{row.pk}/change/", f"{INCOMING}{row.pk}/requeue/", f"{INCOMING}{row.pk}/history/",
        OUTGOING, f"{OUTGOING}?origin=new&state=published", f"{OUTGOING}?q=orders.",
        f"{OUTGOING}{out.pk}/change/", f"{OUTGOING}{draft.pk}/change/", f"{OUTGOING}add/",
        f"{OUTGOING}{out.pk}/discard/",
        QUEUES, f"{QUEUES}pause/?alias=default&queue=billing",
        "/admin/messaging/auditrecord/", "/admin/messaging/worker/", "/admin/messaging/", "/admin/",
    ]  # fmt: skip


def test_no_page_takes_more_than_ten_queries_and_none_holds_inline_code(story: Any) -> None:
    client = staff(*EVERYTHING)
    for page in pages(story):
        with CaptureQueriesContext(connection) as queries:
            response = client.get(page)
        html = response.content.decode()
        assert response.status_code == 200, page
        assert len(queries) <= 10, (page, [query["sql"][:150] for query in queries])
        assert inline_code(html) == [], page
        for query in queries:
            assert "DISTINCT" not in query["sql"], page


def test_every_page_is_there_in_chinese(story: Any) -> None:
    client = staff(*EVERYTHING)
    client.cookies["django_language"] = "zh-hans"
    words = {
        INCOMING: "传入消息", f"{INCOMING}{story.pk}/change/": "时间线", OUTGOING: "传出消息",
        f"{OUTGOING}add/": "路由键", QUEUES: "消费者", f"{INCOMING}{story.pk}/requeue/": "重新入队",
        "/admin/messaging/auditrecord/": "审计记录",
    }  # fmt: skip
    with translation.override("en"):  # and back: the site's middleware leaves the language in effect
        for page, word in words.items():
            assert word in client.get(page).content.decode(), page


def test_the_page_of_an_incoming_message_tells_its_story(story: Any, admin_client: Client) -> None:
    html = admin_client.get(f"{INCOMING}{story.pk}/change/").content.decode()
    for text in (
        "It rests until an operator requeues or discards it.", "Attempt 1 failed: shop.Boom",
        "Attempt 2 failed: crashed",
        "<details>", "File &lt;x&gt;", "Requeued by nina", "fixed the deploy", "Round 2 scheduled",
        "Outgoing messages with the same id", "Published by its handler", "invoice.created", "Published while handling",
        "?fingerprint=f1", "<time datetime=",
    ):  # fmt: skip
        assert text in html, text


def test_an_act_stands_before_the_round_that_it_caused(admin_client: Client) -> None:
    row = incoming("failed", attempts=1)
    requeue(ProcessedMessage.objects.filter(pk=row.pk), Operator(name="nina"))
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert 0 < html.index("Requeued by nina") < html.index("Round 2 scheduled")


def test_a_timeline_tells_of_a_run_that_a_stop_cut_short(admin_client: Client) -> None:
    row = incoming("processed", attempts=1)
    own = {"kind": "processed", "message_pk": row.pk, "alias": row.alias, "action": AuditRecord.INTERRUPTION}
    AuditRecord.objects.create(**own, reason=STOPPED, username="host:1:ab")
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "Interrupted by a stop<" in html
    assert f"{STOPPED} · host:1:ab · this is no attempt" in html
    assert "interrupted" in admin_client.get("/admin/messaging/auditrecord/").content.decode()


@pytest.mark.parametrize(("stamp", "text"), [(1_790_000_000, "2026-09-21"), (2**63, str(2**63)), (None, "")])
def test_the_publishers_timestamp_is_a_time_where_it_is_one(
    stamp: int | None, text: str, admin_client: Client, settings: Any
) -> None:
    settings.TIME_ZONE = "UTC"
    properties = Properties.build(message_id="m", timestamp=stamp)
    row = incoming("processed", wire=Envelope("", "billing", properties, b"").to_wire())
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert ("<dt>Timestamp</dt>" in html) == (stamp is not None)
    assert text in html


def test_the_list_of_outgoing_messages_tells_why_one_failed(admin_client: Client) -> None:
    outgoing("failed", error="Unroutable: <b>nowhere</b>. " + "x" * 500)
    html = admin_client.get(OUTGOING).content.decode()
    assert "Unroutable: &lt;b&gt;nowhere" in html
    assert "x" * 200 not in html


def test_an_outgoing_message_that_no_queue_took_waits_for_one_wherever_it_is_shown(admin_client: Client) -> None:
    row = outgoing("pending", attempts=2, error="Unroutable. NO_ROUTE", routing_key="orders.late")
    outgoing("pending", attempts=2, error="a full queue", routing_key="orders.full")
    html = admin_client.get(OUTGOING).content.decode()
    assert html.count("</span> waiting for a queue") == 1
    html = admin_client.get(f"{OUTGOING}?state=waiting").content.decode()
    assert "orders.late" in html
    assert "orders.full" not in html
    page = f"{OUTGOING}{row.pk}/change/"
    html = admin_client.get(page).content.decode()
    assert "No queue takes it. It waits for one, and is sent again" in html
    assert f"{OUTGOING}{row.pk}/publish/" in html
    assert "Outgoing, waiting for a queue" in admin_client.get("/admin/messaging/").content.decode()
    PublishedMessage.objects.filter(pk=row.pk).update(attempts=0)
    assert "waiting for a queue" not in admin_client.get("/admin/messaging/").content.decode()


def test_a_message_says_where_nothing_is_sent_from_here(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING = {"default": {"RELAY": False}}
    html = admin_client.get(f"{OUTGOING}{outgoing('pending').pk}/change/").content.decode()
    assert "It is not sent from here: the setting RELAY is False." in html
    assert "No relay runs" not in html


def test_the_list_of_incoming_messages_names_the_error_while_it_matters(admin_client: Client) -> None:
    incoming("failed", exception_type="shop.Boom", error="Boom: no")
    incoming("retrying", error="no handler")
    incoming("processed", exception_type="shop.Overcome", error="Overcome: once")
    html = admin_client.get(INCOMING).content.decode()
    assert '<strong title="shop.Boom">Boom</strong> no' in html
    assert "no handler" in html
    assert "Overcome" not in html


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"state": "retrying", "attempts": 2, "retry_at": timezone.now() + timedelta(days=3)}, "attempt 3 of 8."),
        ({"state": "retrying", "attempts": 2, "retry_at": timezone.now() - timedelta(days=3)}, "Its retry is due"),
        ({"state": "retrying", "attempts": 2}, "Its retry is due"),
        ({"state": "processing"}, "An attempt crashed"),
        ({"state": "processing", "lease_token": "6a1f0000-0000-4000-8000-000000000000"}, "Attempt 1 of 8 is running."),
        ({"state": "processed"}, "work is committed"),
        ({"state": "requeued"}, "waits for its delivery"),
        ({"state": "discarded"}, "laid it aside"),
        ({"state": "superseded"}, "edited copy"),
    ],
)
def test_the_state_is_said_in_plain_words(admin_client: Client, values: dict[str, Any], text: str) -> None:
    row = incoming(**values)
    assert text in admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"state": "pending"}, "waits for a relay"),
        ({"state": "pending", "due_at": timezone.now() + timedelta(days=2)}, "It will be sent in 2 days."),
        ({"state": "pending", "lease_token": "6a1f0000-0000-4000-8000-000000000000"}, "A relay is sending it."),
        ({"state": "published"}, "has confirmed it"),
        ({"state": "failed"}, "could not be sent"),
        ({"state": "discarded"}, "laid aside"),
    ],
)
def test_the_state_of_an_outgoing_message_is_said_too(admin_client: Client, values: dict[str, Any], text: str) -> None:
    row = outgoing(**values)
    assert text in admin_client.get(f"{OUTGOING}{row.pk}/change/").content.decode()


def test_hostile_texts_are_shown_as_text(admin_client: Client) -> None:
    row = incoming(
        body=HOSTILE.encode(), message_id=HOSTILE, routing_key=HOSTILE, queue=HOSTILE, error=HOSTILE, handler=HOSTILE,
        exception_type=HOSTILE, headers={HOSTILE: HOSTILE}, fingerprint=HOSTILE[:32], content_type="text/html",
    )  # fmt: skip
    Attempt.objects.create(message=row, number=1, round=1, traceback=HOSTILE, exception_message=HOSTILE, worker=HOSTILE)
    out = outgoing("failed", message_id=HOSTILE, routing_key=HOSTILE, queue=HOSTILE, exchange="", error=HOSTILE)
    AuditRecord.objects.create(
        action=HOSTILE[:30], username=HOSTILE, reason=HOSTILE, kind="processed", message_pk=row.pk, alias="default",
        message_id=HOSTILE,
    )  # fmt: skip
    Worker.objects.create(name=HOSTILE, kind="x", host=HOSTILE, pid=1, queues=[HOSTILE], status=HOSTILE)
    for page in (
        INCOMING, OUTGOING, QUEUES, f"{INCOMING}{row.pk}/change/", f"{OUTGOING}{out.pk}/change/",
        f"{INCOMING}{row.pk}/requeue/", "/admin/messaging/auditrecord/", "/admin/messaging/worker/",
    ):  # fmt: skip
        html = admin_client.get(page).content.decode()
        assert "<script>alert" not in html, page
        assert "<img src=x" not in html, page
        assert inline_code(html) == [], page
        assert "{{ 7|add:7 }}" in html or page == QUEUES, page


def test_payload_and_headers_take_their_own_permission() -> None:
    row = incoming(body=b'{"secret": "s3cr3t"}', headers={"token": "t0k3n"})
    client = staff("view_processedmessage")
    html = client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "s3cr3t" not in html
    assert "t0k3n" not in html
    assert "You do not have the permission to see payloads." in html
    assert client.get(f"{INCOMING}{row.pk}/payload/").status_code == 403
    client = staff("view_processedmessage", "view_payload_processedmessage", name="vera")
    html = client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "s3cr3t" in html
    assert "t0k3n" in html


@pytest.mark.parametrize("body", [b'{"a": 1}', b"<script>", b"\x00\xff\x80", "中文".encode(), b""])
def test_a_download_is_the_body_to_the_byte_and_never_rendered(admin_client: Client, body: bytes) -> None:
    row = incoming(body=body)
    response = admin_client.get(f"{INCOMING}{row.pk}/payload/")
    assert response.content == body
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("body", "content_type", "texts"),
    [
        (b'{"a":1,"b":[]}', "application/json", ["{\n  &quot;a&quot;: 1,\n  &quot;b&quot;: []\n}", "JSON · 14 bytes"]),
        (b'{"n": 1.50, "n": 12345678901234567890123}', "application/json", ["1.50", "12345678901234567890123"]),
        (b"{broken", "application/json", ["{broken", "The body is not valid JSON"]),
        (b"[" * 70_000, "application/json", ["only the beginning is shown"]),
        (b"[" * 60_000, "application/json", ["not valid JSON"]),
        (b"\x00\x01\xff", "application/octet-stream", ["AAH/", "base64 · 3 bytes"]),
        (b"", "text/plain", ["The body is empty."]),
        (b"\xff", "text/plain; charset=utf-8", ["/w=="]),
        ("中".encode(), "text/plain", ["中", "3 bytes"]),
        (b"x", "application/json; charset=nonsense", ["x"]),
    ],
)
def test_payloads_are_shown_as_what_they_are(
    admin_client: Client, body: bytes, content_type: str, texts: list[str]
) -> None:
    row = incoming(body=body, content_type=content_type)
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    for text in texts:
        assert text in html


def test_a_huge_payload_is_neither_read_nor_shown_whole(admin_client: Client) -> None:
    row = incoming(body=b"x" * 3_000_000, content_type="text/plain")
    response = admin_client.get(f"{INCOMING}{row.pk}/change/")
    assert len(response.content) < 2 * payload.PREVIEW
    assert "2.9 MiB" in response.content.decode()
    assert "body" in response.context["original"].get_deferred_fields()
    row = incoming(body=b"\x00" * 300_000)
    assert "293.0 KiB" in admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()


@pytest.mark.parametrize("text", ['{"a": "b, {c} [d] : \\" e"}', "[]", "[1, [2, {}], null]", '{"ключ": "中文"}'])
def test_indentation_changes_nothing_but_spaces(text: str) -> None:
    import json

    assert json.loads(payload.indent_json(text)) == json.loads(text)


@pytest.mark.parametrize("body", [b"\x00\x01\xfe" * 2_000_001, "€x".encode() * 1_500_000])
def test_a_large_download_is_read_a_piece_at_a_time(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(payload, "PIECE", 1024 * 1024)
    row = incoming(body=body)
    response = admin_client.get(f"{INCOMING}{row.pk}/payload/")
    pieces = list(response)
    assert max(map(len, pieces)) <= 3 * 1024 * 1024  # bytes of so many characters
    assert b"".join(pieces) == body
    assert response.headers["Content-Type"] == "application/octet-stream"


def test_a_damaged_body_is_downloaded_as_it_is_stored(admin_client: Client) -> None:
    row = incoming(body=b"\x00")
    ProcessedMessage.objects.filter(pk=row.pk).update(body="A")
    assert admin_client.get(f"{INCOMING}{row.pk}/payload/").content == b"A"


def test_lists_read_neither_bodies_nor_headers(admin_client: Client) -> None:
    incoming(body=b"b" * 100_000)
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(INCOMING)
    said = [query["sql"].replace("`", '"') for query in queries]  # MariaDB's quotes
    rows = [sql for sql in said if 'SELECT "messaging_processedmessage"."id"' in sql]
    assert rows
    for column in ("body", "headers", "wire", "error"):
        assert all(f' "messaging_processedmessage"."{column}",' not in sql for sql in rows), column


def test_counting_stops_and_the_list_goes_on(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paginator, "LIMIT", 3)
    monkeypatch.setattr(base.MessageAdmin, "list_per_page", 2)
    rows = [incoming("failed", routing_key=f"key.{number}") for number in range(6)]
    html = admin_client.get(f"{INCOMING}?p=2").content.decode()
    assert "3+ incoming messages" in html
    assert f"?before={rows[3].pk}" in html
    html = admin_client.get(f"{INCOMING}?before={rows[3].pk}").content.decode()
    assert "key.2" in html
    assert "key.3" not in html
    assert "older than row" in html


def test_search_finds_ids_and_the_beginning_of_routing_keys(admin_client: Client) -> None:
    rows = [
        incoming(message_id="one", routing_key="orders.placed"),
        incoming(message_id="two", correlation_id="corr", routing_key="orders.paid"),
        incoming(message_id="three", causation_id="cause", routing_key="invoices.sent"),
    ]
    any_case = [0] if connection.vendor == "mysql" else []  # by its collation
    expected = {
        "one": [0], "corr": [1], "cause": [2], "orders.": [1, 0], "rders": [], "ONE": any_case, " one ": [0],
        "": [2, 1, 0],
    }  # fmt: skip
    for term, found in expected.items():
        response = admin_client.get(INCOMING, {"q": term})
        assert [row.pk for row in response.context["cl"].result_list] == [rows[i].pk for i in found], term


@pytest.mark.parametrize(
    "query",
    [
        "q=%00", "q=" + "x" * 5000, "state=nonsense", "queue=%00", "queue='", "period=-1", "before=x",
        "before=" + "9" * 30,
        "fingerprint=%27%00", "p=9999", "p=x", "o=1.2", "origin=%00", "handler=%00", "q=%ED%A0%80", "all=", "q=%25_",
    ],
)  # fmt: skip
def test_nonsense_in_the_address_is_no_error(admin_client: Client, query: str) -> None:
    incoming()
    outgoing()
    for page in (INCOMING, OUTGOING, "/admin/messaging/auditrecord/"):
        assert admin_client.get(f"{page}?{query}", follow=True).status_code in (200, 400)


def test_other_columns_can_not_be_queried_through_the_address(admin_client: Client) -> None:
    for query in ("body__contains=a", "wire__isnull=1", "error__regex=(a"):
        assert admin_client.get(f"{INCOMING}?{query}").status_code == 400


@pytest.mark.parametrize("page", [INCOMING, OUTGOING, QUEUES, f"{INCOMING}1/change/", f"{OUTGOING}add/"])
def test_staff_without_permissions_see_nothing(page: str) -> None:
    incoming()
    client = staff()
    assert client.get(page).status_code == 403
    assert "messaging" not in client.get("/admin/").content.decode().lower()


def test_the_queues_page_renders_with_the_broker_down(story: Any, admin_client: Client) -> None:
    html = admin_client.get(QUEUES).content.decode()
    assert "The broker at 127.0.0.1:1 gives no reading." in html
    assert "hush-secret" not in html
    assert "Check that the broker runs" in html
    assert '<td class="msg-num">—</td>' in html
    assert "nina" in html
    assert "web1" in html
    assert f'{INCOMING}?state=failed&amp;queue=billing" class="msg-failures">1<' in html


@pytest.mark.broker
def test_the_queues_page_shows_what_the_broker_says(settings: Any, admin_client: Client, vhost_url: str) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "QUEUES": {"billing": {}, "mail": {}}}}
    get_backend("default").declare(Topology(queues=(QueueSpec("billing", type="classic", dead_letter=False),)))
    html = admin_client.get(QUEUES).content.decode()
    assert "gives no reading" not in html
    numbers = ["0", "—", "0"]  # a passive declare knows nothing of what is unacknowledged
    assert "".join(f'<td class="msg-num">{number}</td>' for number in numbers) in html
    assert "does not exist at the broker" in html
    assert " ago" in html


def test_the_queues_page_survives_unusable_settings(settings: Any, admin_client: Client) -> None:
    settings.MESSAGING = {"default": {"URL": "nonsense"}, "other": {"URL": "carrier-pigeon://x"}}
    html = admin_client.get(QUEUES).content.decode()
    assert "is no URL" in html


def test_pausing_takes_its_permission_a_post_and_a_known_queue(admin_client: Client) -> None:
    pause = f"{QUEUES}pause/?alias=default&queue=billing"
    client = staff("view_queuecontrol")
    assert client.post(pause).status_code == 403
    assert "/pause/" not in client.get(QUEUES).content.decode()
    client = staff("view_queuecontrol", "pause_queuecontrol", name="paul")
    assert client.get(pause).status_code == 200
    assert not QueueControl.objects.exists()
    assert client.post(pause, {"reason": "mail is down"}).headers["Location"] == QUEUES
    control = QueueControl.objects.get()
    assert (control.paused, control.changed_by, control.reason) == (True, "paul", "mail is down")
    assert "mail is down" in client.get(QUEUES).content.decode()
    client.post(f"{QUEUES}resume/?alias=default&queue=billing")
    control.refresh_from_db()
    assert not control.paused
    assert list(AuditRecord.objects.order_by("pk").values_list("action", flat=True)) == ["pause", "resume"]
    for query in ("", "?queue=billing", "?alias=default&queue=nowhere", "?alias=x&queue=billing"):
        assert client.post(f"{QUEUES}pause/{query}").status_code == 404
    assert client.get(f"{QUEUES}{control.pk}/change/").headers["Location"] == QUEUES


def test_nothing_is_missing_from_the_migrations() -> None:
    call_command("makemigrations", "messaging", check=True, dry_run=True, verbosity=0)


def test_a_body_with_damaged_base64_is_still_a_page(admin_client: Client) -> None:
    row = incoming(body=b"\x00")
    ProcessedMessage.objects.filter(pk=row.pk).update(body=pack_body(b"\x00\x01")[0][:-1], wire=b"damaged")
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "A stored envelope is cut short." in html
