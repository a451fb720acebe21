"""Messages in two databases: each page is about one of them, and says which; what is counted is in both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connections
from django.test import Client
from django.utils import timezone

from messaging.admin import actions, databases
from messaging.handlers import handler, registry
from messaging.models import (
    AuditRecord,
    FailureCount,
    FailureGroup,
    Operation,
    ProcessedMessage,
    PublishedMessage,
    QueueControl,
    Rehearsal,
    Worker,
)
from messaging.monitoring import databases as known_databases
from messaging.monitoring import readings, snapshot
from messaging.monitoring.conditions import conditions
from messaging.operations.stored import run_waiting
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, outgoing

pytestmark = [
    pytest.mark.usefixtures("second_database"),
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]
PK = 900_001  # of a row in both
TOP = "/admin/messaging/"
GROUPS = f"{TOP}failuregroup/"


@pytest.fixture(autouse=True)
def _two(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {
        "default": {"URL": "database://", "DATABASES": ["default", "other"], "QUEUES": {"billing": {}}}
    }
    readings.forget()
    yield
    readings.forget()
    known_databases._away.clear()


def both(state: str = "failed", **values: Any) -> tuple[Any, Any]:
    """A row with the same number in each database."""
    here = incoming(state, pk=PK, routing_key="near.key", error="NEAR", **values)
    return here, incoming(state, pk=PK, routing_key="far.key", error="FAR", database="other", **values)


def states() -> tuple[str, str]:
    found = [ProcessedMessage.objects.using(name).get(pk=PK).state for name in ("default", "other")]
    return found[0], found[1]


def text(client: Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, (url, answer.status_code)
    return answer.content.decode()


def test_a_list_shows_one_database_and_offers_the_other(admin_client: Client) -> None:
    both()
    here, there = text(admin_client, INCOMING), text(admin_client, f"{INCOMING}?database=other")
    assert "near.key" in here
    assert "far.key" not in here
    assert "far.key" in there
    assert "near.key" not in there
    assert "?database=other" in here
    assert f'href="{INCOMING}other_3A{PK}/change/?_changelist_filters=database%3Dother"' in there
    assert text(admin_client, f"{INCOMING}?database=nonsense").count("near.key") == 1
    settled = text(admin_client, f"{INCOMING}?database=other&queue=billing&period=24h&q=far.")
    assert "far.key" in settled


def test_with_one_database_nothing_is_said_of_it(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"billing": {}}}}
    row = incoming("failed")
    assert "database=" not in text(admin_client, INCOMING)
    assert f'href="{INCOMING}{row.pk}/change/"' in text(admin_client, INCOMING)
    assert admin_client.get(f"{INCOMING}other_3A{row.pk}/change/").status_code == 302


def links(html: str, page: str) -> set[str]:
    found = (urljoin(page, unescape(url)) for url in re.findall(r'<a [^>]*?href="([^"]+)"', html))
    return {url for url in found if urlsplit(url).path.startswith(TOP)}


def test_no_link_leads_from_one_database_to_a_row_of_the_other(admin_client: Client) -> None:
    """Whatever pages there are: one that is about the second database names nothing of the first."""
    for name, mark in (("default", "near"), ("other", "far")):
        rows = ProcessedMessage.objects.using(name)
        row = incoming("failed", pk=PK, routing_key=f"{mark}.key", fingerprint="f", database=name)
        incoming("processed", pk=PK + 1, routing_key=f"{mark}.key", database=name)
        for number, state in enumerate(("failed", "draft", "published", "discarded")):
            outgoing(state, pk=PK + number, routing_key=f"{mark}.key", message_id=f"{mark}-{number}", database=name)
        outgoing("published", pk=PK + 9, routing_key=f"{mark}.key", inbox_id=row.pk, database=name)
        actions.stored.store(rows.filter(pk=PK), "discard", actions.Operator(reason=f"{mark}.key"))
        run_waiting(name, "w")
    seen, wanted = set[str](), {f"{INCOMING}?database=other", f"{OUTGOING}?database=other"}
    wanted |= {f"{TOP}{name}/?database=other" for name in ("operation", "auditrecord")}
    while wanted - seen:
        page = min(wanted - seen)
        seen.add(page)
        answer = admin_client.get(page)
        if answer.status_code != 200 or answer.streaming:
            continue
        html = answer.content.decode()
        assert "near.key" not in html, page
        wanted |= {urlsplit(url).path for url in links(html, page) if "other_3A" in url}
    assert len(seen) > 30, seen
    for part in ("payload/", "history/", "discard/", "copy/", "restore/", "operation/other_3A"):
        assert any(part in url for url in seen), part


def test_what_is_done_to_one_leaves_its_namesake_alone(admin_client: Client) -> None:
    both()
    page = f"{INCOMING}other_3A{PK}/"
    html = text(admin_client, f"{page}change/")
    assert "FAR" in html
    assert f'href="{page}requeue/?_changelist_filters=database%3Dother"' in html
    answer = admin_client.post(f"{page}discard/", {"post": "yes", "reason": "no use"})
    assert answer["Location"].startswith(f"{page}change/")
    assert states() == ("failed", "discarded")
    listed = {"action": "restore", "_selected_action": [str(PK)], "post": "1", "index": "0"}
    admin_client.post(f"{INCOMING}?database=other", listed)
    assert states() == ("failed", "failed")
    admin_client.post(INCOMING, {**listed, "action": "requeue"})
    assert states() == ("requeued", "failed")
    assert AuditRecord.objects.using("other").count() == 2
    assert AuditRecord.objects.count() == 1


def test_the_history_of_each_is_its_own(admin_client: Client) -> None:
    both()
    admin_client.post(f"{INCOMING}other_3A{PK}/discard/", {"post": "yes", "reason": "no use"})
    assert LogEntry.objects.get().object_id == f"other:{PK}"
    assert "no use" in text(admin_client, f"{INCOMING}other_3A{PK}/history/")
    assert "no use" not in text(admin_client, f"{INCOMING}{PK}/history/")
    assert f"{INCOMING}other_3A{PK}/change/" in text(admin_client, "/admin/"), "the admin's recent actions"


def test_an_operation_acts_where_its_messages_are(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "INLINE", 1)
    both()
    incoming("failed", database="other")
    selected = {"action": "requeue", "_selected_action": [str(PK)], "select_across": "1", "index": "0"}
    asked = admin_client.post(f"{INCOMING}?database=other&state=failed", selected).content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', asked))
    answer = admin_client.post(f"{INCOMING}?database=other&state=failed", {**fields, "post": "1", "index": "0"})
    operation = Operation.objects.using("other").get()
    assert answer["Location"] == f"{TOP}operation/other_3A{operation.pk}/change/"
    page = text(admin_client, answer["Location"])
    assert "database: other; state: failed" in page
    assert f"{TOP}operation/other_3A{operation.pk}/cancel/" in page
    assert not Operation.objects.exists()
    run_waiting("other", "w")
    assert states() == ("failed", "requeued")
    assert "2 / 2" in text(admin_client, answer["Location"])
    assert answer["Location"] in text(admin_client, f"{TOP}auditrecord/?database=other")


def test_an_operation_of_the_second_database_can_be_ended(admin_client: Client) -> None:
    incoming("failed", database="other")
    rows = ProcessedMessage.objects.using("other").all()
    operation = actions.stored.store(rows, "requeue", actions.Operator())
    admin_client.post(f"{TOP}operation/other_3A{operation.pk}/cancel/")
    operation.refresh_from_db(using="other")
    assert operation.state == "cancelled"


def test_a_draft_is_changed_where_it_is(admin_client: Client) -> None:
    outgoing("draft", pk=PK, routing_key="near.key")
    outgoing("draft", pk=PK, routing_key="far.key", database="other")
    page = f"{OUTGOING}other_3A{PK}/change/"
    assert "far.key" in text(admin_client, page)
    values = {"using": "default", "routing_key": "new.key", "format": "text", "body": "x", "mandatory": "on"}
    assert admin_client.post(page, {**values, "_publish": "1"})["Location"].startswith(page)
    assert PublishedMessage.objects.get(pk=PK).routing_key == "near.key"
    row = PublishedMessage.objects.using("other").get(pk=PK)
    assert (row.state, row.routing_key) == ("pending", "new.key")
    assert "Published." in text(admin_client, f"{OUTGOING}other_3A{PK}/history/")


def test_a_message_says_for_what_it_waits_though_workers_are_recorded_elsewhere(admin_client: Client) -> None:
    both("requeued")
    QueueControl.objects.create(queue="billing", paused=True, changed_by="nina")
    assert "Its queue is paused since" in text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    QueueControl.objects.all().delete()
    assert "No consumer takes from its queue" in text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    Worker.objects.create(name="w", kind="consume", host="web1", pid=7, queues=["billing"])
    html = text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    assert "It waits for its turn in the queue." in html
    assert f"other_3A{PK}/requeue/" in html, "it is away, and nothing of it is on the road"


def test_linked_messages_are_found_in_the_other_database(admin_client: Client) -> None:
    row = incoming("failed", pk=PK, message_id="m-1", database="other")
    out = outgoing("published", message_id="m-1", routing_key="sent.here")
    cause = incoming("processed", message_id="c-1", routing_key="the.cause")
    ProcessedMessage.objects.using("other").filter(pk=row.pk).update(causation_id="c-1")
    html = text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    assert f'href="{OUTGOING}{out.pk}/change/"' in html
    assert f'href="{INCOMING}{cause.pk}/change/"' in html
    assert f'href="{INCOMING}other_3A{PK}/change/"' in text(admin_client, f"{OUTGOING}{out.pk}/change/")


def test_what_is_counted_is_in_both_and_each_number_leads_to_its_list(admin_client: Client) -> None:
    both()
    late = timezone.now() - timezone.timedelta(hours=1)
    outgoing("pending", database="other", publish_at=late, due_at=late)
    for page in (TOP, QUEUES):
        html = text(admin_client, page)
        assert f'href="{OUTGOING}?database=other&amp;state=due"' in html
        assert "No relay runs for" in html
        assert f'href="{OUTGOING}?state=pending&amp;database=other"' in html
        assert f'href="{INCOMING}?state=failed' in html
        assert f'href="{INCOMING}?database=other&amp;state=failed' in html
    box = snapshot.read().outboxes["default"]
    assert (box.due, box.database) == (1, "other")


def test_a_database_that_is_away_is_said_and_hides_nothing_else(admin_client: Client) -> None:
    row = incoming("failed", message_id="m-1", error="NEAR")
    other = connections["other"]
    other.close()
    name, other.settings_dict["NAME"] = other.settings_dict["NAME"], "/nowhere/at-all"
    try:
        for page in (TOP, QUEUES, INCOMING, f"{TOP}worker/"):
            assert "The database “other” cannot be read" in text(admin_client, page), page
        assert "NEAR" in text(admin_client, f"{INCOMING}{row.pk}/change/")
        assert [found.name for found in conditions(snapshot.read())] == ["database_away"]
    finally:
        other.close()
        other.settings_dict["NAME"] = name


def test_keys_name_rows_and_nothing_else() -> None:
    assert databases.place_of(ProcessedMessage, "17") == ("default", 17)
    assert databases.place_of(ProcessedMessage, "other:17") == ("other", 17)
    for nonsense in ("", "x", "default:x", "gone:17", "other:", ":17", "other:17:18", "9" * 19):
        assert databases.place_of(ProcessedMessage, nonsense)[1] is None, nonsense


def group_of(fingerprint: str, database: str, **values: Any) -> FailureGroup:
    values = {"exception_type": "shop.Oops", "handler": f"{database}.handler", **values}
    return FailureGroup.objects.using(database).create(fingerprint=fingerprint, **values)


def test_a_failure_group_counts_and_acts_where_its_messages_are(admin_client: Client) -> None:
    both(fingerprint="f")
    incoming("failed", fingerprint="f", database="other")
    group_of("f", "default", pk=7)
    group_of("f", "other", pk=7, note="FAR-NOTE")
    minute = int(timezone.now().timestamp()) // 600 * 10
    FailureCount.objects.using("other").create(group_id=7, alias="default", minute=minute, failed=2)
    message = text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    assert "1 other like this" in message
    assert f'href="{GROUPS}other_3A7/change/"' in message
    listed = text(admin_client, f"{GROUPS}?database=other")
    assert "other.handler" in listed
    assert "default.handler" not in listed
    assert f'href="{INCOMING}?database=other&amp;state=failed&amp;fingerprint=f" class="msg-failures">2</a>' in listed
    page = text(admin_client, f"{GROUPS}other_3A7/change/")
    assert "FAR" in page
    assert "NEAR" not in page
    assert f"{GROUPS}other_3A7/requeue/" in page
    admin_client.post(f"{GROUPS}other_3A7/silence/", {"length": "1h"})
    admin_client.post(f"{GROUPS}other_3A7/note/", {"note": "known"})
    silenced = [FailureGroup.objects.using(name).get().silenced_at is not None for name in ("default", "other")]
    assert silenced == [False, True]
    assert FailureGroup.objects.using("other").get().note == "known"
    told = snapshot.read()
    assert told.quiet == {"default": set(), "other": {"f"}}
    assert told.recent == {"default": 1, "other": 0}
    assert sum(told.silenced.values()) == 2
    answer = admin_client.post(f"{GROUPS}other_3A7/requeue/", {"post": "1"})
    operation = Operation.objects.using("other").get()
    assert answer["Location"] == f"{TOP}operation/other_3A{operation.pk}/change/"
    assert f'href="{GROUPS}other_3A7/change/"' in text(admin_client, answer["Location"])
    run_waiting("other", "w")
    assert states() == ("failed", "requeued")
    done = f"{INCOMING}?database=other&amp;operation={operation.pk}-done"
    assert f'href="{done}">2</a>' in text(admin_client, answer["Location"])
    assert "far.key" in text(admin_client, unescape(done))
    result = admin_client.post(f"{TOP}operation/other_3A{operation.pk}/result/")
    assert str(PK).encode() in b"".join(result)  # type: ignore[call-overload]
    assert AuditRecord.objects.using("other").filter(action="export", message_pk=operation.pk).exists()


def test_an_export_is_of_the_list_that_is_shown(admin_client: Client) -> None:
    both()
    for name, mark, other in (("default", b"near.key", b"far.key"), ("other", b"far.key", b"near.key")):
        page = f"{INCOMING}export/?database={name}&state=failed"
        assert admin_client.get(page).status_code == 200
        found = b"".join(admin_client.post(page, {"format": "csv"}))  # type: ignore[call-overload]
        assert mark in found
        assert other not in found
        assert AuditRecord.objects.using(name).get().action == "export"


def test_an_edited_copy_goes_round_where_the_message_is(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"EDIT": True}
    _here, row = both()
    page = f"{INCOMING}other_3A{PK}/edit/"
    assert page in text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    assert f'href="{INCOMING}other_3A{PK}/change/' in text(admin_client, page)
    values = {"seen": row.round, "body": '{"order": 18}', "headers": "", "_confirm": "1"}
    answer = admin_client.post(page, values)
    copy = ProcessedMessage.objects.using("other").get(edited_from=PK)
    assert answer["Location"].startswith(f"{INCOMING}other_3A{copy.pk}/change/")
    assert f'href="{INCOMING}other_3A{PK}/change/"' in text(admin_client, answer["Location"])
    assert states() == ("failed", "superseded")
    assert LogEntry.objects.get().object_id == f"other:{PK}"


def test_a_rehearsal_is_asked_for_where_the_message_is(admin_client: Client) -> None:
    before = {key: list(value) for key, value in registry._handlers.items()}
    handler("billing", rehearse=True)(lambda message: None)
    try:
        both()
        answer = admin_client.post(f"{INCOMING}other_3A{PK}/rehearse/")
        rehearsal = Rehearsal.objects.using("other").get()
        assert answer["Location"].startswith(f"{INCOMING}rehearsal/other_3A{rehearsal.pk}/")
        assert not Rehearsal.objects.exists()
        assert f"{INCOMING}other_3A{PK}/change/" in text(admin_client, answer["Location"])
        assert f"{INCOMING}rehearsal/other_3A{rehearsal.pk}/" in text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    finally:
        registry._handlers.clear()
        registry._handlers.update(before)


def test_a_message_is_cloned_from_its_database(admin_client: Client) -> None:
    incoming("failed", pk=PK, body=b'{"order": "NEAR"}')
    incoming("failed", pk=PK, body=b'{"order": "FAR"}', database="other")
    outgoing("published", pk=PK, body=b'{"order": "FAR"}', database="other")
    form = f"{OUTGOING}add/?clone=incoming:other:{PK}"
    assert form in text(admin_client, f"{INCOMING}other_3A{PK}/change/")
    for page in (form, f"{OUTGOING}add/?clone=outgoing:other:{PK}"):
        html = text(admin_client, page)
        assert "FAR" in html
        assert "NEAR" not in html


@pytest.mark.parametrize("page", ["edit", "rehearse", "payload", "discard", "history"])
def test_no_page_is_that_of_a_database_that_is_not_ours(admin_client: Client, settings: Any, page: str) -> None:
    settings.MESSAGING_CONSOLE = {"EDIT": True}
    incoming("failed", pk=PK)
    assert admin_client.get(f"{INCOMING}gone_3A{PK}/{page}/").status_code == 302


@pytest.mark.skipif(connections["default"].vendor != "postgresql", reason="only PostgreSQL searches payloads")
def test_payloads_are_searched_in_the_database_that_the_list_shows(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True}
    both("processed", body=b'{"order": {"id": 17}}')
    for database, key, other in (("other", "far.key", "near.key"), ("default", "near.key", "far.key")):
        html = admin_client.get(INCOMING, {"q": "order.id:17", "database": database}).content.decode()
        assert key in html
        assert other not in html
