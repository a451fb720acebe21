"""`make test`: set up what is missing, then run the tests with private services, on SQLite and on PostgreSQL.

`make test-all` passes `--all`: the slow tests too, and once more on MariaDB. `make test-slow` passes `--slow`:
only what `make test` leaves out, so that the two together are all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.environment import DEVELOPMENT, MARIADB, ROOT, ensure_environment
from tools.packages import BUILDING, install_missing

# These choose their databases themselves, or need none: another database would only run them once more.
ALONE = (
    "tests/admin/test_readings.py",
    "tests/consuming/test_backlog.py",
    "tests/consuming/test_consumer.py",
    "tests/processing/test_retry.py",
    "tests/supervising/test_ledger.py",
    "tests/supervising/test_supervisor.py",
    "tests/test_handlers.py",
    "tests/test_startup.py",
    "tests/test_translations.py",
    "tests/tools/test_benchmarks.py",
    "tests/tools/test_chaos.py",
    "tests/tools/test_services.py",
    "tests/wire/test_codec.py",
)
ONCE = [
    "tests/acceptance",
    *(f"tests/backends/{path.name}" for path in (ROOT / "tests/backends").glob("test_*.py")),
    "tests/browser",
    "tests/docs",
    "tests/failures",
    "tests/hosts",
    *(f"tests/model/test_{name}.py" for name in ("code", "documents", "model")),
    *ALONE,
]
ONCE.remove("tests/backends/test_database.py")
NAMES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mariadb": "MariaDB"}
GIVEN_BY = {
    "rabbitmq-server": "MESSAGING_TEST_URL",
    "postgresql": "MESSAGING_TEST_DATABASE",
    "mariadb-server": "MESSAGING_TEST_MARIADB",
}
# The marker expression of each database's pass; "" takes every test. What opens none runs with the first alone.
DEFAULT = {"sqlite": "not slow", "postgres": "not slow and database"}
SLOW = {"sqlite": "slow", "postgres": "slow and database", "mariadb": "database"}
ALL = {"sqlite": "", "postgres": "database", "mariadb": "database"}
WORKERS = 2 * (os.cpu_count() or 1)  # a good part of the tests wait for processes, which others make use of


def main(arguments: list[str]) -> int:
    """Run pytest once per database with `arguments` and return the worst exit status."""
    passes = {"--all": ALL, "--slow": SLOW}.get(arguments[0] if arguments else "", DEFAULT)
    if passes is not DEFAULT:
        arguments = arguments[1:]
    python = prepare(mariadb="mariadb" in passes, slow=passes is not DEFAULT)
    pytest = [str(python), "-m", "pytest", "-q", "-n", str(min(WORKERS, 6)), "--dist", "worksteal"]
    ignored = [f"--ignore={path}" for path in ONCE]
    status = 0
    for database, markers in passes.items():
        print(f"Tests on {NAMES[database]} ({markers or 'all of them'}); some choose another themselves:", flush=True)
        elsewhere = [] if database == "sqlite" else ignored
        status = max(status, _run([*pytest, *elsewhere, "-m", markers, *arguments], database))
        if status == 2:  # interrupted
            break
    return status


def prepare(*, mariadb: bool, slow: bool = False) -> Path:
    """Install what is missing, and say what could not be; returns the Python to run the tests with."""
    services = [name for name in GIVEN_BY if mariadb or name != "mariadb-server"]
    wanted = [name for name in services if not os.environ.get(GIVEN_BY[name])]
    further = [*(BUILDING if mariadb else ()), *(("chromium", "npm", "pgbouncer", "debootstrap") if slow else ())]
    for sentence in install_missing(*wanted, *further):
        print(sentence, flush=True)
    if mariadb:
        try:
            return ensure_environment(MARIADB)
        except SystemExit as error:  # the tests on MariaDB will be skipped, or fail in CI
            print(error, flush=True)
    return ensure_environment(DEVELOPMENT)


def _run(command: list[str], database: str) -> int:
    environment = os.environ | {"TEST_DB": database}
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):  # each of some thousand processes would compile all of it
        environment.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / "var/pycache"))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # pytest got it too, and ends its services


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
