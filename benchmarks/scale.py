"""`make scale`: what a message costs in tables of 10,000 rows and of ROWS (10,000,000), on a private PostgreSQL.

And how long each page of the console takes in the large ones, behind a backlog of 100,000 messages that are due.

Exit status: 0 when everything was measured and every page met its limits, whatever the ratios; 1 when a large table was
read as a whole, or a page took longer; 2 when there was nothing to measure with.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import SITE, ensure_environment

    python = ensure_environment(SITE)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "benchmarks.scale"])  # noqa: S606 - ourselves, in the environment

import psycopg

from benchmarks.measuring import Broken
from benchmarks.stage import Stage, staged
from tools.packages import install_missing
from tools.services import ServiceFailed, ServiceMissing

FEW = 10_000
ROUNDS = 5
PRUNINGS = 4  # in each round
EXPIRED = 250  # rows that each of them finds
STEP = 10  # days from the rows of one pruning to those of the next
OLDEST = STEP * (ROUNDS * PRUNINGS + 1)  # days: the age of what the first pruning finds
OLD = ROUNDS * PRUNINGS * EXPIRED
MOST = 1.2  # that a step may cost in the large tables, times what it costs in the small ones
PAGE, STATEMENTS = 300.0, 10  # milliseconds and statements that a page of the console may take
DUE = 100_000  # messages that wait to be sent while the console is looked at
REQUEUED, REQUEUING = 100_000, 120.0  # messages that an operation requeues, and seconds that it may take
GROUP = "f"  # the fingerprint of what failed
BUSY, PROCESSES, OVER = 20, 4, 2  # queues, processes that count in each, and minutes until their rows are one
# All have ended well within the last ten days but for the rows of each pruning, which are from `OLDEST` to 20 days old.
ENDED = f"""now() - CASE WHEN n <= {OLD} THEN interval '1 day' * ({OLDEST} - {STEP} * ((n - 1) / {EXPIRED}))
    ELSE interval '10 days' * (1 - n::float / %(rows)s) END AS at, 3 AS kind"""
# One in a hundred comes after the statistics were gathered, as in an outage: failed, waiting for its time, laid aside.
BACKLOG, SHARE = "now() AS at, n %% 3 AS kind", 100
# An envelope to the byte, as `Envelope.to_wire()` writes it: only with one can a message go round again.
WIRE = "\\x" + b"\0\tmessaging\0\6nobody\x80\0\x10application/json".hex()
Costs = dict[str, float]
Pages = dict[str, tuple[float, int]]  # milliseconds, statements
OUTBOX = """
    INSERT INTO messaging_publishedmessage (alias, message_id, queue, exchange, routing_key, type, content_type,
        correlation_id, causation_id, reply_to, headers, body, body_encoding, round, attempts, error, created_at,
        state, mandatory, publish_at, due_at, published_at, discarded_at, lease_owner)
    SELECT 'default', gen_random_uuid(), '', 'messaging', 'nobody', '', 'application/json', '', '', '', '{{}}',
        '{{"order": 17}}', '', 1, 1, '', at,
        CASE kind WHEN 0 THEN 'failed' WHEN 1 THEN 'pending' WHEN 2 THEN 'discarded' WHEN 4 THEN 'pending'
            ELSE 'published' END, true, at,
        CASE kind WHEN 1 THEN now() + interval '1 day' WHEN 4 THEN at END, CASE kind WHEN 3 THEN at END,
        CASE kind WHEN 2 THEN at END, ''
    FROM generate_series(1, %(rows)s) AS n, LATERAL (SELECT {facts}) AS facts
