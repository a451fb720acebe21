"""What `make bench` makes of its numbers, and that a message lost or doubled is an error and not a rate."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4
from xml.etree import ElementTree

import psycopg
import pytest

from benchmarks import chart, page, report, tables, timing
from benchmarks.__main__ import measure
from benchmarks.leak import GROWTH, growth
from benchmarks.measuring import Broken, Figures, Measurement, Sample, listed
from benchmarks.ratios import RATIOS
from benchmarks.result import Result
from benchmarks.stage import Stage
from tests.services import Database
from tools.environment import ROOT

PROMISED = {
    "publish_many/floor",
    "publish/celery",
    "relay/handwritten",
    "relay/raw_pipelined",
    "consume_single/handwritten",
    "consume_best/celery",
    "consume_best/dramatiq",
    "consume_batch/handwritten",
    "consume_batch/celery",
    "end_to_end/celery",
}
MACHINE = dict.fromkeys(
    ["date", "cores", "cpu", "memory_gib", "system", "python", "django", "pika", "psycopg", "postgresql", "rabbitmq"],
    "1",
)


@pytest.fixture
def result() -> Result:
    """Three rounds in which everything took 100 messages a second, but for a few."""
    found = Result({**MACHINE, "load": "0.5"}, {"rounds": 3, "peers": ["celery 1.0"]})
    for rate in (90, 100, 200):
        for one in listed():
            if one.group != "figures":
                found.add(one.name, Sample(rate, 1.0))
    found.samples |= {"publish": [630.0, 700.0, 1e6], "consume_2x1": [850.0] * 3, "consume_batch": [45.0, 50.0, 1.0]}
    found.add("latency", {"latency_p50_ms": 12.0, "latency_p99_ms": 40.0})
    return found


def test_the_ratios_have_the_promised_names_and_are_medians_of_the_rounds(result: Result) -> None:
    ratios = json.loads(json.dumps(result.as_json()))["ratios"]
    assert set(ratios) >= PROMISED
    assert ratios["publish/celery"] == 7
    assert ratios["relay/handwritten"] == 1
    assert ratios["consume_batch/celery"] == 0.5


def test_the_best_way_to_consume_is_the_fastest_of_ours(result: Result) -> None:
    assert result.as_json()["best"] == "consume_2x1"
    assert result.ratios["consume_best/celery"] == 8.5


def test_targets_are_met_or_not(result: Result) -> None:
    met = result.as_json()["met"]
    assert met["publish/celery"]
    assert met["latency_p99_ms"]
    assert not met["consume_batch/celery"]
    assert not met["latency_p50_ms"]
    assert "end_to_end/celery" not in met


def test_every_ratio_compares_what_is_measured() -> None:
    names = {one.name for one in listed()} | {"consume_best"}
    assert {name for ratio in RATIOS.values() for name in (ratio.ours, ratio.other)} <= names


def test_what_was_not_measured_is_in_no_ratio() -> None:
    alone = Result(samples={"publish": [10.0]})
    assert alone.ratios == {}
    assert "publish()" in report.table(alone)


def test_the_table_has_every_rate_ratio_and_figure_with_its_target(result: Result) -> None:
    result.broken["huey"] = "nothing happened"
    text = report.table(result)
    assert re.search(r"publish\(\), all in one transaction +700 ", text)
    assert re.search(r"publish/celery +7\.00 +≥ 5  met$", text, re.MULTILINE)
    assert re.search(r"consume_batch/celery +0\.50 +≥ 40  NOT MET$", text, re.MULTILINE)
    assert re.search(r"median ms +12 +≤ 10  NOT MET$", text, re.MULTILINE)
    assert re.search(r"--processes=2 --concurrency=1 .*\(best\)$", text, re.MULTILINE)
    assert "BROKEN: huey: nothing happened" in text


def test_the_chart_is_a_picture_whose_bars_are_as_long_as_their_rates(result: Result) -> None:
    root = ElementTree.fromstring(chart.svg(result.rates))
    bars = [element for element in root if element.tag.endswith("rect") and float(element.get("x", 0)) == chart.LEFT]
    assert len(bars) == sum(map(len, chart.GROUPS.values()))
    lengths = [float(bar.get("width", 0)) for bar in bars[:4]]
    assert lengths[0] == pytest.approx(7 * lengths[1], rel=0.01)
    assert "publish() 700" in next(element.text or "" for element in root if element.tag.endswith("desc"))


def test_every_bar_is_measured() -> None:
    names = {one.name for one in listed()} | {"consume_best"}
    assert {name for bars in chart.GROUPS.values() for name in bars} <= names


def test_the_page_takes_a_result_and_keeps_its_prose(result: Result, tmp_path: Path) -> None:
    copy, picture = tmp_path / "benchmarks.md", tmp_path / "benchmarks.svg"
    copy.write_text(page.PAGE.read_text())
    page.write(result, copy, picture)
    page.write(result, copy, picture)
    text = copy.read_text()
    assert text.count("| `publish/celery` | Celery, `delay()` | 7.00 | ≥ 5 | met |") == 1
    prose = page.PAGE.read_text()
    assert text.partition(page.BEGIN)[0] == prose.partition(page.BEGIN)[0]
    assert text.partition(page.END)[2] == prose.partition(page.END)[2]
    ElementTree.fromstring(picture.read_text())


def test_the_page_names_every_measurement() -> None:
    text = page.PAGE.read_text()
    for one in listed():
        assert f"`{one.name}`" in text or re.fullmatch(r"consume_\dx\d", one.name), one.name


@pytest.fixture
def stage(postgres: Database) -> Iterator[Stage]:
    """Nothing but a database with the effects' table."""
    name = f"bench_{uuid4().hex[:8]}"
    with psycopg.connect(postgres.dsn, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        with psycopg.connect(postgres.dsn, dbname=name, autocommit=True) as connection:
            connection.execute(tables.POSTGRESQL.encode())
            yield cast("Stage", SimpleNamespace(database=connection))
        server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def record(stage: Stage, at: str, *keys: str) -> None:
    for key in keys:
        stage.database.execute("INSERT INTO bench_effect (key, at) VALUES (%s, %s)", [key, at])


@pytest.mark.postgres
def test_effects_are_timed_from_the_first_transaction_to_the_last(stage: Stage) -> None:
    record(stage, "2026-01-01 12:00:00", "a", "b")
    record(stage, "2026-01-01 12:00:01", "c", "d")
    record(stage, "2026-01-01 12:00:02", "e", "f")
    assert timing.span(stage, 6) == Sample(4, 2.0)


@pytest.mark.postgres
@pytest.mark.parametrize("keys", [("a", "b"), ("a", "b", "b"), ("a", "b", "c", "c")])
def test_a_message_without_its_one_effect_breaks_the_measurement(stage: Stage, keys: tuple[str, ...]) -> None:
    record(stage, "2026-01-01 12:00:00", *keys)
    record(stage, "2026-01-01 12:00:01", "last")
    with pytest.raises(Broken, match="one each"):
        timing.span(stage, 4)


def test_a_measurement_that_breaks_is_named_and_the_others_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(_stage: Stage, count: int) -> Sample | Figures:
        if result.samples.get("breaks"):
            raise Broken("2 effects of 1 message")
        return Sample(count, 1.0)

    def works(_stage: Stage, count: int) -> Sample | Figures:
        return Sample(count, 2.0)

    result, stage = Result(), cast("Any", None)
    chosen = [Measurement(run.__name__, "", "publish", run, 10, 5) for run in (breaks, works)]
    measure(stage, chosen, 2, False, result)
    assert result.broken == {"breaks": "2 effects of 1 message"}
    assert result.samples == {"works": [5.0, 5.0]}
    assert "2/2 breaks: BROKEN: 2 effects of 1 message" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("ONLY=publish,nothing", "ONLY=nothing is unknown. There are: consume_best, "),
        ("ROUNDS=many", "ROUNDS=many is no number of rounds: it should be from 1 to 99."),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    variable: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit, match=re.escape(said)):
        main()


def test_no_peer_s_package_is_needed_to_read_the_list() -> None:
    peers = ["celery", "dramatiq", "huey", "django_tasks"]
    code = f"import sys, benchmarks.__main__; sys.exit(any(name in sys.modules for name in {peers}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_memory_that_grows_with_the_messages_is_told_from_what_goes_up_and_down() -> None:
    steady = [90.0, *([100.0, 103.0, 99.0] * 10)]
    assert abs(growth(steady)) < GROWTH
    assert growth([100.0 + 0.25 * number for number in range(30)]) > GROWTH
