"""docs/reliability.md says which test proves which failure mode: it is true, and nothing is left out."""

from __future__ import annotations

import re
import sys

import pytest

from tests.site import ROOT
from tools.reliability import MODES, PAGE, Proof, Row, proves, read, record, result_of, written


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read(PAGE.read_text())


@pytest.fixture(scope="module")
def proofs() -> list[Proof]:
    return record(sys.executable, ["--collect-only", "-p", "no:cacheprovider"], "sqlite")[1]


def test_every_mode_has_one_row(rows: list[Row]) -> None:
    assert [row.number for row in rows] == list(MODES)


def test_every_row_names_tests_that_carry_its_marker(rows: list[Row], proofs: list[Proof]) -> None:
    for row in rows:
        for name in row.tests:
            marked = [proof for proof in proofs if row.number in proof.modes and proves(name, proof.name)]
            assert marked, f"row {row.number} names {name}, which does not exist or lacks @pytest.mark.mode"


def test_every_test_that_carries_a_marker_is_in_its_row(rows: list[Row], proofs: list[Proof]) -> None:
    named = {row.number: row.tests for row in rows}
    missing = {
        (number, proof.name)
        for proof in proofs
        for number in proof.modes
        if not any(proves(name, proof.name) for name in named.get(number, ()))
    }
    assert missing == set(), "add them to the page's table"


def test_a_mode_without_a_test_says_why(rows: list[Row]) -> None:
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in _titles()]
    for row in rows:
        assert row.tests or row.argued in anchors, f"row {row.number} names neither a test nor a section that argues"


def test_the_cluster_s_table_names_all_its_tests() -> None:
    section = PAGE.read_text().partition("## The cluster")[2].partition("\n## ")[0]
    code = (ROOT / "tests/acceptance/test_cluster.py").read_text()
    assert re.findall(r"`(test_\w+)`", section) == re.findall(r"^def (test_\w+)", code, re.MULTILINE)


def test_results_are_noted_per_version() -> None:
    page = "| 1 | a | b | `c` | 4.0 |\n| 2 | a | b | `c` | 3.10, 4.0 |\n| 3 | a | b | — | — |\n"
    noted = written(page, "3.10", {1: "passed", 2: "failed", 3: "not run"})
    assert [row.passed_on for row in read(noted)] == [("3.10", "4.0"), ("4.0",), ()]
    assert [row.tests for row in read(noted)] == [("c",), ("c",), ()]


def test_a_row_passed_only_if_each_of_its_tests_did() -> None:
    row = Row(3, "", ("a.py::test_a[x]", "a.py::test_b"), "", ())
    first, second = Proof("a.py::test_a[x-y]", (3,), "passed", 1.0), Proof("a.py::test_b", (3,), "passed", 1.0)
    assert result_of(row, [first, second]) == "passed"
    assert result_of(row, [first]) == "in part"
    assert result_of(row, [first, Proof("a.py::test_b", (3,), "failed", 1.0)]) == "failed"
    assert result_of(row, []) == "not run"


def _titles() -> list[str]:
    return re.findall(r"^#+ (.+)$", PAGE.read_text(), re.MULTILINE)
