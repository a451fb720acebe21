"""`make matrix`: the tests on each version that this machine has, then the table of docs/reference/versions.md.

ARGS="RabbitMQ 4.3"   only the cells whose names contain this
ARGS=--write          also notes in the page on which day a cell passed

A Python is found on PATH, and gets a virtual environment of its own for each cell in var/matrix. A server is the one
that MESSAGING_TEST_URL, MESSAGING_TEST_DATABASE or MESSAGING_TEST_MARIADB names, or else the installed one: a cell of
another version is not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tools import mariadb, postgresql, rabbitmq
from tools.environment import DEVELOPMENT, MARIADB, ROOT, ensure_environment
from tools.services import ServiceMissing
from tools.test import ONCE

PAGE = ROOT / "docs" / "reference" / "versions.md"
FOLDER = ROOT / "var" / "matrix"
_ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<ran>[^|]+) \| (?P<result>[^|]+) \|$", re.MULTILINE)

BROKER = ("tests/backends", "tests/failures")
DATABASE = tuple(f"--ignore={path}" for path in ONCE)


@dataclass(frozen=True, slots=True)
class Cell:
    """Versions that are tried together.

    Attributes:
        wants: the version of each of them, by name: what the cell is called; or a setting with its value, USE_TZ.
        ran: the tests, in the page's words.
        options: what pytest gets; () for `make test`.
        database: `TEST_DB`.
        packages: what is installed beside the ordinary requirements, or in place of what they would choose.
    """

    wants: Mapping[str, str]
    ran: str = "`make test`"
    options: tuple[str, ...] = ()
    database: str = "sqlite"
    packages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as "Python 3.13, Django 6.1"."""
        return ", ".join(f"{what} {version}" for what, version in self.wants.items())


def _language(python: str, django: str) -> Cell:
    return Cell({"Python": python, "Django": django}, packages=(f"Django~={django}.0",))


def _broker(version: str) -> Cell:
    return Cell({"RabbitMQ": version}, "`tests/backends`, `tests/failures`", BROKER)


def _database(what: str, version: str, test_db: str) -> Cell:
    return Cell({what: version}, f"what `make test` runs with `TEST_DB={test_db}`", DATABASE, test_db)


def _without_time_zones(what: str, version: str, test_db: str) -> Cell:
    ran = f"what `make test` runs with `TEST_DB`, here with `TEST_DB={test_db} TEST_USE_TZ=0`"
    return Cell({what: version, "USE_TZ": "0"}, ran, DATABASE, test_db)


CELLS = (
    _language("3.11", "5.2"),
    _language("3.12", "6.0"),
    _language("3.13", "6.1"),
    _language("3.14", "6.1"),
    *map(_broker, ("3.10", "4.0", "4.3")),
    *(_database("PostgreSQL", version, "postgres") for version in ("15", "17")),
    _database("MariaDB", "10.11", "mariadb"),
    _database("MySQL", "9", "mariadb"),
    _without_time_zones("SQLite", "3", "sqlite"),
    _without_time_zones("PostgreSQL", "15", "postgres"),
    # The tests themselves use psycopg 3.
    Cell({"psycopg": "2"}, "a host of `tests/hosts`", ("tests/hosts", "-m", "slow", "-k", "psycopg_2")),
)


def main(arguments: list[str]) -> int:
    """Run the cells that can be run here and print the table. Returns 1 if one failed, 2 if none could be run."""
    wanted = " ".join(argument for argument in arguments if argument != "--write")
    results: dict[str, str] = {}
    for cell in CELLS:
        if wanted in cell.name:
            missing = missing_here(cell)
            print(f"{cell.name}: {missing or 'running'}", flush=True)
            results[cell.name] = f"not run: {missing}" if missing else "passed" if run(cell) else "failed"
    print("| Versions | Result |\n|---|---|")
    for name, result in results.items():
        print(f"| {name} | {result} |")
    if "--write" in arguments:
        PAGE.write_text(written(PAGE.read_text(), results, f"{datetime.now(tz=UTC):%Y-%m-%d}"))
    ran = [result for result in results.values() if result in ("passed", "failed")]
    return 2 if not ran else int("failed" in ran)


def missing_here(cell: Cell) -> str:
    """Why a cell cannot be run on this machine; "" where it can."""
    for what, version in cell.wants.items():
        if what == "Python" and not _starts(f"python{version}"):
            return f"there is no python{version} on PATH"
        if what in SERVERS:
            found = SERVERS[what]()
            if not is_of(found, version):
                return f"the {what} here is {found}" if found else f"there is no {what} here"
    return ""


