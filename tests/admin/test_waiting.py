# ruff: noqa: RUF001  Chinese has a punctuation of its own
"""For what a message waits, what its traceback says first, and workers in the reader's language."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from messaging.admin import words
from messaging.admin.traces import parts
from messaging.models import Attempt, AuditRecord, QueueControl, Worker
from messaging.monitoring import readings
from messaging.wire.bodies import decode_body
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, outgoing, staff

pytestmark = pytest.mark.django_db

RELAY = {"name": "r", "kind": "relay", "host": "web1", "pid": 8}
CONSUMER = {
    "name": "c",
    "kind": "consume",
    "host": "web1",
    "pid": 7,
    "queues": ["billing"],
    "status": "running 0, waiting 0",
}
MINUTES_AGO = timezone.now() - timedelta(minutes=5)


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()
    yield
    readings.forget()


def headline(client: Client, row: Any) -> str:
    base = OUTGOING if row._meta.model_name == "publishedmessage" else INCOMING
    html = client.get(f"{base}{row.pk}/change/").content.decode()
    return re.sub(r"<[^>]+>", "", re.findall(r'class="msg-headline">(.*?)</p>', html, re.DOTALL)[0])


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ([], "No consumer takes from its queue."),
        ([{**CONSUMER, "queues": ["bill"]}], "No consumer takes from its queue."),
        ([{**CONSUMER, "alias": "other"}], "No consumer takes from its queue."),
        ([{**CONSUMER, "seen_at": MINUTES_AGO}], "No consumer takes from its queue."),
        ([{**CONSUMER, "status": "waiting for the broker"}], "Its consumer waits for the broker."),
        ([{**CONSUMER, "status": "waiting for the database"}], "Its consumer waits for the database."),
        ([CONSUMER], "It waits for its turn in the queue."),
    ],
)
def test_a_message_in_its_queue_says_for_what_it_waits(
    admin_client: Client, workers: list[dict[str, Any]], text: str
) -> None:
    for values in workers:
        Worker.objects.create(**values)
    for row in (incoming("requeued"), incoming("retrying", retry_at=MINUTES_AGO), incoming("processing")):
        assert text in headline(admin_client, row), row.state
    later = incoming("retrying", retry_at=timezone.now() + timedelta(hours=1))
    assert text not in headline(admin_client, later)
    assert text not in headline(admin_client, incoming("failed"))


def test_a_message_of_a_paused_queue_says_who_paused_it(admin_client: Client) -> None:
    Worker.objects.create(**CONSUMER)
    control = QueueControl.objects.create(queue="billing", paused=True, changed_by="nina")
    row = incoming("requeued")
    assert "Its queue is paused since" in headline(admin_client, row)
    assert "by nina; resume it in “Queues”." in headline(admin_client, row)
    control.paused = False
    control.save()
    assert "paused" not in headline(admin_client, row)


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ([], "No relay runs."),
        ([{**RELAY, "seen_at": MINUTES_AGO}], "No relay runs."),
        ([CONSUMER], "No relay runs."),
        ([{**RELAY, "status": "broker: refused <b>"}], "cannot hand it to the broker: refused &lt;b&gt;"),
        ([{**RELAY, "status": "a memory alarm"}], "cannot hand it to the broker: a memory alarm"),
        ([RELAY], "It waits for its turn at the relay."),
    ],
)
def test_a_message_in_the_outbox_says_for_what_it_waits(
    admin_client: Client, workers: list[dict[str, Any]], text: str
) -> None:
    for values in workers:
        Worker.objects.create(**values)
    assert text in headline(admin_client, outgoing("pending"))
    row = incoming("requeued")
    outgoing("pending", inbox=row, message_id=row.message_id, queue=row.queue, exchange="")
    assert text in headline(admin_client, row), "its round waits there"
    assert text not in headline(admin_client, outgoing("pending", due_at=timezone.now() + timedelta(days=1)))
    assert text not in headline(admin_client, outgoing("published"))


def test_a_page_of_a_message_that_waits_takes_no_query_for_it() -> None:
    Worker.objects.create(**CONSUMER)
    row = incoming("requeued", causation_id="c-1", round=2)
    client = staff("view_processedmessage", "view_publishedmessage", "requeue_processedmessage")
    with CaptureQueriesContext(connection) as queries:
        client.get(f"{INCOMING}{row.pk}/change/?_changelist_filters=state%3Drequeued")
    assert len(queries) <= 10, [item["sql"][:150] for item in queries]


def own_traceback() -> str:
    try:
        decode_body(b"{", "application/json")
    except Exception:  # noqa: BLE001  any will do
        return traceback.format_exc()
    raise AssertionError("it is no JSON")


def test_of_a_traceback_the_frames_of_libraries_are_folded() -> None:
    trace = own_traceback()
    found = parts(trace)
    assert "\n".join(part.text for part in found) == trace.strip("\n"), "nothing is left out"
    assert [part for part in found if "tests/admin/test_waiting.py" in part.text and not part.folded]
    assert "PayloadError" in found[-1].text
    assert found[-1].folded == 0
    folded = [part for part in found if part.folded]
    assert folded
    assert all("tests/admin" not in part.text for part in folded)
    assert sum(part.folded for part in folded) == sum(part.text.count("  File ") for part in folded)


@pytest.mark.parametrize(
    ("trace", "folded"),
    [
        ("", []),
        ("no traceback at all\n  but text", [0]),
        (
            'Traceback (most recent call last):\n  File "/usr/lib/python3.11/json/x.py", line 1, in loads\n    x\nE: y',
            [0],
        ),
        (
            """Traceback (most recent call last):
  File "/srv/shop/a.py", line 1, in a
    b()
    ^^^
  File "/v/site-packages/b/c.py", line 2, in b
    c()

  File "<frozen x>", line 2, in c
