"""`python -m benchmarks.sizing`: what messages take of disk, log and connections, on a private PostgreSQL and RabbitMQ.

MESSAGES (20,000) of 1 KB each are published, relayed and processed. What is printed are the numbers of
docs/how-to/size.md. Exit status: 0; 2 when there was nothing to measure with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import SITE, ensure_environment

    python = ensure_environment(SITE)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "benchmarks.sizing"])  # noqa: S606 - ourselves, in the environment

from benchmarks import load
from benchmarks.payloads import BODY_SIZE
from benchmarks.stage import Stage, manage, staged
from tools.environment import ROOT
from tools.packages import install_missing
from tools.services import ServiceFailed, ServiceMissing

TABLES = {
    "outbox": "messaging_publishedmessage",
    "inbox": "messaging_processedmessage",
    "attempts": "messaging_attempt",
}
LOG = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'bench' AND pid <> pg_backend_pid()"
EFFECTS = "SELECT count(*) FROM bench_effect"
UNSENT = "SELECT count(*) FROM messaging_publishedmessage WHERE state = 'pending'"
# As many failed attempts as messages, each with a traceback of 3,000 characters: a text that compresses as one does.
TRACEBACK = (ROOT / "messaging" / "relaying" / "relay.py").read_text()[:3000]
ATTEMPTS = """
    INSERT INTO messaging_attempt (message_id, number, round, worker, started_at, ended_at, crashed,
        exception_type, exception_message, traceback)
    SELECT id, 1, 1, 'worker', now(), now(), false, 'builtins.ValueError', 'no', %s || id
    FROM messaging_processedmessage
"""


def main() -> int:
    """Measure as the environment says."""
    for sentence in install_missing("postgresql", "rabbitmq-server"):
        print(sentence, flush=True)
    try:
        with staged("sizing") as stage:
            for line in measure(stage, int(os.environ.get("MESSAGES", "20000"))):
                print(line, flush=True)
    except (ServiceMissing, ServiceFailed) as error:
        print(error)
        return 2
    return 0


def measure(stage: Stage, count: int) -> list[str]:
    """The numbers of one run, as lines."""
    lines = [f"{count:,} messages of {BODY_SIZE} bytes"]
    lines += [f"log of publishing: {logged(stage, lambda: publish(stage, count)) / count:.0f} bytes a message"]
    relay = logged(stage, lambda: run(stage, ["relay"], lambda: -int(stage.value(UNSENT)), 0, lines))
    lines += [f"log of sending: {relay / count:.0f} bytes a message"]
    consume = ["consume", load.SINGLE, "--no-relay", "--processes=1", "--concurrency=4"]
    handled = logged(stage, lambda: run(stage, consume, lambda: int(stage.value(EFFECTS)), count, lines))
    lines += [f"log of processing, with an effect of one row: {handled / count:.0f} bytes a message"]
    stage.database.execute(ATTEMPTS.encode(), [TRACEBACK])
    stage.database.execute(b"VACUUM ANALYZE")
    return lines + [size(stage, name, table) for name, table in TABLES.items()]


def publish(stage: Stage, count: int) -> None:
    """Publish, each message in a transaction of its own."""
    stage.job("benchmarks.site.jobs", "each_committed", count, load.SINGLE)


def run(stage: Stage, command: list[str], progress: Callable[[], int], until: int, lines: list[str]) -> None:
    """Run a command until it has done that much, and note the connections that it has then."""
    with stage.running([*manage(), *command]) as daemon:
        stage.wait(until, progress, daemon)
        broker = len(stage.rabbitmq.api("GET", "/api/connections")) - 1  # without our own
        lines.append(f"{' '.join(command)}: {stage.value(SESSIONS)} to the database, {broker} to the broker")


def logged(stage: Stage, act: Callable[[], None]) -> float:
    """The bytes that PostgreSQL writes to its log meanwhile, the whole pages after a checkpoint among them."""
    stage.database.execute(b"CHECKPOINT")
    before = float(stage.value(LOG))
    act()
    return float(stage.value(LOG)) - before


def size(stage: Stage, name: str, table: str) -> str:
    """What a row of a table takes: itself, with the space of versions that are gone, and its indexes."""
    rows = int(stage.value(f"SELECT count(*) FROM {table}"))
    own = float(stage.value(f"SELECT avg(pg_column_size(t.*)) FROM {table} AS t"))
    heap, whole = (int(stage.value(f"SELECT {of}('{table}')")) for of in ("pg_table_size", "pg_total_relation_size"))
    return f"{name}: {own:.0f} bytes a row, {heap / rows:.0f} of the table, and {(whole - heap) / rows:.0f} of indexes"


if __name__ == "__main__":
    sys.exit(main())
