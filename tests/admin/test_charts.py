"""The overview's charts: drawn by the server from what was counted, and readable without seeing them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from messaging.models import Counter, QueueControl, Worker
from messaging.monitoring import counters
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import inline_code, staff

pytestmark = pytest.mark.django_db
OVERVIEW = "/admin/messaging/"


def count(ago: int, now: int | None = None, **values: Any) -> None:
    now = now or counters._this_minute("default")
    Counter.objects.create(minute=now - ago, alias="default", queue="billing", **values)


def bars(html: str, kind: str) -> int:
    [chart] = re.findall(rf'<svg class="msg-chart msg-chart-{kind}".*?</svg>', html, re.DOTALL)
    return chart.count("<rect ")


def test_what_was_counted_is_drawn_and_told() -> None:
    now = counters._this_minute("default")
    count(2, now, published=600, processed=590, failed=7)
    count(2, now, processed=10)
    count(5, processed=60)
    count(300, processed=1000)
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        html = client.get(OVERVIEW).content.decode()
    assert len(queries) <= 10
    assert inline_code(html) == []
    assert 'style="' not in html
    assert (bars(html, "published"), bars(html, "processed"), bars(html, "failed")) == (1, 2, 1)
    assert "Processed: 660 in 1 hour, at most 600 a minute." in html
    assert '<th scope="row">' in html, "a table has the same"
    for period, total, number in (("24h", "1,660", 2), ("7d", "1,660", None), ("nonsense", "660", 2)):
        html = client.get(f"{OVERVIEW}?period={period}").content.decode()
        assert f"Processed: {total} in" in html, period
        assert number is None or bars(html, "processed") >= number, period


def test_an_empty_chart_says_why(admin_client: Client) -> None:
    html = admin_client.get(OVERVIEW).content.decode()
    assert "Nothing was counted in this period." in html
    assert 'class="msg-chart' not in html


def test_who_may_see_no_messages_sees_no_chart() -> None:
    assert "Throughput" not in staff("view_auditrecord").get(OVERVIEW).content.decode()


def lines(html: str, kind: str) -> str:
    [chart] = re.findall(rf'aria-labelledby="msg-chart-{kind}">.*?</svg>', html, re.DOTALL)
    return chart


def test_waits_and_runs_are_drawn_as_percentiles_and_told() -> None:
    count(2, processed=100, run_07=90, run_10=9, run_20=1, wait_13=4)
    count(5, processed=100, run_07=100)
    count(400, processed=100, run_00=100)
    client = staff(*EVERYTHING)
    with CaptureQueriesContext(connection) as queries:
        html = client.get(OVERVIEW).content.decode()
    assert len(queries) <= 10, [item["sql"][:150] for item in queries]
    assert inline_code(html) == []
    run = lines(html, "run")
    assert [run.count(f'class="msg-{name}"') for name in ("p50", "p95", "p99")] == [1, 1, 1]
    assert run.count("M") == 6, "three lines, each in two pieces, for nothing ran between them"
    assert "Run: p50 320 ms, p95 500 ms, p99 4.5 s" in html
    assert "Wait: p50" in html
    assert ">Wait p50 / p95 / p99</th>" in html, "a table has the same"
    html = client.get(f"{OVERVIEW}?period=24h").content.decode()
    assert "under 2 ms" in html, "what was brief in the rest of the day"


def test_without_lengths_there_are_no_lines() -> None:
    count(2, processed=100)
    html = staff(*EVERYTHING).get(OVERVIEW).content.decode()
    assert 'class="msg-chart msg-lines"' not in html
    assert "Wait p50" not in html


def test_a_table_has_each_queue_with_a_sparkline_and_the_age_of_the_oldest(settings: Any) -> None:
    settings.MESSAGING = {
        "default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}, "mail": {}, "idle": {}}}
    }
    count(2, processed=1200, wait_10=100)
    count(30, processed=600, failed=7)
    Worker.objects.create(
        name="a", kind="consume", host="h", pid=1, queues=["billing", "mail"], oldest={"billing": 125.0, "mail": "x"}
    )
    Worker.objects.create(name="b", kind="consume", host="h", pid=2, queues=["billing"], oldest={"billing": 3.0})
    QueueControl.objects.create(queue="mail", paused=True)
    html = staff(*EVERYTHING).get(OVERVIEW).content.decode()
    table = html[html.index('id="msg-queue-table"') :]
    names = [name for name in re.findall(r'\?queue=([a-z]+)"', table) if name in ("billing", "mail", "idle")]
    assert names == ["mail", "billing", "idle"], "first what is paused, then what failed"
    [row] = re.findall(r"<tr>(?:(?!</tr>).)*queue=billing(?:(?!</tr>).)*</tr>", table, re.DOTALL)
    assert 'aria-label="1,800 processed and 7 failed in the past hour"' in row
    assert row.count("<rect ") == 2
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r'<td class="msg-num">(.*?)</td>', row)]
    assert cells == ["1,800", "7", "4.8 s", "2 min", "—", "2"]


def test_who_may_see_no_incoming_messages_sees_no_table_of_queues() -> None:
    count(2, processed=1)
    assert "msg-queue-table" not in staff("view_publishedmessage").get(OVERVIEW).content.decode()