E: y
  more""",
            [0, 2, 0],
        ),
        (
            """  + Exception Group Traceback (most recent call last):
  |   File "/srv/a.py", line 3, in a
  |     b()
  |   File "/v/site-packages/b.py", line 3, in b
  |     c()
  | ExceptionGroup: x""",
            [0, 1, 0],
        ),
    ],
)
def test_any_text_is_told_in_parts(trace: str, folded: list[int]) -> None:
    assert [part.folded for part in parts(trace)] == folded
    assert "\n".join(part.text for part in parts(trace)) == trace


def test_a_message_tells_its_error_first_then_payload_timeline_and_properties(admin_client: Client) -> None:
    row = incoming("failed", error="Boom", exception_type="shop.Boom", attempts=2)
    for number, name in ((1, "first.py"), (2, "second.py")):
        trace = f'Traceback:\n  File "/srv/{name}", line 1, in a\n  File "/x/site-packages/lib.py", line 1, in b\nBoom'
        Attempt.objects.create(message=row, number=number, round=1, traceback=trace)
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    places = [html.index(f'id="msg-{name}"') for name in ("error", "payload", "timeline", "facts", "headers")]
    assert places == sorted(places)
    error = html[places[0] : places[1]]
    assert "second.py" in error
    assert "first.py" not in error
    assert re.search(r"<summary>1 frame of libraries</summary><pre[^>]*>  File &quot;/x/site-packages", error)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("running 3, waiting 5", "运行 3，等待 5"),
        ("stopping", "正在停止"),
        ("waiting for the broker", "正在等待消息中间件"),
        (
            "running 1, waiting 0; waits for another process's transaction: 2 messages",
            "运行 1，等待 0; 等待另一进程的事务：2 条消息",
        ),
        ("running 0, waiting 0; cannot use for now: a, b", "运行 0，等待 0; 暂时无法使用：a, b"),
        ("cannot renew its claims in default", "无法在 default 续期其占用"),
        ("broker: Cannot reach it; refused", "消息中间件：Cannot reach it; refused"),
        ("what a later release says", "what a later release says"),
        ("", ""),
    ],
)
def test_what_a_worker_says_is_there_in_chinese_and_in_english(status: str, text: str) -> None:
    with translation.override("en"):
        assert words.status(status) == status
    with translation.override("zh-hans"):
        assert words.status(status) == text


def test_workers_and_audit_are_chinese_on_a_chinese_page(admin_client: Client) -> None:
    Worker.objects.create(**CONSUMER)
    AuditRecord.objects.create(
        action="requeue", kind="processed", alias="default", state_before="failed", state_after="requeued"
    )
    admin_client.cookies["django_language"] = "zh-hans"
    with translation.override(None):  # or this thread would stay Chinese
        look_at_chinese_pages(admin_client)


def look_at_chinese_pages(admin_client: Client) -> None:
    for page in ("/admin/messaging/worker/", QUEUES):
        html = admin_client.get(page).content.decode()
        assert "运行 0，等待 0" in html, page
        assert "running 0" not in html, page
        assert re.search(r"<td[^>]*>消费者</td>", html), page
    html = admin_client.get("/admin/messaging/auditrecord/").content.decode()
    assert "失败 → 已重新入队" in html
    assert "已重新入队" in admin_client.get(f"{INCOMING}{incoming('requeued').pk}/change/").content.decode()
