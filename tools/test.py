"""`make test`: set up what is missing, then run the tests with private services, on SQLite and on PostgreSQL.

`make test-all` passes `--all`: the slow tests too, and once more on MariaDB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.environment import DEVELOPMENT, MARIADB, ROOT, ensure_environment
from tools.packages import BUILDING, install_missing

# These choose their databases themselves, or need none: another database would only run them once more.
ONCE = [
    "tests/acceptance",
    *(f"tests/backends/{path.name}" for path in (ROOT / "tests/backends").glob("test_*.py")),
    "tests/docs",
    "tests/failures",
    "tests/test_services.py",
]
ONCE.remove("tests/backends/test_database.py")
AGAIN = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}
GIVEN_BY = {
    "rabbitmq-server": "MESSAGING_TEST_URL",
    "postgresql": "MESSAGING_TEST_DATABASE",
    "mariadb-server": "MESSAGING_TEST_MARIADB",
}


def main(arguments: list[str]) -> int:
    """Run pytest once per database with `arguments` and return the worst exit status."""
    everything = arguments[:1] == ["--all"]
    if everything:
        arguments = ["-m", "", *arguments[1:]]
    databases = ["postgres", "mariadb"] if everything else ["postgres"]
    python = prepare(mariadb=everything)
    pytest = [str(python), "-m", "pytest", "-q", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]
    print("The whole suite, with SQLite where a test does not choose:", flush=True)
    status = _run([*pytest, *arguments], "sqlite")
    ignored = [f"--ignore={path}" for path in ONCE]
    for database in databases:
        if status == 2:  # interrupted
            break
        print(f"Once more with {AGAIN[database]}, without the tests that choose their database themselves:", flush=True)
        status = max(status, _run([*pytest, *ignored, *arguments], database))
    return status


def prepare(*, mariadb: bool) -> Path:
    """Install what is missing, and say what could not be; returns the Python to run the tests with."""
    services = [name for name in GIVEN_BY if mariadb or name != "mariadb-server"]
    wanted = [name for name in services if not os.environ.get(GIVEN_BY[name])]
    for sentence in install_missing(*wanted, *(BUILDING if mariadb else ())):
        print(sentence, flush=True)
    if mariadb:
        try:
            return ensure_environment(MARIADB)
        except SystemExit as error:  # the tests on MariaDB will be skipped, or fail in CI
            print(error, flush=True)
    return ensure_environment(DEVELOPMENT)


def _run(command: list[str], database: str) -> int:
    environment = os.environ | {"TEST_DB": database}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # pytest got it too, and ends its services


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
