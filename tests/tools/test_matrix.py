"""docs/reference/versions.md says which versions were tried: with all of the matrix, and nothing beside it."""

from __future__ import annotations

import re

import pytest

from tools.matrix import CELLS, PAGE, SERVERS, Cell, is_of, missing_here, read, written

PLAIN = "| Versions | Tests | Passed on |\n|---|---|---|\n| A 1 | `a` | *not tested* |\n| B 2 | `b` | 2026-01-02 |\n"


def test_the_page_has_a_row_for_each_cell_with_a_day_or_none() -> None:
    rows = read(PAGE.read_text())
    assert {name: ran for name, (ran, _) in rows.items()} == {cell.name: cell.ran for cell in CELLS}
    for name, (_, result) in rows.items():
        assert re.fullmatch(r"\*not tested\*|(failed on )?\d{4}-\d\d-\d\d", result), name


def test_only_what_ran_is_noted() -> None:
    assert written(PLAIN, {"A 1": "not run: it is not here"}, "2026-03-04") == PLAIN
    assert read(written(PLAIN, {"A 1": "passed", "B 2": "failed"}, "2026-03-04")) == {
        "A 1": ("`a`", "2026-03-04"),
        "B 2": ("`b`", "failed on 2026-03-04"),
    }


def test_a_version_belongs_to_its_own_series() -> None:
    assert is_of("4.3.6", "4.3")
    assert is_of("17", "17")
    assert not is_of("4.30.1", "4.3")
    assert not is_of("", "9")


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_here(Cell({"Python": "2.0", "Django": "1.0"})) == "there is no python2.0 on PATH"
    monkeypatch.setitem(SERVERS, "RabbitMQ", lambda: "3.10.8")
    assert missing_here(Cell({"RabbitMQ": "4.3"})) == "the RabbitMQ here is 3.10.8"
    assert missing_here(Cell({"RabbitMQ": "3.10"})) == ""
    monkeypatch.setitem(SERVERS, "RabbitMQ", lambda: "")
    assert missing_here(Cell({"RabbitMQ": "3.10"})) == "there is no RabbitMQ here"
