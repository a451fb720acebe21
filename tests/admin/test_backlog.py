"""What the pages cost when very much waits: no statement reads a table, or walks one in search of its rows."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.admin import filters
from messaging.db.clock import Now
from messaging.models import FailureGroup, ProcessedMessage, PublishedMessage
from messaging.monitoring import failure_groups, readings, snapshot
from tests.admin.test_groups import GROUPS
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, outgoing, staff
from tests.many_rows import copy
from tests.test_plans import TABLES, plans_of

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "postgresql", reason="reads PostgreSQL's plans"),
]
BACKLOG, ENDED, FAILED = 100_000, 50_000, 10_000
PAGES = (
    "/admin/", "/admin/messaging/", QUEUES, OUTGOING, INCOMING, "/admin/messaging/worker/",
    f"{OUTGOING}?state=pending", f"{OUTGOING}?state=failed", f"{OUTGOING}?state=pending&before=9999999",
    f"{OUTGOING}?state=pending&period=24h", f"{OUTGOING}?queue=absent", f"{OUTGOING}?queue=absent&before=100000",
    f"{INCOMING}?state=failed", f"{INCOMING}?queue=absent", f"{INCOMING}?handler=absent", f"{INCOMING}?alias=absent",
    f"{INCOMING}?state=failed&queue=absent", f"{INCOMING}?queue=absent&handler=absent&period=15m",
    f"{INCOMING}?state=processed&queue=absent", f"{INCOMING}?exception=Absent", f"{INCOMING}?run=1h",
    f"{INCOMING}?state=failed&exception=Absent&run=1s", f"{INCOMING}?operation=1-skipped",
    f"{INCOMING}?state=failed&period=24h", f"{OUTGOING}?operation=1-done",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()


def fill(ended: int) -> None:
    """What ended first, then what waits, as after an outage: it stands together at the end of the table."""
    hour = timezone.now() - timedelta(hours=1)
    copy(outgoing("published", due_at=None), ended)
    copy(outgoing("pending", publish_at=hour, due_at=hour), BACKLOG)
    copy(incoming("failed"), FAILED)
    copy(incoming("processed"), ended)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE messaging_publishedmessage, messaging_processedmessage")


def searches(plan: str) -> list[str]:
    """The lines of a plan that read a table, or one of its indexes of all rows, from its end in search of some rows."""
    lines = plan.splitlines()
    whole = [rf"Seq Scan on {table}" for table in TABLES] + ["message_pkey on", "_created on", "_received on"]
    return [
        line
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if any(name in line for name in whole) and "Filter:" in below
    ]


@pytest.mark.parametrize("ended", [ENDED, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_no_page_reads_a_table_however_much_waits(monkeypatch: pytest.MonkeyPatch, ended: int) -> None:
    monkeypatch.setattr(filters, "LOOKED_AT", 1000)
    fill(ended)
    client = staff(*EVERYTHING)
    for page in PAGES:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(page).status_code == 200, page
        assert len(queries) <= 10, (page, [query["sql"][:150] for query in queries])
        for sql, plan in plans_of(lambda page=page: client.get(page)).items():  # type: ignore[misc]
            assert not searches(plan), f"{page}\n{sql}\n{plan}"
    box = snapshot.read().outboxes["default"]
    assert box.due == snapshot.MOST + 1
    assert box.oldest is not None
    assert timezone.now() - box.oldest > timedelta(minutes=59)
    due = PublishedMessage.objects.scheduled("default", due_at__lte=Now()).explain()
    expected = re.search(r" rows=(\d+) ", due)
    assert expected is not None
    assert int(expected[1]) > BACKLOG / 2, due  # else no limit seems to spare it anything
    [unsorted] = plans_of(lambda: PublishedMessage.objects.filter(error="never").count()).values()
    assert searches(unsorted), "a table that is read as a whole is noticed"


@pytest.mark.slow
def test_a_group_costs_no_more_than_is_counted_of_it() -> None:
    large, small = (FailureGroup.objects.create(fingerprint=name * 32, exception_type="shop.Boom") for name in "ab")
    copy(incoming("processed"), ENDED)
    for state, group, number in (("failed", large, BACKLOG), ("retrying", large, ENDED), ("discarded", small, ENDED)):
        copy(incoming(state, fingerprint=group.fingerprint, error="Boom"), number)
    alone = incoming("failed", fingerprint=small.fingerprint, error="Boom")
    one = ProcessedMessage.objects.filter(fingerprint=large.fingerprint, state="failed").latest("pk")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE messaging_processedmessage")
    client = staff(*EVERYTHING)
    pages = [
        GROUPS, f"{GROUPS}?status=open", *(f"{GROUPS}{group.pk}/{name}/" for group in (large, small) for name in (
            "change", "requeue", "silence")),
        *(f"{INCOMING}{row.pk}/change/?_changelist_filters=fingerprint%3D{row.fingerprint}" for row in (one, alone)),
        *(f"{INCOMING}?fingerprint={group.fingerprint}{state}" for group in (large, small)
          for state in ("", "&state=failed", "&state=retrying", "&state=discarded")),
    ]  # fmt: skip
    for page in pages:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(page).status_code == 200, page
        assert len(queries) <= 10, (page, [query["sql"][:150] for query in queries])
        for sql, plan in plans_of(lambda page=page: client.get(page)).items():  # type: ignore[misc]
            found = [line for line in searches(plan) if "publishedmessage" not in line]  # which is empty
            assert not found, f"{page}\n{sql}\n{plan}"
    for group, number in ((large, "10,000+"), (small, "1")):
        assert f">{number} failed message" in client.get(f"{GROUPS}{group.pk}/change/").content.decode()
    assert "10,000+ others like this" in client.get(f"{INCOMING}{one.pk}/change/").content.decode()
    counted = plans_of(lambda: failure_groups.open_counts("default", [small.fingerprint]))
    adopted = plans_of(lambda: failure_groups.adopt("default"))
    for sql, plan in {**counted, **adopted}.items():
        assert "messaging_inbox_failures" in plan, f"{sql}\n{plan}"
