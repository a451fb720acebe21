"""The overview's charts: drawn by the server from what was counted, and readable without seeing them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from messaging.models import Counter
from messaging.monitoring import counters
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import inline_code, staff

pytestmark = pytest.mark.django_db
OVERVIEW = "/admin/messaging/"


def count(ago: int, **values: Any) -> None:
    Counter.objects.create(minute=counters._this_minute("default") - ago, alias="default", queue="billing", **values)


def bars(html: str, kind: str) -> int:
    [chart] = re.findall(rf'<svg class="msg-chart msg-chart-{kind}".*?</svg>', html, re.DOTALL)
    return chart.count("<rect ")


def test_what_was_counted_is_drawn_and_told() -> None:
    count(2, published=600, processed=590, failed=7)
    count(2, processed=10)
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
