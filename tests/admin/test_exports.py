"""A list as a file: what is in it, who may have it, what is recorded, and what it costs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from messaging.admin import exports
from messaging.models import AuditRecord, ProcessedMessage, Worker
from messaging.monitoring import readings
from messaging.operations import Operator, discard
from tests.admin_rows import INCOMING, OUTGOING, incoming, outgoing, staff

pytestmark = pytest.mark.django_db
EXPORT = f"{INCOMING}export/"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()


def hide(value: Any, **about: Any) -> Any:
    return {"card": "***"} if about["part"] != "text" else value.replace("4111", "***")


def taken(client: Client, page: str, **wanted: str) -> bytes:
    response = client.post(page, {"format": "csv", **wanted})
    assert response.status_code == 200, page
    assert response.streaming
    assert response.headers["Content-Disposition"].startswith("attachment;")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return b"".join(response)  # type: ignore[arg-type]


def table(raw: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(raw.decode(), newline="")))


def test_a_list_links_to_its_export_with_its_filter(admin_client: Client) -> None:
    incoming("failed")
    html = admin_client.get(f"{INCOMING}?state=failed&queue=billing&p=1").content.decode()
    assert 'href="export/?' in html
    html = admin_client.get(f"{EXPORT}?state=failed&queue=billing").content.decode()
    assert "state: failed" in html
    assert "queue: billing" in html
    assert 'href="../?queue=billing&amp;state=failed"' in html


def test_the_file_has_the_rows_of_the_list_and_no_others(admin_client: Client) -> None:
    rows = [incoming("failed", error="No", duration=1500), incoming("failed"), incoming("processed")]
    incoming("failed", queue="mail")
    page = f"{EXPORT}?state=failed&queue=billing"
    found = table(taken(admin_client, page))
    assert [row["id"] for row in found] == [str(rows[1].pk), str(rows[0].pk)]
    assert found[1]["error"] == "No"
    assert found[1]["duration"] == "1500"
    assert found[1]["processed_at"] == ""
    assert found[1]["received_at"].endswith("+00:00")
    assert "payload" not in found[0]
    assert list(found[0]) == list(exports_of("processedmessage"))
    listed = json.loads(taken(admin_client, page, format="json"))
    assert [row["id"] for row in listed] == [rows[1].pk, rows[0].pk]
    assert listed[0]["processed_at"] is None
    assert json.loads(taken(admin_client, f"{EXPORT}?state=discarded", format="json")) == []
    assert table(taken(admin_client, f"{EXPORT}?state=discarded")) == []


def exports_of(name: str) -> tuple[str, ...]:
    from django.apps import apps
    from django.contrib import admin

    names: tuple[str, ...] = admin.site._registry[apps.get_model("messaging", name)].exported
    return names


def test_every_list_has_one(admin_client: Client) -> None:
    row = incoming("failed")
    discard(ProcessedMessage.objects.filter(pk=row.pk), Operator(name="=nina", reason="why"))
    outgoing("failed", error="Unroutable")
    Worker.objects.create(name="w", kind="consume", host="web1", pid=7, queues=["billing"])
    found = {
        name: table(taken(admin_client, reverse(f"admin:messaging_{name}_export")))
        for name in ("processedmessage", "publishedmessage", "operation", "worker", "auditrecord")
    }
    assert found["publishedmessage"][0]["error"] == "Unroutable"
    assert found["worker"][0]["queues"] == '["billing"]'
    assert [row["action"] for row in found["auditrecord"]] == ["export"] * 5 + ["discard"]
    assert found["auditrecord"][-1]["username"] == "'=nina"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"])  # noqa: RUF001
def test_no_text_is_a_formula(admin_client: Client, text: str) -> None:
    incoming("failed", error=text, body=json.dumps(text).encode())
    [row] = table(taken(admin_client, EXPORT, payload="1"))
    assert row["error"] == "'" + text
    assert row["payload"] == "'" + text
    assert json.loads(taken(admin_client, EXPORT, format="json"))[0]["error"] == text


def test_payloads_are_there_on_request_and_with_their_permission() -> None:
    incoming(body=b'{"n": 1}', headers={"h": [1]})
    incoming(body=b"\x00\xff")
    incoming(body="=中".encode(), content_type="text/plain")
    client = staff("view_processedmessage")
    assert b"payload" not in taken(client, EXPORT)
    assert "payload" not in client.get(EXPORT).content.decode().lower().partition("<form")[2].partition("</form")[0]
    assert client.post(EXPORT, {"format": "csv", "payload": "1"}).status_code == 403
    client = staff("view_processedmessage", "view_payload_processedmessage", name="vera")
    text, raw, tree = table(taken(client, EXPORT, payload="1"))
    assert (text["payload"], text["payload_kind"]) == ("'=中", "text")
    assert (raw["payload"], raw["payload_kind"]) == ("AP8=", "base64")
    assert (tree["payload"], tree["payload_kind"], tree["headers"]) == ('{"n": 1}', "JSON", '{"h": [1]}')
    assert json.loads(taken(client, EXPORT, payload="1", format="json"))[2]["payload"] == {"n": 1}


def test_what_is_redacted_on_pages_is_redacted_here(
    admin_client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING_CONSOLE = {"REDACT": f"{__name__}.hide"}
    incoming(body=b'{"card": "4111"}', headers={"card": "4111"}, error="4111 is wrong")
    for kind in ("csv", "json"):
        raw = taken(admin_client, EXPORT, payload="1", format=kind)
        assert b"4111" not in raw
        assert raw.count(b"***") == 3
    settings.MESSAGING_CONSOLE = {"REDACT": "no.where"}
    [row] = table(taken(admin_client, EXPORT, payload="1"))
    assert "has failed on it" in row["payload_withheld"]
    assert row["payload"] == ""
    assert "4111" not in str(row)
    settings.MESSAGING_CONSOLE = {}
    monkeypatch.setattr(exports, "LARGEST", 5)
    assert "larger than what is exported" in table(taken(admin_client, EXPORT, payload="1"))[0]["payload_withheld"]


def test_who_may_not_see_the_list_gets_no_file() -> None:
    incoming()
    client = staff("view_publishedmessage")
    assert client.get(EXPORT).status_code == 403
    assert client.post(EXPORT, {"format": "csv"}).status_code == 403
    assert client.post(f"{OUTGOING}export/", {"format": "csv"}).status_code == 200
    assert client.get(f"{OUTGOING}export/").status_code == 200


def test_it_is_recorded_before_the_first_row_leaves() -> None:
    incoming("failed")
    client = staff("view_processedmessage", "view_payload_processedmessage", "view_auditrecord")
    client.get(f"{EXPORT}?state=failed")
    assert not AuditRecord.objects.exists(), "a look is no export"
    client.post(f"{EXPORT}?state=failed", {"format": "xml"})
    assert not AuditRecord.objects.exists()
    client.post(f"{EXPORT}?state=failed", {"format": "json", "payload": "1", "reason": "for the lawyers"})  # unread
    record = AuditRecord.objects.get()
    assert (record.action, record.username, record.kind) == ("export", "olga", "processed")
    for words in ("JSON, payload", "state: failed", "for the lawyers"):
        assert words in record.reason
    html = client.get("/admin/messaging/auditrecord/").content.decode()
    assert "exported" in html


def test_it_reaches_as_far_as_there_are_rows_and_holds_a_batch_of_them(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from messaging.admin import filters

    monkeypatch.setattr(filters, "LOOKED_AT", 2)
    monkeypatch.setattr(exports, "PIECE", 7)
    monkeypatch.setattr(exports, "BATCH", 3)
    rows = [incoming("processed", queue="mail" if number % 2 else "billing") for number in range(30)]
    ProcessedMessage.objects.filter(pk__in=[row.pk for row in rows[4:20]]).delete()
    wanted = [row.pk for row in reversed([*rows[:4], *rows[20:]]) if row.queue == "mail"]
    with CaptureQueriesContext(connection) as queries:
        raw = taken(admin_client, f"{EXPORT}?queue=mail", format="json")
    assert [row["id"] for row in json.loads(raw)] == wanted
    assert len([query for query in queries if "messaging_processedmessage" in query["sql"]]) > 5
    batches = list(exports.walk(ProcessedMessage.objects.all()))
    assert max(map(len, batches)) <= 3
    assert sum(map(len, batches)) == 14


def test_bodies_are_read_as_many_at_once_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "BYTES", 250)
    rows = [incoming(body=b"x" * 100, content_type="text/plain") for _ in range(5)]
    incoming(body=b"x" * 1000, content_type="text/plain")
    found = list(exports._heavy(ProcessedMessage.objects.all(), [row.pk for row in rows]))
    assert [len(batch) for batch in found] == [2, 2, 1]


def test_under_asgi_it_is_sent_as_it_is_made(async_client: AsyncClient, admin_user: Any) -> None:
    row = incoming("failed")
    async_client.force_login(admin_user)

    async def take() -> list[bytes]:
        response = await async_client.post(EXPORT, {"format": "json"})
        assert response.is_async
        return [piece async for piece in response]

    assert json.loads(b"".join(async_to_sync(take)()))[0]["id"] == row.pk
