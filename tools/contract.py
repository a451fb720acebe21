"""`make contract`: the contract suite on every backend and database, as a table: test × backend × database."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tools.environment import ROOT
from tools.test import prepare

# Title of the column, where the suite is subclassed, TEST_DB.
COLUMNS = (
    ("RabbitMQ", "tests/backends/test_contract.py::TestRabbitMQ", "sqlite"),
    ("embedded, SQLite", "tests/backends/test_database.py::TestEmbeddedBroker", "sqlite"),
    ("embedded, PostgreSQL", "tests/backends/test_database.py::TestEmbeddedBroker", "postgres"),
)
MARIADB = ("embedded, MariaDB", "tests/backends/test_database.py::TestEmbeddedBroker", "mariadb")


def main(arguments: list[str]) -> int:
    """Run the suite per column and print the table; with `--mariadb` on MariaDB too. Returns 1 unless all passed."""
    python = prepare(mariadb="--mariadb" in arguments)
    columns = [*COLUMNS, MARIADB] if "--mariadb" in arguments else COLUMNS
    results = {title: run(python, tests, database) for title, tests, database in columns}
    names = list(dict.fromkeys(name for column in results.values() for name in column))
    print(f"| Test | {' | '.join(results)} |")
    print(f"|---|{'---|' * len(results)}")
    for name in names:
        said = name.removeprefix("test_").replace("_", " ")
        print(f"| {said} | {' | '.join(column.get(name, 'not run') for column in results.values())} |")
    passed = {title: sum(result == "passed" for result in column.values()) for title, column in results.items()}
    print(f"| **passed of {len(names)}** | {' | '.join(str(count) for count in passed.values())} |")
    return int(not names or set(passed.values()) != {len(names)})


def run(python: Path, tests: str, database: str) -> dict[str, str]:
    """The result of each test of one column: "passed", "failed" or "skipped"."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}", tests]
        environment = os.environ | {"TEST_DB": database}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            print(done.stdout[-5000:], done.stderr[-2000:], file=sys.stderr)
        if not report.exists():
            return {}
        cases = ET.parse(report).iter("testcase")  # noqa: S314 - pytest wrote it
        return {case.get("name", ""): _result(case) for case in cases}


def _result(case: ET.Element) -> str:
    bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "")
    return {"": "passed", "skipped": "skipped"}.get(bad, "failed")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