"""
INBOX = """
    INSERT INTO messaging_processedmessage (alias, message_id, queue, exchange, routing_key, type, content_type,
        correlation_id, causation_id, reply_to, headers, body, body_encoding, round, attempts, error, created_at,
        received_at, processed_at, failed_at, retry_at, discarded_at, state, key, digest, handler, worker,
        exception_type, fingerprint, wire)
    SELECT 'default', gen_random_uuid(), 'nobody', 'messaging', 'nobody', '', 'application/json', '', '', '', '{{}}',
        '{{"order": 17}}', '', 1, 1, '', at, at, CASE WHEN kind > 2 THEN at END, CASE kind WHEN 0 THEN at END,
        CASE kind WHEN 1 THEN now() + interval '1 day' END, CASE kind WHEN 2 THEN at END,
        CASE kind WHEN 0 THEN 'failed' WHEN 1 THEN 'retrying' WHEN 2 THEN 'discarded' ELSE 'processed' END,
        gen_random_uuid(), gen_random_uuid(), 'h', 'w', '', CASE WHEN kind < 2 THEN 'f' ELSE '' END,
        CASE kind WHEN 0 THEN '{wire}'::bytea END
    FROM generate_series(1, %(rows)s) AS n, LATERAL (SELECT {facts}) AS facts
"""


COUNTERS = f"""
    INSERT INTO messaging_counter (length, minute, alias, queue, published, unpublished, processed, retried, failed,
        run_seconds, wait_04, wait_07, run_02, run_05)
    SELECT length, (extract(epoch from now()) / 60)::int - length * back, 'default', 'queue-' || queue, 900, 0, 890, 9,
        1, 4.5, 800, 90, 700, 190
    FROM (SELECT 1 AS length, generate_series(0, 2879) AS back UNION ALL SELECT 60, generate_series(48, 2159)) AS times,
        generate_series(1, {BUSY}) AS queue,
        LATERAL generate_series(1, CASE WHEN length = 1 AND back < {OVER} THEN {PROCESSES} ELSE 1 END)
"""
FAILURES = """
    INSERT INTO messaging_failuregroup (fingerprint, exception_type, frame, handler, queue, first_release, last_release,
        note, noted_by, silenced_by)
    VALUES (%(group)s, 'shop.Boom', 'shop/handlers.py:bill', 'shop.handlers.bill', 'nobody', '', '', '', '', '')
"""
WAITING, FAILED = "now() - interval '1 hour' AS at, 4 AS kind", "now() - interval '1 hour' AS at, 0 AS kind"

# Rows that were read by going through a table since the server started, known once those who read it have ended. A
# count that ends at a bound reads the first few so.
SCANNED = """
    SELECT sum(seq_tup_read)::bigint FROM pg_stat_user_tables
    WHERE relname ~ '^messaging_(published|processed)message$'
