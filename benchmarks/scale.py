"""`make scale`: what a message costs in tables of 10,000 rows and of ROWS (10,000,000), on a private PostgreSQL.

Exit status: 0 when everything was measured, whatever the ratios; 2 when there was nothing to measure with.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import SITE, ensure_environment

    python = ensure_environment(SITE)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "benchmarks.scale"])  # noqa: S606 - ourselves, in the environment

from benchmarks.stage import Stage
from tools.janitor import Janitor
from tools.packages import install_missing
from tools.services import ServiceFailed, ServiceMissing, stopping_on_signals

FEW = 10_000
EXPIRED = 5000  # rows that pruning finds; `benchmarks.site.scaling` expects as many
MOST = 1.2  # that a step may cost in the large tables, times what it costs in the small ones
# All have ended well; the first ones two months ago, the others within the last ten days.
AGE = f"now() - CASE WHEN n <= {EXPIRED} THEN interval '60 days' ELSE n * interval '10 days' / %(rows)s END"
FILL = (
    f"""
    INSERT INTO messaging_publishedmessage (alias, message_id, queue, exchange, routing_key, type, content_type,
        correlation_id, causation_id, reply_to, headers, body, body_encoding, round, attempts, error, created_at,
        state, mandatory, publish_at, due_at, published_at, lease_owner)
    SELECT 'default', gen_random_uuid(), '', 'messaging', 'nobody', '', 'application/json', '', '', '', '{{}}',
        '{{"order": 17}}', '', 1, 1, '', at, 'published', true, at, NULL, at, ''
    FROM generate_series(1, %(rows)s) AS n, LATERAL (SELECT {AGE} AS at) AS age
    """,
    f"""
    INSERT INTO messaging_processedmessage (alias, message_id, queue, exchange, routing_key, type, content_type,
        correlation_id, causation_id, reply_to, headers, body, body_encoding, round, attempts, error, created_at,
        received_at, processed_at, state, key, digest, handler, worker, exception_type, fingerprint)
    SELECT 'default', gen_random_uuid(), 'nobody', 'messaging', 'nobody', '', 'application/json', '', '', '', '{{}}',
        '{{"order": 17}}', '', 1, 1, '', at, at, at, 'processed', gen_random_uuid(), gen_random_uuid(), 'h', 'w', '', ''
    FROM generate_series(1, %(rows)s) AS n, LATERAL (SELECT {AGE} AS at) AS age
    """,
    "VACUUM ANALYZE messaging_publishedmessage",
    "VACUUM ANALYZE messaging_processedmessage",
)


def main() -> int:
    """Measure in small tables, in large ones, and in small ones again."""
    many = int(os.environ.get("ROWS", "10000000"))
    for sentence in install_missing("postgresql", "rabbitmq-server"):
        print(sentence, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="messaging-scale-"))
    folder.chmod(0o755)  # PostgreSQL's account must reach its folder below
    janitor = Janitor()
    janitor.remove(folder)
    try:
        with stopping_on_signals(), Stage(folder, janitor) as stage:
            few, large, again = measure(stage, FEW), measure(stage, many), measure(stage, FEW)
    except (ServiceMissing, ServiceFailed) as error:
        print(error)
        return 2
    finally:
        janitor.close()
    print(table({step: min(cost, again[step]) for step, cost in few.items()}, large, many))
    return 0


def measure(stage: Stage, rows: int) -> dict[str, float]:
    """Microseconds for a message in each step, in tables of so many rows."""
    stage.clear()
    began = time.monotonic()
    for statement in FILL:
        stage.database.execute(statement.encode(), {"rows": rows} if "%(rows)s" in statement else None)
    print(f"{rows:,} rows in each table ({time.monotonic() - began:.0f} s)", flush=True)
    return stage.job("benchmarks.site.scaling")


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
