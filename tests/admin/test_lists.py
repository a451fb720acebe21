"""Finding one's way in lists: filters and pages are kept, neighbours lead on, and an empty list says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.admin import site
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.admin import base, filters, lists, paginator
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage, QueueControl
from messaging.monitoring import readings
from tests.admin_rows import INCOMING, OUTGOING, incoming, outgoing, staff

pytestmark = pytest.mark.django_db
AUDIT = "/admin/messaging/auditrecord/"
WORKERS = "/admin/messaging/worker/"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}, "mail": {}}}}
    readings.forget()
    yield
    readings.forget()


def get(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200, address
    return response.content.decode()


def links(html: str, text: str) -> list[str]:
    """The addresses of the links whose text holds this one."""
    found = re.findall(r'<a[^>]*href="([^"]*)"[^>]*>(.*?)</a>', html, re.DOTALL)
    return [unescape(address) for address, words in found if text in words]


def test_the_lists_filter_and_page_stay_through_every_link_and_act(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.MessageAdmin, "list_per_page", 2)
    for number in range(4):
        incoming("failed", routing_key=f"key.{number}")
        incoming("failed", queue="mail")
    address = f"{INCOMING}?queue=billing&state=failed&p=2"
    (page,) = links(get(admin_client, address), "key.1")
    assert page.endswith("?_changelist_filters=queue%3Dbilling%26state%3Dfailed%26p%3D2")
    html = get(admin_client, page)
    assert links(html, "Incoming messages")[-1] == address
    (requeue,) = links(html, "Requeue")
    (back,) = links(get(admin_client, requeue), "Back")
    assert back == page
    assert admin_client.post(requeue, {"reason": ""}).headers["Location"] == page
    assert links(get(admin_client, page), "Incoming messages").count(address) == 2  # above and beside it
    posted = {"action": "discard", "_selected_action": ProcessedMessage.objects.filter(state="failed")[0].pk}
    assert links(admin_client.post(address, posted).content.decode(), "Back") == [address]
    assert admin_client.post(address, {**posted, "post": "yes"}).headers["Location"] == address


def test_newer_and_older_lead_through_the_filtered_list(admin_client: Client) -> None:
    rows = [incoming("failed", routing_key=f"key.{number}") for number in range(3)]
    rows.insert(2, incoming("processed", routing_key="key.last"))
    page = f"{INCOMING}{rows[0].pk}/change/?_changelist_filters=state%3Dfailed"
    html = get(admin_client, page)
    assert links(html, "Older") == []
    (newer,) = links(html, "Newer")
    assert newer == f"{INCOMING}{rows[1].pk}/change/?_changelist_filters=state%3Dfailed"
    admin_client.post(f"{INCOMING}{rows[1].pk}/discard/?_changelist_filters=state%3Dfailed")
    html = get(admin_client, newer)  # which is none of the list any more
    assert links(html, "Older") == [page]
    assert links(html, "Newer") == [f"{INCOMING}{rows[3].pk}/change/?_changelist_filters=state%3Dfailed"]
    assert links(get(admin_client, f"{INCOMING}{rows[2].pk}/change/"), "Newer") == []
    assert links(get(admin_client, f"{INCOMING}{rows[2].pk}/change/"), "Older") == [f"{INCOMING}{rows[3].pk}/change/"]


def test_newer_and_older_lead_through_what_a_search_found(admin_client: Client) -> None:
    rows = [incoming(routing_key=key, correlation_id="c") for key in ("orders.paid", "mail.sent", "orders.placed")]
    kept = f"{INCOMING}{rows[0].pk}/change/?_changelist_filters=q%3D"
    for term, row in (("orders.", rows[2]), ("c", rows[1])):
        (newer,) = links(get(admin_client, kept + term), "Newer")
        assert newer.startswith(f"{INCOMING}{row.pk}/"), term
    incoming(message_id="orders.", routing_key="x")
    incoming(correlation_id="orders.", routing_key="x")
    assert links(get(admin_client, f"{kept}orders."), "Newer")[0].startswith(f"{INCOMING}{rows[2].pk + 1}/")


def test_a_neighbour_is_not_looked_for_in_the_whole_table(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "REACH", 2)
    rows = [incoming("failed", queue=queue) for queue in ("mail", "billing", "billing", "mail")]
    page = f"{INCOMING}{rows[0].pk}/change/?_changelist_filters=queue%3Dmail"
    assert links(get(admin_client, page), "Newer") == []
    assert links(get(admin_client, f"{page}%26state%3Dfailed"), "Newer") != [], "an index leads there"


@pytest.mark.parametrize("kept", ["state=nonsense", "q=%00", "body__contains=a", "p=x&all=1", "before=1", "%ED%A0%80"])
def test_a_forged_list_is_no_error(admin_client: Client, kept: str) -> None:
    row, out = incoming("failed"), outgoing("draft")
    for page in (f"{INCOMING}{row.pk}/change/", f"{OUTGOING}{out.pk}/change/"):
        assert admin_client.get(page, {"_changelist_filters": kept}).status_code == 200


def test_a_list_that_began_in_the_midst_leads_back_to_newer_rows(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paginator, "LIMIT", 3)
    monkeypatch.setattr(base.MessageAdmin, "list_per_page", 2)
    rows = [incoming("failed", routing_key=f"key.{number}") for number in range(9)]
    html = get(admin_client, f"{INCOMING}?state=failed")
    assert links(html, "Newer") == []
    assert links(html, "Older") == [f"?before={rows[7].pk}&state=failed"]
    html = get(admin_client, f"{INCOMING}?state=failed&before={rows[4].pk}")
    (newer,) = links(html, "Newer")
    assert newer == f"?before={rows[6].pk}&state=failed"
    html = get(admin_client, INCOMING + newer)
    assert "key.5" in html
    assert "key.6" not in html
    (newest,) = links(html, "Newer")
    html = get(admin_client, INCOMING + links(get(admin_client, INCOMING + newest), "Newer")[0])
    assert "key.8" in html
    assert "before=" not in newest or f"before={rows[8].pk}" in newest
    assert links(get(admin_client, f"{INCOMING}?before={rows[0].pk}"), "Newer") == ["?"], "nothing is there"


def test_the_audit_leads_on_where_counting_stops(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paginator, "LIMIT", 3)
    monkeypatch.setattr(base.ReadOnlyAdmin, "list_per_page", 2)
    for number in range(5):
        AuditRecord.objects.create(action="requeue", username=f"user{number}", kind="processed", alias="default")
    (older,) = links(get(admin_client, AUDIT), "Older")
    assert "user2" in get(admin_client, AUDIT + older)


def test_an_empty_list_says_why_and_what_to_do(admin_client: Client) -> None:
    for page, text in (
        (INCOMING, "Nothing has arrived yet."), (OUTGOING, "Nothing was published yet."),
        (AUDIT, "Nobody has acted yet."), (WORKERS, "manage.py consume"),
    ):  # fmt: skip
        assert text in get(admin_client, page), page
    html = get(admin_client, f"{INCOMING}?state=failed&period=24h&q=abc")
    assert re.search(r"Nothing matches:.*state: <strong>failed</strong>.*<strong>Past 24 hours</strong>.*abc", html)
    assert "Nothing has arrived yet." not in html
    assert links(html, "Look at any time") == ["?q=abc&state=failed"]
    assert "?" in links(html, "Show all")


def test_show_all_is_offered_only_where_it_shows_more(admin_client: Client) -> None:
    incoming("failed")
    incoming("processed")
    assert links(get(admin_client, INCOMING), "Show all") == []
    assert links(get(admin_client, f"{INCOMING}?state=failed"), "Show all") == ["?"]
    assert links(get(admin_client, f"{INCOMING}?q=nothing"), "Show all") == ["?", "?"]  # and where nothing matches


def test_a_state_within_a_period_has_the_rows_that_others_overtook(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "OVERTAKEN", 3)
    now = timezone.now()
    hours = (30, 20, 2, 30, 20, 1, 30)  # when each arrived; the numbers rise with the rows
    rows = [incoming("failed", routing_key=f"key.{number}") for number in range(len(hours))]
    for row, ago in reversed(list(zip(rows, hours, strict=True))):  # so a table may have them in another order
        ProcessedMessage.objects.filter(pk=row.pk).update(received_at=now - timedelta(hours=ago))

    def shown(period: str) -> list[str]:
        return sorted(set(re.findall(r"key\.\d", get(admin_client, f"{INCOMING}?state=failed&period={period}"))))

    assert shown("24h") == ["key.1", "key.2", "key.4", "key.5"]
    assert shown("15m") == []
    ProcessedMessage.objects.filter(routing_key="key.1").update(received_at=now - timedelta(hours=23))
    ProcessedMessage.objects.filter(routing_key="key.3").update(received_at=now - timedelta(hours=24, minutes=-1))
    assert shown("24h") == ["key.1", "key.2", "key.3", "key.4", "key.5"], "the first by time is not the first by number"


def test_due_leads_to_what_is_due(admin_client: Client) -> None:
    outgoing("pending", routing_key="is.due")
    outgoing("pending", routing_key="is.planned", publish_at=timezone.now() + timedelta(days=1))
    outgoing("pending", routing_key="is.unrouted", attempts=1, unrouted=True)
    outgoing("published", routing_key="is.sent")
    html = get(admin_client, "/admin/messaging/")
    (address,) = links(html, "Outgoing, due")
    html = get(admin_client, address)
    assert "is.due" in html
    assert "1 outgoing message" in html
    assert not [key for key in ("is.planned", "is.unrouted", "is.sent") if key in html]


def test_each_number_counts_what_its_link_leads_to(admin_client: Client, settings: Any) -> None:
    same = {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}
    settings.MESSAGING = {"default": same, "other": same}
    for alias, count in (("default", 2), ("other", 3)):
        for _ in range(count):
            incoming("failed", alias=alias)
            incoming("requeued", alias=alias, round=2)
    incoming("retrying")
    incoming("processing")
    ProcessedMessage.objects.filter(state="requeued").update(received_at=timezone.now() - timedelta(hours=1))
    for _ in range(4):
        outgoing("pending")
    outgoing("pending", publish_at=timezone.now() + timedelta(days=1))
    for _ in range(6):
        outgoing("pending", attempts=1, unrouted=True)
    for _ in range(7):
        outgoing("failed", error="refused")
    for page in ("/admin/messaging/", "/admin/messaging/queuecontrol/"):
        html = get(admin_client, page)
        numbers = re.findall(
            r'<a href="([^"]*)">\s*<span class="msg-card-label">.*?msg-card-value">(\d+)<', html, re.DOTALL
        )
        numbers += re.findall(r'<a href="([^"]*)" class="msg-failures">(\d+)', html)
        assert len(numbers) >= 4, page
        for address, number in numbers:
            listed = admin_client.get(unescape(address)).context["cl"].result_count
            assert listed == int(number), address
    assert {2, 3} <= {int(number) for _address, number in numbers}, "of each alias its own"


def test_a_list_says_what_went_wrong_beside_the_class_of_the_error(admin_client: Client) -> None:
    incoming("failed", exception_type="shop.Boom", error="Boom: the <disk> is full " + "x" * 300)
    incoming("failed", exception_type="messaging.exceptions.PayloadError", error="The body is not valid JSON.")
    html = get(admin_client, INCOMING)
    assert ">Boom</strong>" in html
    assert "the &lt;disk&gt; is full" in html
    assert re.search(r"is full x+…<", html), "it says that there is more"
    assert "x" * 121 not in html
    assert ">PayloadError</strong>" in html
    assert "The body is not valid JSON." in html


def test_a_list_shows_the_end_of_ids_and_clips_long_names(admin_client: Client) -> None:
    ids = ["019a0000-0000-7000-8000-00000000000a", "019a0000-0000-7000-8000-00000000000b", "short", "i" * 255]
    for message_id in ids:
        incoming(message_id=message_id, routing_key="k" * 190 + ".end", queue="q" * 190)
        outgoing(message_id=message_id, routing_key="k" * 190 + ".end", exchange="e" * 190)
    for page in (INCOMING, OUTGOING):
        html = get(admin_client, page)
        assert re.findall(r"<code>(?:<span[^>]*>)?([^<]+)<", html) == ["…iiiiiiii", "short", "…0000000b", "…0000000a"]
        assert f'title="{ids[0]}"' in html
        shown = re.sub(r'(title|aria-label)="[^"]*"', "", html)
        assert not [name for name in ("k" * 61, "q" * 61, "e" * 61) if name in shown]
        assert f'title="{"k" * 190}.end"' in html, "the whole is in reach"


def test_queues_say_first_whether_they_are_paused_and_what_failed(admin_client: Client) -> None:
    html = get(admin_client, "/admin/messaging/queuecontrol/")
    names = ["Queue", "State", "Action", "Open failures", "Sent, not back", "Ready", "Unacked", "Consumers"]
    places = [html.index(f">{name}<") for name in names]
    assert places == sorted(places)


def test_the_history_of_a_message_leads_back_to_it_in_its_list(admin_client: Client) -> None:
    row = incoming("failed")
    page = f"{INCOMING}{row.pk}/change/?_changelist_filters=state%3Dfailed"
    (history,) = links(get(admin_client, page), "History")
    html = get(admin_client, history)
    assert page in links(html, "billing")
    assert f"{INCOMING}?state=failed" in links(html, "Incoming messages")


def test_keeping_ones_place_stays_within_ten_queries() -> None:
    rows = [incoming("failed", exception_type="shop.Boom", error="Boom", fingerprint="f") for _ in range(3)]
    client = staff("view_processedmessage", "view_publishedmessage", "requeue_processedmessage")
    ProcessedMessage.objects.filter(pk=rows[1].pk).update(state="requeued")
    for query in ("state%3Drequeued", "q%3Dorders", "state%3Daway", "period%3D24h"):
        with CaptureQueriesContext(connection) as queries:
            client.get(f"{INCOMING}{rows[1].pk}/change/?_changelist_filters={query}")
        assert len(queries) <= 10, [item["sql"][:200] for item in queries]
    assert PublishedMessage.objects.count() == 0


def test_every_empty_list_says_why_and_what_to_do() -> None:
    lists = {model: own for model, own in site._registry.items() if model._meta.app_label == "messaging"}
    assert len(lists) > 6
    assert [model for model, own in lists.items() if not own.nothing and model is not QueueControl] == []


def test_a_list_looks_once_for_what_is_not_there(admin_client: Client) -> None:
    incoming("failed")
    with CaptureQueriesContext(connection) as queries:
        assert "result_list" not in get(admin_client, f"{INCOMING}?state=failed&queue=absent")
    assert len([query for query in queries if "absent" in query["sql"]]) == 1
