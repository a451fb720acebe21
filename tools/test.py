"""`make test`: set up what is missing, then run the tests with private services, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys

from tools.environment import DEVELOPMENT, ROOT, ensure_environment
from tools.packages import install_missing

# These choose their databases themselves, or need none: the second database would only run them twice.
ONCE = ("tests/acceptance", "tests/backends", "tests/docs", "tests/test_services.py")

GIVEN_BY = {"rabbitmq-server": "MESSAGING_TEST_URL", "postgresql": "MESSAGING_TEST_DATABASE"}


def main(arguments: list[str]) -> int:
    """Run pytest once per database with `arguments` and return the worse exit status."""
    python = ensure_environment(DEVELOPMENT)
    wanted = [package for package, variable in GIVEN_BY.items() if not os.environ.get(variable)]
    for sentence in install_missing(*wanted):
        print(sentence, flush=True)
    pytest = [str(python), "-m", "pytest", "-q", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]
    print("The whole suite, with SQLite where a test does not choose:", flush=True)
    status = _run([*pytest, *arguments], "sqlite")
    if status == 2:  # interrupted
        return status
    print("Once more with PostgreSQL, without the tests that choose their database themselves:", flush=True)
    ignored = [f"--ignore={path}" for path in ONCE]
    return max(status, _run([*pytest, *ignored, *arguments], "postgres"))


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
