"""`make reliability`: every test that proves a failure mode, then the table of docs/reliability.md with its result.

ARGS="-k kill"     goes to pytest
ARGS=--write       also notes in the page which modes passed on the version of RabbitMQ that was used
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environment import DEVELOPMENT, ROOT, ensure_environment
from tools.packages import install_missing
from tools.test import ONCE

PAGE = ROOT / "docs" / "reliability.md"
MODES = range(1, 71)
OPEN = "—"
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the page's tables.

    Attributes:
        number: of the failure mode.
        statement: what must hold.
        tests: `path::name`, or `path::name[part of its parameters]`; () where `argued` or open.
        argued: the anchor of the reasoning that stands in for a test.
        passed_on: versions of RabbitMQ.
    """

    number: int
    statement: str
    tests: tuple[str, ...]
    argued: str
    passed_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """A test that carries the marker of `modes`, and how it went: "passed", "failed", "skipped", or "" if not run."""

    name: str
    modes: tuple[int, ...]
    outcome: str
    seconds: float


def main(arguments: list[str]) -> int:
    """Run the tests on both databases and print the table. Returns 1 unless each mode that has tests passed."""
    python = ensure_environment(DEVELOPMENT)
    for sentence in install_missing("rabbitmq-server", "postgresql"):
        print(sentence, file=sys.stderr)
    options = [option for option in arguments if option != "--write"]
    parallel = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]
    broker, proofs = record(python, [*parallel, *options], "sqlite")
    elsewhere = [f"--ignore={path}" for path in ONCE]
    proofs += record(python, [*parallel, *elsewhere, *options], "postgres")[1]
    results = {row.number: result_of(row, proofs) for row in read(PAGE.read_text())}
    print_table(results, proofs, broker)
    if "--write" in arguments:
        PAGE.write_text(written(PAGE.read_text(), broker, results))
    return int(not set(results.values()) <= {"passed", "argued"})


def record(python: Path | str, options: Sequence[str], database: str) -> tuple[str, list[Proof]]:
    """Run the marked tests with TEST_DB; returns the broker's version and what became of each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "modes.json"
        command = [str(python), "-m", "pytest", "-q", "-m", "mode", "-p", "tools.modes", *options]
        broker = "given" if os.environ.get("MESSAGING_TEST_URL") and "--collect-only" not in options else "ours"
        environment = os.environ | {"TEST_DB": database, "MODES_FILE": str(file), "MODES_BROKER": broker}
        subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        found = json.loads(file.read_text()) if file.exists() else {"broker": "", "tests": {}}
    proofs = [
        Proof(name, tuple(test["modes"]), test["outcome"], test["seconds"]) for name, test in found["tests"].items()
    ]
    return found["broker"], proofs


def read(page: str) -> list[Row]:
    """The rows of the page's tables, in its order."""
    rows = []
    for number, statement, _, tests, passed_on in _ROW.findall(page):
        argued = re.search(r"\(#([\w-]+)\)", tests)
        names = tuple(re.findall(r"`([^`]+)`", tests))
        rows.append(
            Row(int(number), statement, names, argued[1] if argued else "", tuple(re.findall(r"[\d.]+", passed_on)))
        )
    return rows


def proves(name: str, test: str) -> bool:
    """Whether a name of the page means this test: `path::name`, or only those with one of its parameters."""
    wanted, _, part = name.removesuffix("]").partition("[")
    function, _, parameters = test.removesuffix("]").partition("[")
    return wanted == function and (not part or part in parameters.split("-"))


def result_of(row: Row, proofs: Sequence[Proof]) -> str:
    """One word: "passed" only if each of its tests was run and passed."""
    ours = [proof for proof in proofs if row.number in proof.modes]
    outcomes = {proof.outcome for proof in ours}
    if "failed" in outcomes:
        return "failed"
    passed = [proof.name for proof in ours if proof.outcome == "passed"]
    if row.tests and all(any(proves(name, test) for test in passed) for name in row.tests):
        return "passed"
    return "argued" if row.argued else "not run" if not outcomes else "in part"


def print_table(results: dict[int, str], proofs: Sequence[Proof], broker: str) -> None:
    """The modes with the number of their tests, result and seconds."""
    print("| Mode | What must hold | Tests | Result | Seconds |\n|---|---|---|---|---|")
    for row in read(PAGE.read_text()):
        ours = [proof for proof in proofs if row.number in proof.modes]
        seconds = sum(proof.seconds for proof in ours)
        print(f"| {row.number} | {row.statement} | {len(ours)} | {results[row.number]} | {seconds:.1f} |")
    count = sum(result in ("passed", "argued") for result in results.values())
    print(f"| | **held on RabbitMQ {broker or '(none)'}** | {len(proofs)} | **{count} of {len(results)}** | |")


def written(page: str, broker: str, results: dict[int, str]) -> str:
    """The page with `broker` added to the last column where the mode passed, and removed where it failed."""

    def line(match: re.Match[str]) -> str:
        result = results.get(int(match[1]))
        versions = set(re.findall(r"[\d.]+", match[5]))
        versions = (
            versions | {broker} if result == "passed" else versions - {broker} if result == "failed" else versions
        )
        ordered = sorted(versions, key=lambda version: [int(part) for part in version.split(".")])
        return f"| {' | '.join(match.groups()[:4])} | {', '.join(ordered) or OPEN} |"

    return _ROW.sub(line, page)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