def _starts(program: str) -> bool:
    """Whether it is on PATH, and not only as the name under which a manager of versions would start it."""
    command = [program, "-c", ""]
    return (
        shutil.which(program) is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def is_of(found: str, version: str) -> bool:
    """Whether a version such as "4.3.6" is of a series such as "4.3"."""
    return f"{found}.".startswith(f"{version}.")


def run(cell: Cell) -> bool:
    """Run a cell's tests in its own environment; whether all of them passed."""
    folder = FOLDER / re.sub(r"[^\w.]+", "-", cell.name).lower()
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{package}\n" for package in cell.packages))
    environment = os.environ | {"VENV": str(folder / "venv"), "TEST_DB": cell.database}
    environment |= {"TEST_USE_TZ": cell.wants.get("USE_TZ", "1"), "PIP_CONSTRAINT": str(constraints)}
    python = shutil.which(f"python{cell.wants['Python']}") if "Python" in cell.wants else sys.executable
    assert python is not None
    if not cell.options:
        return _call([python, "-m", "tools.test"], environment)
    requirements = MARIADB if cell.database == "mariadb" else DEVELOPMENT
    venv = str(folder / "venv" / "bin" / "python")
    install = [venv, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *cell.packages]
    workers = ("-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal")
    return (
        _call([python, "-c", f"from tools.environment import *; ensure_environment({requirements!r})"], environment)
        and (not cell.packages or _call(install, environment))
        and _call([venv, "-m", "pytest", "-q", *workers, *cell.options], environment)
    )


def _call(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False).returncode == 0


def written(page: str, results: Mapping[str, str], day: str) -> str:
    """The page with the day noted in the last column of what passed or failed; what was not run is left alone."""

    def line(match: re.Match[str]) -> str:
        result = {"passed": day, "failed": f"failed on {day}"}.get(results.get(match["name"], ""), match["result"])
        return f"| {match['name']} | {match['ran']} | {result} |"

    return _ROW.sub(line, page)


def read(page: str) -> dict[str, tuple[str, str]]:
    """What ran and the result, by a cell's name, in the page's order."""
    rows = {match["name"]: (match["ran"], match["result"]) for match in _ROW.finditer(page)}
    return {name: row for name, row in rows.items() if name[-1].isdigit()}


def _rabbitmq() -> str:
    if url := os.environ.get("MESSAGING_TEST_URL"):
        asking = "print(pika.BlockingConnection(pika.URLParameters(sys.argv[1]))._impl.server_properties['version'])"
        return _asked(f"import pika, sys; {asking}", url, DEVELOPMENT)
    return _installed(lambda: [str(rabbitmq.find_scripts() / "rabbitmqctl"), "version"])


def _postgresql() -> str:
    if url := os.environ.get("MESSAGING_TEST_DATABASE"):
        asking = "print(psycopg.connect(sys.argv[1]).execute('SHOW server_version').fetchone()[0])"
        return _number(_asked(f"import psycopg, sys; {asking}", url, DEVELOPMENT))
    return _installed(lambda: [str(postgresql.find_programs() / "postgres"), "--version"])


def _mariadb() -> str:
    if os.environ.get("MESSAGING_TEST_MARIADB"):
        return _number(said) if "MariaDB" in (said := _given_mysql()) else ""
    return _installed(lambda: [mariadb.find_programs().server, "--version"])


def _mysql() -> str:
    return _number(said) if "MariaDB" not in (said := _given_mysql()) else ""


def _given_mysql() -> str:
    """What the server that the tests on MariaDB were given says of itself; a MariaDB's version names it."""
    url = os.environ.get("MESSAGING_TEST_MARIADB")
    asking = "import sys; from tools.mariadb import connected\nwith connected(sys.argv[1]) as cursor:\n"
    asking += "    cursor.execute('SELECT version()'); print(*cursor.fetchone())"
    return _asked(asking, url, MARIADB) if url else ""


def _asked(code: str, url: str, requirements: str) -> str:
    """What a line of Python prints about the server at a URL, with the drivers of our requirements."""
    command = [str(ensure_environment(requirements)), "-c", code, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return done.stdout.strip()


def _installed(command: Callable[[], list[str]]) -> str:
    """The version that an installed program prints; "" where it is missing."""
    try:
        done = subprocess.run(command(), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except ServiceMissing:
        return ""
    return _number(done.stdout)


def _number(said: str) -> str:
    """The first version number in a text, such as "4.3.6"; "" for none."""
    found = re.search(r"\d+(?:\.\d+)+", said)
    return found[0] if found else ""


SERVERS = {"RabbitMQ": _rabbitmq, "PostgreSQL": _postgresql, "MariaDB": _mariadb, "MySQL": _mysql}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
