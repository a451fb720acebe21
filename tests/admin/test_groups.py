"""Failure groups in the admin: what they show, what can be done to them, by whom, and what that costs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import translation

from messaging.admin import paginator
from messaging.db.clock import in_utc
from messaging.models import Attempt, AuditRecord, FailureCount, FailureGroup, Operation, ProcessedMessage
from messaging.monitoring import counters, failure_groups, readings
from messaging.monitoring.failure_groups import Cause
from messaging.operations.stored import run_waiting
from tests.admin.test_pages import EVERYTHING, HOSTILE
from tests.admin_rows import INCOMING, QUEUES, incoming, inline_code, staff

pytestmark = pytest.mark.django_db
GROUPS = "/admin/messaging/failuregroup/"
OVERVIEW = "/admin/messaging/"
TRACE = 'Traceback (most recent call last):\n  File "/srv/shop/handlers.py", line 7, in place\n    raise Boom\nBoom'


@pytest.fixture(autouse=True)
def _quiet(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()


def group(fingerprint: str = "a" * 32, failed: int = 3, retrying: int = 0, **values: Any) -> FailureGroup:
    """A group with messages."""
    own = {"exception_type": "shop.Boom", "frame": "shop/handlers.py:place", "handler": "shop.handlers.place", **values}
    found = FailureGroup.objects.create(fingerprint=fingerprint, **own)
    for state, number in (("failed", failed), ("retrying", retrying)):
        for _ in range(number):
            row = incoming(state, fingerprint=fingerprint, exception_type="shop.Boom", error="Boom: no")
            Attempt.objects.create(message=row, number=1, round=1, exception_type="shop.Boom", traceback=TRACE)
    return found


def page(client: Client, url: str = GROUPS) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, url
    return answer.content.decode()


def of(found: FailureGroup, name: str = "change") -> str:
    return f"{GROUPS}{found.pk}/{name}/"


def seen(found: FailureGroup, ago: int, failed: int = 0, retried: int = 0) -> None:
    minute = counters._this_minute("default") - ago
    own = {"alias": "default", "minute": minute - minute % 10}
    FailureCount.objects.create(group=found, failed=failed, retried=retried, **own)


def test_the_list_shows_each_group_with_its_numbers_within_ten_queries() -> None:
    first = group(failed=3, retrying=2, note="ask Eve")
    second = group("b" * 32, 1, frame="", handler="", queue="billing")
    group("c" * 32, 0)
    seen(first, 120, failed=5)
    seen(first, 60, failed=1, retried=9)
    seen(second, 3000, failed=7)
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        html = page(client)
    assert len(queries) <= 10, [query["sql"][:150] for query in queries]
    assert inline_code(html) == []
    for text in ("Boom", "shop/handlers.py:place", "ask Eve", "2 retrying", "no</span>"):
        assert text in html, text
    assert f'href="{INCOMING}?state=failed&amp;fingerprint={"a" * 32}" class="msg-failures">3<' in html
    charts = re.findall(r'aria-label="([^"]+)".*?</svg>', html)
    assert "15 failed attempts in 24 hours, at most 10 in 30 minutes" in charts
    assert html.count("<rect ") == 2
    rows = client.get(f"{INCOMING}?state=failed&fingerprint={'a' * 32}").content.decode()
    assert rows.count('class="field-message_column') + rows.count('<th class="field-message_column') >= 3


def test_groups_can_be_chosen_by_what_is_to_be_done(settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"RELEASE": "2026.5"}
    now = datetime.now(UTC)
    group("a" * 32, 1, exception_type="shop.Opened")
    group("b" * 32, 0, exception_type="shop.Fresh", first_release="2026.5")
    group("c" * 32, 0, exception_type="shop.Again", acted_at=now - timedelta(hours=1))
    group("d" * 32, 0, exception_type="shop.Muted", silenced_at=now)
    group("e" * 32, 0, exception_type="shop.Woken", silenced_at=now, silenced_until=now - timedelta(hours=1))
    client = staff("view_processedmessage")
    wanted = {"open": {"Opened"}, "new": {"Fresh"}, "again": {"Again"}, "silenced": {"Muted"}}
    for status, names in wanted.items():
        html = page(client, f"{GROUPS}?status={status}")
        assert set(re.findall(r'title="shop\.(\w+)"', html)) == names
    html = page(client, f"{GROUPS}?q=fres")
    assert set(re.findall(r'title="shop\.(\w+)"', html)) == {"Fresh"}
    assert "new in 2026.5" in html
    settings.MESSAGING_CONSOLE = {}
    assert "new in" not in page(client, f"{GROUPS}?status=new")
    assert "Nothing matches:" in page(client, f"{GROUPS}?q=absent")


def test_an_empty_list_says_why(admin_client: Client) -> None:
    assert "No message has failed." in page(admin_client)


def test_the_page_of_a_group_tells_what_they_have_in_common() -> None:
    found = group(failed=12, retrying=1, first_release="1.0", note="<b>Eve</b>")
    seen(found, 60, failed=4)
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        html = page(client, of(found))
    assert len(queries) <= 10, [query["sql"][:150] for query in queries]
    assert inline_code(html) == []
    for text in (
        "12 failed messages", "1 retrying", "shop/handlers.py:place", "shop.handlers.place", "Boom: no", "raise Boom",
        "&lt;b&gt;Eve", "4 failed attempts in 24 hours", "Requeue, retrying ones too", ">Silence<", "1.0",
    ):  # fmt: skip
        assert text in html, text
    assert len(re.findall(r"/processedmessage/\d+/change/", html)) == 10
    FailureGroup.objects.filter(pk=found.pk).update(fingerprint="9" * 32)
    assert "No message of this group is failed any more." in page(client, of(found))


def test_of_a_long_traceback_the_end_is_shown(admin_client: Client) -> None:
    found = group(failed=1)
    Attempt.objects.update(traceback=TRACE + "  and so on\n" * 3000 + "shop.Boom: at the very end")
    assert "at the very end" in page(admin_client, of(found))


def test_all_of_a_group_is_requeued_or_discarded_as_a_stored_operation(admin_client: Client) -> None:
    found, other = group(failed=3, retrying=2), group("b" * 32, 1)
    ask = page(admin_client, of(found, "requeue"))
    assert "3 messages are affected." in ask
    assert "Try one first" in ask
    assert not Operation.objects.exists(), "asking does nothing"
    answer = admin_client.post(of(found, "requeue"), {"post": "yes", "reason": "mended", "rate": "50"})
    operation = Operation.objects.get()
    assert answer["Location"] == f"/admin/messaging/operation/{operation.pk}/change/"
    assert operation.scope == "failure group: Boom · shop/handlers.py:place; state: failed"
    assert (operation.total, operation.group_id, operation.rate, operation.reason) == (3, found.pk, 50, "mended")
    late = incoming("failed", fingerprint=found.fingerprint)
    assert run_waiting("default", "worker:1") == 1
    assert ProcessedMessage.objects.filter(fingerprint=found.fingerprint, state="requeued").count() == 3
    late.refresh_from_db()
    assert late.state == "failed", "what came later is left alone"
    html = page(admin_client, of(found))
    assert f'href="/admin/messaging/operation/{operation.pk}/change/">#{operation.pk} Requeue · 3 / 3<' in html
    assert AuditRecord.objects.get(kind="operation").message_pk == operation.pk
    told = page(admin_client, f"/admin/messaging/operation/{operation.pk}/change/")
    assert f'href="{of(found)}">{operation.scope}<' in told
    assert "3 messages are affected." in page(admin_client, f"{of(found, 'discard')}?retrying=1")
    admin_client.post(f"{of(found, 'discard')}?retrying=1", {"post": "yes"})
    run_waiting("default", "worker:1")
    assert ProcessedMessage.objects.filter(fingerprint=found.fingerprint, state="discarded").count() == 3
    assert ProcessedMessage.objects.get(fingerprint=other.fingerprint).state == "failed"


def test_a_rate_that_is_none_stores_nothing(admin_client: Client) -> None:
    found = group()
    answer = admin_client.post(of(found, "requeue"), {"post": "yes", "rate": "many"})
    assert "The rate has to be a number" in answer.content.decode()
    assert not Operation.objects.exists()


def test_what_fails_again_after_an_act_is_flagged(admin_client: Client) -> None:
    found = group(last_seen=datetime.now(UTC) - timedelta(hours=1))
    admin_client.post(of(found, "requeue"), {"post": "yes"})
    assert "failed again</span>" not in page(admin_client, of(found))
    FailureGroup.objects.update(last_seen=datetime.now(UTC) + timedelta(seconds=5))
    assert "failed again</span>" in page(admin_client, of(found))


def test_a_group_is_silenced_and_heard_again(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"RELEASE": "2.0"}
    found = group(last_release="1.9")
    ask = page(admin_client, of(found, "silence"))
    assert "Only up to release 2.0" in ask
    admin_client.get(of(found, "unsilence"))
    admin_client.post(of(found, "silence"), {"length": "nonsense"})
    found.refresh_from_db()
    assert found.silenced_at is None
    html = admin_client.post(
        of(found, "silence"), {"length": "8h", "release": "1", "reason": "known"}, follow=True
    ).content.decode()
    for text in ("It is silenced", "End the silence", "silenced by", "1.9, 2.0"):
        assert text.lower() in html.lower(), text
    found.refresh_from_db()
    assert found.silenced_until is not None
    assert in_utc(found.silenced_until) - datetime.now(UTC) < timedelta(hours=8, seconds=1)
    assert "silenced</span>" in page(admin_client)
    admin_client.get(of(found, "unsilence"))
    assert FailureGroup.objects.silenced().exists(), "a GET ends nothing"
    admin_client.post(of(found, "unsilence"))
    assert not FailureGroup.objects.silenced().exists()
    html = admin_client.get("/admin/messaging/auditrecord/").content.decode()
    assert html.count(f'href="{of(found)}"') == 2
    assert "silence ended" in html
    assert "known" in html


def test_a_note_is_kept_and_recorded(admin_client: Client) -> None:
    found = group()
    admin_client.post(of(found, "note"), {"note": f"  {HOSTILE}\x00 "})
    found.refresh_from_db()
    assert (found.note, found.noted_by) == (HOSTILE, "admin")
    for url in (GROUPS, of(found)):
        assert inline_code(page(admin_client, url)) == []
        assert "<script>alert(1)" not in page(admin_client, url)
    assert AuditRecord.objects.get().action == "note"


def test_the_overview_counts_what_is_silenced_and_does_not_alarm(django_assert_max_num_queries: Any) -> None:
    found = group(failed=3)
    client = staff(*EVERYTHING)
    html = page(client, OVERVIEW)
    assert f'href="{GROUPS}"' in html
    assert re.search(r"Failure groups</span>\s*<span[^>]*>1</span>", html)
    assert card(html, "Incoming, failed") == ("3", True, "wait for an operator")
    FailureGroup.objects.update(silenced_at=datetime.now(UTC))
    with django_assert_max_num_queries(10):
        html = page(client, OVERVIEW)
    assert card(html, "Incoming, failed") == ("3", False, "3 of them silenced")
    incoming("failed", fingerprint="b" * 32)
    assert card(page(client, OVERVIEW), "Incoming, failed") == ("4", True, "3 of them silenced")
    assert found.pk


def test_more_than_is_counted_alarms_whatever_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("overview", "paginator"):
        monkeypatch.setattr(f"messaging.admin.{module}.LIMIT", 2)
    group(failed=3, silenced_at=datetime.now(UTC))
    assert card(page(staff("view_processedmessage"), OVERVIEW), "Incoming, failed")[:2] == ("2+", True)
    assert paginator.LIMIT == 2


def card(html: str, label: str) -> tuple[str, bool, str]:
    [found] = [part for part in html.split("<li ") if f">{label}</span>" in part]
    value = re.search(r'msg-card-value">([^<]+)<', found)
    note = re.search(r'msg-card-note">(?:<span[^>]*>[^<]*</span>)?([^<]*)<', found)
    assert value is not None
    assert note is not None
    return value[1], "msg-card-alarm" in found.partition(">")[0], note[1].strip()


def test_rising_failures_lead_to_the_groups() -> None:
    for _ in range(20):
        failure_groups.add("default", "default", Cause("a" * 32, "shop.Boom"), is_final=True)
    failure_groups.write("default")
    html = page(staff("view_processedmessage"), INCOMING)
    assert f'href="{GROUPS}" data-live-word>Failures are rising: 20' in html
    assert "Failures are rising" not in page(staff("view_queuecontrol", name="quentin"), QUEUES)


def test_a_failed_message_says_how_many_others_are_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = group(failed=13, retrying=1)
    client, row = staff(*EVERYTHING), ProcessedMessage.objects.filter(state="failed").latest("pk")
    with CaptureQueriesContext(connection) as queries:
        html = page(client, f"{INCOMING}{row.pk}/change/")
    assert len(queries) <= 10
    assert f'<a href="{of(found)}">12 others like this</a>' in html
    retrying = ProcessedMessage.objects.get(state="retrying")
    assert "13 others like this" in page(client, f"{INCOMING}{retrying.pk}/change/")
    lone = incoming("failed", fingerprint="b" * 32, error="Boom")
    html = page(client, f"{INCOMING}{lone.pk}/change/")
    assert f'<a href="{INCOMING}?fingerprint={"b" * 32}">0 others like this</a>' in html, "its group comes later"
    for module in ("failure_facts", "paginator"):
        monkeypatch.setattr(f"messaging.admin.{module}.LIMIT", 5)
    assert "5+ others like this" in page(client, f"{INCOMING}{row.pk}/change/")


def test_similar_failures_are_the_failed_ones_unless_the_address_says_another_state(admin_client: Client) -> None:
    group(failed=2, retrying=1)
    for query, number in (("", 2), ("&state=retrying", 1), ("&state=discarded", 0), ("&state=open", 3)):
        html = page(admin_client, f"{INCOMING}?fingerprint={'a' * 32}{query}")
        assert len(re.findall(r'class="action-select"', html)) == number, query


@pytest.mark.parametrize("name", ["requeue", "discard", "silence", "unsilence", "note"])
def test_acting_takes_the_permissions_that_it_takes_on_messages(name: str) -> None:
    found = group()
    reader = staff("view_processedmessage", name="reader")
    html = page(reader, of(found))
    assert name not in re.findall(rf"{GROUPS}{found.pk}/(\w+)/", html)
    for method in (reader.get, reader.post):
        assert method(of(found, name), {"post": "yes", "length": "1h"}).status_code == 403
    blind = staff("requeue_processedmessage", "discard_processedmessage", name="blind")
    assert blind.post(of(found, name), {"post": "yes"}).status_code == 403
    assert blind.get(GROUPS).status_code == 403
    assert blind.get(of(found)).status_code == 403
    verb = name if name in ("requeue", "discard") else "requeue"
    able = staff("view_processedmessage", f"{verb}_processedmessage", name="able")
    assert able.post(of(found, name), {"post": "yes", "length": "1h"}).status_code == 302
    another = "discard" if verb == "requeue" else "requeue"
    other = staff("view_processedmessage", f"{another}_processedmessage", name="other")
    assert other.post(of(found, name), {"post": "yes"}).status_code in ((403,) if name == verb else (200, 302))
    assert AuditRecord.objects.exists()


@pytest.mark.parametrize("key", ["0", "999999999999999999999", "x"])
def test_another_number_is_no_error(admin_client: Client, key: str) -> None:
    assert admin_client.get(f"{GROUPS}{key}/change/").status_code == 302


def test_it_is_there_in_chinese() -> None:
    found = group(retrying=1)
    client = staff(*EVERYTHING)
    client.cookies["django_language"] = "zh-hans"
    for url in (GROUPS, of(found), of(found, "silence"), of(found, "requeue")):
        with translation.override("en"):  # and back: the site's middleware leaves the language in effect
            html = page(client, url)
        assert "故障组" in html
        for english in ("Failure group", "Silence", "Look again", "retrying"):
            assert english not in re.sub(r"<[^>]+>", "", html), (url, english)