"""


def main() -> int:
    """Measure in small and in large tables, in turn."""
    many = int(os.environ.get("ROWS", "10000000"))
    for sentence in install_missing("postgresql", "rabbitmq-server"):
        print(sentence, flush=True)
    try:
        with staged("scale", shared_buffers=quarter_of_memory()) as stage:
            few, large, pages, requeued, scanned = measure(stage, many)
    except (ServiceMissing, ServiceFailed) as error:
        print(error)
        return 2
    except Broken as error:
        print(error)
        return 1
    print(table(few, large, many))
    print(console(pages, requeued))
    print(f"{scanned:,} rows were read by going through a table, of {many:,} that it has.")
    is_slow = any(map(is_over, pages.values())) or requeued["seconds"] > REQUEUING
    return int(is_slow or scanned >= many)


def measure(stage: Stage, many: int) -> tuple[Costs, Costs, Pages, Costs, int]:
    """Microseconds for a message in each step, in small and in large tables: the least of several rounds.

    And what each page of the console takes in the large ones, and a requeue of 100,000 messages there, and how many
    rows of the large ones all of it has read by going through a table.
    """
    found: tuple[Costs, Costs] = ({}, {})
    with ExitStack() as ending:
        databases = [ending.enter_context(filled(stage, name, rows)) for name, rows in (("few", FEW), ("many", many))]
        before = scanned(databases[1])
        for number in range(1, ROUNDS + 1):
            for database, least in zip(databases, found, strict=True):
                env = stage.environment(DATABASE_URL=stage.postgresql.dsn_of(database.info.dbname))
                for step, cost in stage.job("benchmarks.site.scaling", number, env=env).items():
                    least[step] = min(cost, least.get(step, cost))
            print(f"round {number} of {ROUNDS}", flush=True)
        pages, requeued = look(stage, databases[1])
        return *found, pages, requeued, scanned(databases[1]) - before


def look(stage: Stage, database: psycopg.Connection) -> tuple[Pages, Costs]:
    """What the console costs in a database: its pages, then a large operation."""
    database.execute(OUTBOX.format(facts=WAITING).encode(), {"rows": DUE})
    database.execute(INBOX.format(facts=FAILED, wire=WIRE).encode(), {"rows": REQUEUED})
    database.execute(FAILURES.encode(), {"group": GROUP})
    database.execute(COUNTERS.encode())
    database.execute(
        "ANALYZE messaging_publishedmessage, messaging_processedmessage, messaging_counter, messaging_failuregroup"
    )
    env = stage.environment(DATABASE_URL=stage.postgresql.dsn_of(database.info.dbname))
    pages = {page: (took, int(count)) for page, (took, count) in stage.job("benchmarks.site.console", env=env).items()}
    return pages, stage.job("benchmarks.site.console", REQUEUED, env=env)


@contextmanager
def filled(stage: Stage, name: str, rows: int) -> Iterator[psycopg.Connection]:
    """A database with so many rows in each table."""
    began = time.monotonic()
    with psycopg.connect(stage.postgresql.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    stage.manage("migrate", "--verbosity=0", env=stage.environment(DATABASE_URL=stage.postgresql.dsn_of(name)))
    with psycopg.connect(stage.postgresql.dsn_of(name), autocommit=True) as connection:
        fill(connection, ENDED, rows)
        connection.execute("VACUUM ANALYZE messaging_publishedmessage, messaging_processedmessage")
        fill(connection, BACKLOG, rows // SHARE)
        connection.execute("CHECKPOINT")  # else what follows is measured while the server still writes all of this
        print(f"{rows:,} rows in each table ({time.monotonic() - began:.0f} s)", flush=True)
        yield connection


def fill(connection: psycopg.Connection, facts: str, rows: int) -> None:
    """Add so many rows of these facts to outbox and inbox."""
    for statement in (OUTBOX, INBOX):
        connection.execute(statement.format(facts=facts, wire=WIRE).encode(), {"rows": rows})


def quarter_of_memory() -> str:
    """What PostgreSQL's manual recommends for `shared_buffers`."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 4 // 2**20}MB"


def scanned(connection: psycopg.Connection) -> int:
    """How many rows of the two tables were read by going through them."""
    [[count]] = connection.execute(SCANNED.encode()).fetchall()
    return int(count)


def is_over(cost: tuple[float, int]) -> bool:
    """Whether a page takes too long, or too many statements."""
    return cost[0] > PAGE or cost[1] > STATEMENTS


def console(pages: Pages, requeued: Costs) -> str:
    """What the pages take, the slowest first; and the operation."""
    lines = [f"{'a page of the console':68}{'ms':>6}{'statements':>12}"]
    for page, (took, count) in sorted(pages.items(), key=lambda one: -one[1][0]):
        lines.append(f"  {page:66}{took:6.0f}{count:12}{'  NOT MET' * is_over((took, count))}")
    verdict = "met" if requeued["seconds"] <= REQUEUING else "NOT MET"
    lines.append(
        f"Pages take at most {PAGE:.0f} ms and {STATEMENTS} statements: {sum(map(is_over, pages.values()))} do not."
    )
    lines.append(
        f"Requeuing {requeued['count']:,.0f} messages took {requeued['seconds']:.0f} s  ≤ {REQUEUING:.0f} s {verdict}; "
        f"the process grew by {requeued['megabytes']:.0f} MB."
    )
    return "\n".join(lines)


def table(few: dict[str, float], large: dict[str, float], rows: int) -> str:
    """The costs side by side."""
    lines = [f"{'µs for a message, in tables of':32}{FEW:>12,}{rows:>14,}{'ratio':>8}"]
    for step, cost in few.items():
        ratio = large[step] / cost
        verdict = "met" if ratio <= MOST else "NOT MET"
        lines.append(f"  {step:30}{cost:12.1f}{large[step]:14.1f}{ratio:8.2f}  ≤ {MOST} {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
