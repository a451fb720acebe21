"""What is served is what was counted, by the rules of Prometheus."""

from __future__ import annotations

import re
import sys
import urllib.request
from itertools import pairwise

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from messaging.metrics import exposition, names
from messaging.metrics.names import BOUNDS, CRITICAL, FAMILIES, PROCESSED
from messaging.metrics.tally import Tally
from tests.metrics.scraping import Scrape
from tools.services import free_ports

BILLING = ("default", 'bil"ling', "shop.bill")


@pytest.fixture
def own() -> Tally:
    tally = Tally()
    tally.add(PROCESSED, BILLING, 3)
    for seconds in (0.001, 2.0, 10_000.0):
        tally.observe(CRITICAL, BILLING, seconds)
    return tally


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_rules(family: names.Family) -> None:
    assert re.fullmatch(r"messaging(_[a-z]+)+", family.name)
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
    assert family.help.endswith(".")
    if family.kind == "histogram":
        assert family.name.endswith("_seconds")
    assert not set(family.labels) & {"job", "instance", "le", "quantile"}


def test_no_two_metrics_have_one_name() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(first < second for first, second in pairwise(BOUNDS))


@pytest.mark.parametrize(
    ("accept", "parse"), [("", plain), ("application/openmetrics-text; version=1.0.0", open_metrics)]
)
def test_what_was_counted_is_served(own: Tally, accept: str, parse: object) -> None:
    text, content_type = exposition.page(own.read, accept)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    scrape = Scrape(text.decode(), parse)
    labels = dict(zip(PROCESSED.labels, BILLING, strict=True))
    assert scrape.value(PROCESSED.sample, **labels) == 3
    assert scrape.value(f"{CRITICAL.name}_count", **labels) == 3
    assert scrape.value(f"{CRITICAL.name}_sum", **labels) == 10_002.001
    assert scrape.value(f"{CRITICAL.name}_bucket", **labels, le="0.005") == 1
    assert scrape.value(f"{CRITICAL.name}_bucket", **labels, le="2.5") == 2
    assert scrape.value(f"{CRITICAL.name}_bucket", **labels, le="+Inf") == 3


def test_a_port_serves_the_same(own: Tally) -> None:
    port = free_ports(1)[0]
    exposition.serve(own.read, "127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        assert answer.read() == exposition.page(own.read, "")[0]
    with pytest.raises(OSError, match=f"Metrics cannot be served at 127.0.0.1:{port}: "):
        exposition.serve(own.read, "127.0.0.1", port)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"django-durable-messaging\[metrics\]"):
        exposition.require()
