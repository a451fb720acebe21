"""What docs/deploy/ gives to Prometheus and Grafana asks for what is really served."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, MatrixSelector, VectorSelector

from messaging.metrics import exposition, names
from messaging.metrics.names import FAMILIES
from messaging.metrics.tally import Found
from tests.docs.blocks import DOCS, find
from tests.metrics.scraping import Scrape
from tests.waiting import wait_until
from tools.services import free_ports

DEPLOY = DOCS / "deploy"
RULES = DEPLOY / "prometheus-rules.yaml"
BOARD = DEPLOY / "grafana-dashboard.json"
SCRAPED = {"job", "instance"}  # which Prometheus adds
LABELS_OF = re.compile(r"label_values\((?P<query>.+), (?P<label>\w+)\)")
VARIABLE = re.compile(r"\$(__rate_interval|alias|queue)\b")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(BOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            match = LABELS_OF.fullmatch(variable["definition"])
            assert match is not None, variable
            yield variable["name"], f"count by ({match['label']}) ({match['query']})"


def whole(query: str) -> str:
    """With the dashboard's variables as they stand at first."""
    return VARIABLE.sub(lambda found: "5m" if found[1].startswith("__") else ".*", query)


def parsed(query: str) -> Any:
    return promql_parser.parse(whole(query))


def named(number: float) -> Found:
    """Something of every metric, each label with its own name as its value."""
    return {(family.name, tuple(family.labels)): (number,) * family.size for family in FAMILIES}


@pytest.fixture(scope="module")
def served() -> Mapping[str, set[str]]:
    """The labels of each sample of a scrape in which every metric has something to say."""
    text, _ = exposition.page(lambda: named(1.0), "")
    labels = Scrape(text.decode()).labels
    assert len(labels) >= len(FAMILIES)
    return labels


@pytest.mark.parametrize(("title", "query"), list(queries()), ids=lambda value: value[:60])
def test_each_query_asks_for_what_is_served(title: str, query: str, served: Mapping[str, set[str]]) -> None:
    problems = list(problems_of(parsed(query), served))
    assert not problems, f"{title}: {problems}"


def problems_of(expression: Any, served: Mapping[str, set[str]]) -> Iterator[str]:
    """What the metrics that are asked for do not have. Labels that an aggregation drops are gone for what is above."""
    _, problems = _look(expression, served)
    yield from problems


def _look(expression: Any, served: Mapping[str, set[str]]) -> tuple[set[str], list[str]]:
    """The labels that an expression has, and what is wrong within it."""
    if isinstance(expression, MatrixSelector):
        return _look(expression.vector_selector, served)
    if isinstance(expression, VectorSelector):
        if expression.name not in served:
            return set(), [f"nobody serves {expression.name}"]
        labels = served[expression.name] | SCRAPED
        asked = {matcher.name for matcher in expression.matchers.matchers}
        return labels, [f"{expression.name} has no label {name}" for name in asked - labels]
    if isinstance(expression, AggregateExpr):
        labels, problems = _look(expression.expr, served)
        kept = set(expression.modifier.labels) if expression.modifier else set()
        assert expression.modifier is None or "By" in str(expression.modifier.type), "only `by` is known here"
        return kept, problems + [f"{expression} groups by {name}, which is not there" for name in kept - labels]
    if isinstance(expression, BinaryExpr):
        (left, first), (right, second) = _look(expression.lhs, served), _look(expression.rhs, served)
        odd = [f"{expression}: the sides have other labels"] if left and right and left != right else []
        return left or right, [*first, *second, *odd]
    labels, problems = set(), []
    for inner in _inside(expression):
        more, wrong = _look(inner, served)
        labels |= more
        problems += wrong
    return labels, problems


def _inside(expression: Any) -> list[Any]:
    """The parts of a call, of parentheses and the like; nothing of a number."""
    if hasattr(expression, "args"):
        return list(expression.args)
    return [expression.expr] if hasattr(expression, "expr") else []


@pytest.mark.parametrize(
    "query",
    [
        "messaging_no_such_metric",
        'messaging_workers{queue="x"}',
        "sum by (queue) (rate(messaging_relayed_messages[5m]))",
        "sum by (handler) (rate(messaging_relayed_messages_total[5m]))",
        "max by (alias) (messaging_workers) / max by (kind) (messaging_workers)",
        "histogram_quantile(0.5, sum by (le) (rate(messaging_critical_time_seconds[5m])))",
    ],
)
def test_a_wrong_query_would_be_found(query: str, served: Mapping[str, set[str]]) -> None:
    assert list(problems_of(parsed(query), served))


def test_every_metric_is_shown_by_the_dashboard() -> None:
    text = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert [family.name for family in FAMILIES if family.name not in text] == []


def test_the_panels_of_the_dashboard_are_apart_and_described() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    identities = [panel["id"] for panel in board()["panels"]]
    assert len(set(identities)) == len(identities)
    assert all(panel["description"].endswith(".") for panel in panels())


def test_an_alarm_says_what_it_means_and_uses_the_labels_that_it_has(served: Mapping[str, set[str]]) -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        labels, _ = _look(parsed(rule["expr"]), served)
        told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert told <= labels, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_table_of_alarms_is_complete() -> None:
    page = (DOCS / "how-to/monitor.md").read_text()
    told = [name for row in page.splitlines() for name in re.findall(r"`(Messaging\w+)`", row.partition(" | ")[0])]
    assert told == [rule["alert"] for rule in rules()]


def test_prometheus_takes_the_rules() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, which Debian's package prometheus has")
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@pytest.mark.slow
def test_prometheus_itself_answers_each_query(served: Mapping[str, set[str]], tmp_path: Path) -> None:
    """Of a scrape in which every metric has something to say; alarms may answer that nothing is wrong."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus, which Debian's package of that name has")
    own, theirs = free_ports(2)
    exposition.serve(lambda: named(2.0), "127.0.0.1", own)
    jobs = [{"job_name": "all", "static_configs": [{"targets": [f"127.0.0.1:{own}"]}]}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs, "rule_files": [str(RULES)]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{theirs}"]
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def ask(query: str) -> list[Any]:
            url = f"http://127.0.0.1:{theirs}/api/v1/query?{urlencode({'query': query})}"
            try:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    result: list[Any] = json.load(answer)["data"]["result"]
                    return result
            except urllib.error.HTTPError as error:
                if error.code == 503:  # it is not ready yet
                    return []
                raise AssertionError(f"{query}: {error.read().decode()}") from error
            except urllib.error.URLError:  # it does not listen yet
                assert prometheus.poll() is None, (tmp_path / "log").read_text()
                return []

        wait_until(lambda: ask("count_over_time(messaging_workers[5m]) > 2"), deadline=240, what="three scrapes")
        alarms = {rule["alert"] for rule in rules()}
        for title, query in queries():
            if title not in alarms:  # after a scrape that was late all series are away until the next one
                wait_until(partial(ask, whole(query)), what=f"{title}: {query} answers nothing")
    finally:
        prometheus.terminate()
        prometheus.wait(180)


def test_what_is_to_be_scraped_is_where_it_is_served() -> None:
    [block] = find("prometheus", language="yaml")
    consumers, web = yaml.safe_load(block.text)["scrape_configs"]
    page = block.page.read_text()
    ports = set(re.findall(r"--metrics-port=(\d+)", page))
    assert {target.rpartition(":")[2] for target in consumers["static_configs"][0]["targets"]} == ports
    assert web["metrics_path"] == "/messaging/metrics/"
    assert names.RELAYED.sample in (DOCS / "reference/metrics.md").read_text()
