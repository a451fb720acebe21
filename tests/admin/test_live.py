"""Pages that look again by themselves: which do, what they leave to the operator, and what they tell of each try."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.models import Operation, PublishedMessage, tries
from messaging.monitoring import readings
from messaging.operations import Operator, stored
from messaging.operations.stored import run_waiting
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, inline_code, outgoing, staff
from tests.options import set_options
from tests.relays import Desk, relaying, state_is
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db
LATER = timezone.now() + timedelta(days=2)
rows = PublishedMessage.objects


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()
    yield
    readings.forget()


def page_of(row: Any) -> str:
    return f"{OUTGOING if isinstance(row, PublishedMessage) else INCOMING}{row.pk}/change/"


def looks_again(client: Client, page: str) -> bool:
    html = client.get(page).content.decode()
    assert inline_code(html) == []
    assert ("data-live=" in html) == ("messaging/live.js" in html) == ('<a href="" data-live-now>' in html)
    return "data-live=" in html


@pytest.mark.parametrize(
    ("state", "values", "does"),
    [
        ("pending", {}, True),
        ("pending", {"attempts": 2, "unrouted": True, "due_at": timezone.now() + timedelta(seconds=60)}, True),
        ("pending", {"due_at": LATER}, False),
        ("published", {}, False),
        ("failed", {}, False),
        ("discarded", {}, False),
    ],
)
def test_the_page_of_an_outgoing_message_looks_again_while_it_is_under_way(
    admin_client: Client, state: str, values: dict[str, Any], does: bool
) -> None:
    assert looks_again(admin_client, page_of(outgoing(state, **values))) == does


@pytest.mark.parametrize(
    ("state", "values", "does"),
    [
        ("processing", {}, True),
        ("requeued", {}, True),
        ("retrying", {}, True),
        ("retrying", {"retry_at": timezone.now() + timedelta(seconds=60)}, True),
        ("retrying", {"retry_at": LATER}, False),
        ("processed", {}, False),
        ("failed", {}, False),
    ],
)
def test_the_page_of_an_incoming_message_does_so_too(
    admin_client: Client, state: str, values: dict[str, Any], does: bool
) -> None:
    assert looks_again(admin_client, page_of(incoming(state, **values))) == does


def test_the_overview_and_the_queues_look_again_and_an_operation_until_it_ends(admin_client: Client) -> None:
    assert looks_again(admin_client, "/admin/messaging/")
    assert looks_again(admin_client, QUEUES)
    incoming("failed")
    failed = type(incoming("failed")).objects.filter(state="failed")
    operation = stored.store(failed, "requeue", Operator(name="anna"), scope="all")
    page = f"/admin/messaging/operation/{operation.pk}/change/"
    assert looks_again(admin_client, page)
    run_waiting("default", "worker:1")
    assert Operation.objects.get().state == "done"
    assert not looks_again(admin_client, page)


def parts(html: str) -> set[str]:
    return set(re.findall(r'data-live-part="([a-z]+)"', html))


def test_a_part_that_can_change_is_on_the_page_before_it_does(admin_client: Client) -> None:
    """The script fills what is there: an error needs a place while there is none."""
    for make, states in ((outgoing, ("pending", "failed")), (incoming, ("processing", "failed"))):
        before, after = (admin_client.get(page_of(make(state))).content.decode() for state in states)
        assert parts(before) == parts(after) == {"tools", "headline", "error", "timeline", "facts", "related"}


def test_a_look_of_the_script_takes_no_word_that_it_does_not_show(admin_client: Client) -> None:
    row = incoming("failed")
    admin_client.post(f"{INCOMING}{row.pk}/discard/", {"reason": "x"})
    for _ in range(2):
        html = admin_client.get("/admin/messaging/", headers={"X-Messaging-Look": "again"}).content.decode()
        assert "1 message was discarded" in html
    assert "1 message was discarded" in admin_client.get(page_of(row)).content.decode()
    assert "1 message was discarded" not in admin_client.get(page_of(row)).content.decode()


def tried(row: PublishedMessage, fate: str, answer: str) -> None:
    rows.filter(pk=row.pk).update(tries=tries.noted(fate, answer, "web1:7:relay"))


def test_a_timeline_tells_every_try_to_send_with_the_brokers_answer() -> None:
    row = outgoing("failed", error="Unroutable.", attempts=3)
    tried(row, tries.UNROUTED, "Unroutable. NO_ROUTE <b>")
    tried(row, tries.LOST, "the connection was reset")
    tried(row, tries.FAILED, "Unroutable. Make sure that the exchange exists.")
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        html = client.get(page_of(row)).content.decode()
    assert len(queries) <= 10
    timeline = html[html.index("msg-timeline") : html.index('id="msg-facts"')]
    texts = [
        "Written", "Sent, and no queue took it", "Unroutable. NO_ROUTE &lt;b&gt; · relay web1:7:relay",
        "Sent, and the answer was lost: the broker may have it", "the connection was reset",
        "Sending it failed for good", "Make sure that the exchange exists.",
    ]  # fmt: skip
    places = [timeline.index(text) for text in texts]
    assert places == sorted(places)


def test_a_timeline_begins_with_the_writing_however_soon_the_first_try_came(admin_client: Client) -> None:
    row = outgoing("failed", error="Unroutable.", attempts=1)
    tried(row, tries.FAILED, "Unroutable.")
    row.refresh_from_db()
    at = tries.told(row.tries)[0][0].at
    rows.filter(pk=row.pk).update(created_at=at + timedelta(microseconds=999))
    html = admin_client.get(page_of(row)).content.decode()
    assert html.index("Written") < html.index("Sending it failed for good")


def test_a_success_tells_how_often_it_was_sent_and_what_is_not_kept(admin_client: Client) -> None:
    row = outgoing("published", attempts=31, published_at=timezone.now())
    rows.filter(pk=row.pk).update(tries='": "", "fate": "refused", "answer": "full"}\n')
    tried(row, tries.REFUSED, "a full queue")
    html = admin_client.get(page_of(row)).content.decode()
    assert "sent 31 times" in html
    assert "Sent, and not taken for now" in html
    assert "earlier tries are no longer kept" in html
    assert "sent 1 time" not in admin_client.get(page_of(outgoing(attempts=1))).content.decode()


def test_a_list_reads_no_tries(admin_client: Client) -> None:
    tried(outgoing("pending"), tries.REFUSED, "full")
    with CaptureQueriesContext(connection) as queries:
        assert admin_client.get(OUTGOING).status_code == 200
    assert not [query["sql"] for query in queries if re.search(r'"tries"|`tries`', query["sql"])]


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_publishing_to_nowhere_does_not_end_in_green(admin_client: Client, desk: Desk, settings: Any) -> None:
    set_options(settings, UNROUTABLE=[0.05])
    body = {"using": "default", "routing_key": "nobody.listens", "format": "json", "body": "1", "mandatory": "on"}
    html = admin_client.post(f"{OUTGOING}add/", {**body, "_publish": "1"}, follow=True).content.decode()
    assert '<li class="info">The message is stored' in html
    row = rows.get()
    assert looks_again(admin_client, page_of(row))
    with relaying():
        wait_until(state_is(row, "failed"), what="failed at its end")
    html = admin_client.get(page_of(row)).content.decode()
    assert "data-live=" not in html
    assert "Sent, and no queue took it" in html
    assert "Sending it failed for good" in html
    assert html.count("NO_ROUTE") >= 2
