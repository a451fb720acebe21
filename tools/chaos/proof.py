"""The proof, by query: the publishers' ledger against the effects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Query = Callable[[str], list[tuple[Any, ...]]]

SHOWN = 20  # messages of which the evidence holds everything

_DUE = "SELECT FROM workload_expected AS due WHERE due.key = workload_effect.key"
LOST = """SELECT key FROM workload_expected
    WHERE NOT EXISTS (SELECT FROM workload_effect WHERE workload_effect.key = workload_expected.key)"""
DOUBLED = f"""SELECT key FROM workload_effect
    WHERE NOT EXISTS ({_DUE} AND due.may_repeat) GROUP BY key HAVING count(*) > 1"""
RERUN = f"SELECT key FROM workload_effect WHERE EXISTS ({_DUE} AND due.may_repeat) GROUP BY key HAVING count(*) > 1"
UNASKED = f"SELECT key FROM workload_effect WHERE NOT EXISTS ({_DUE})"
UNSENT = "SELECT id FROM messaging_publishedmessage WHERE state = 'pending'"
FAILED_OUT = "SELECT id FROM messaging_publishedmessage WHERE state = 'failed'"
FAILED_IN = "SELECT id FROM messaging_processedmessage WHERE state = 'failed'"
UNENDED = "SELECT id FROM messaging_processedmessage WHERE state IN ('processing', 'retrying', 'requeued')"

# What has to be nothing at the end.
FLAWS = {
    "lost": LOST,
    "doubled": DOUBLED,
    "had an effect though its publishing was rolled back": UNASKED,
    "failed": f"{FAILED_IN} UNION ALL {FAILED_OUT}",
    "still on its way": f"{UNENDED} UNION ALL {UNSENT}",
}
FACTS = {
    "published": "SELECT id FROM messaging_publishedmessage WHERE inbox_id IS NULL AND state = 'published'",
    "processed": "SELECT id FROM messaging_processedmessage WHERE state = 'processed'",
    "effects expected": "SELECT id FROM workload_expected",
    "effects": "SELECT id FROM workload_effect",
    "sent round again": "SELECT id FROM messaging_publishedmessage WHERE inbox_id IS NOT NULL",
    "attempts that failed": "SELECT id FROM messaging_attempt WHERE NOT crashed",
    "attempts that crashed": "SELECT id FROM messaging_attempt WHERE crashed",
    "handlers without a transaction that ran again": RERUN,
}


def count(query: Query, names: Mapping[str, str]) -> dict[str, int]:
    """How many rows each statement has, in one look."""
    columns = ", ".join(f"(SELECT count(*) FROM ({statement}) AS found)" for statement in names.values())
    return dict(zip(names, query(f"SELECT {columns}")[0], strict=True))


def progress(query: Query) -> tuple[int, int, int]:
    """Effects expected, effects missing yet, failed messages. Cheap enough to be asked while all runs."""
    counts = count(query, {"expected": FACTS["effects expected"], "missing": LOST, "failed": FAILED_IN})
    return counts["expected"], counts["missing"], counts["failed"]


def is_settled(query: Query) -> bool:
    """Whether nothing is missing and nothing is on its way."""
    flaws = count(query, {name: FLAWS[name] for name in ("lost", "failed", "still on its way")})
    return not any(flaws.values())


def keep_evidence(query: Query, folder: Path) -> Path:
    """Write all that the database knows of flawed messages into `folder`, and return the file."""
    evidence: dict[str, Any] = {}
    for flaw, statement in FLAWS.items():
        for (mark,) in query(f"{statement} LIMIT {SHOWN}"):
            evidence[f"{flaw}: {mark}"] = _story(query, mark)
    path = folder / "evidence.json"
    path.write_text(json.dumps(evidence, indent=2, default=str))
    return path


def _story(query: Query, mark: object) -> dict[str, Any]:
    """Every row about a message, found by its key, or by the row's id."""
    is_key = isinstance(mark, str)
    where = f"body LIKE '%{str(mark).removesuffix('.after')}%'" if is_key else f"id = {mark}"
    columns = "row_to_json(found)"
    story = {
        "outbox": f"SELECT {columns} FROM (SELECT * FROM messaging_publishedmessage WHERE {where}) AS found",
        "inbox": f"SELECT {columns} FROM (SELECT * FROM messaging_processedmessage WHERE {where}) AS found",
        "attempts": f"SELECT {columns} FROM (SELECT * FROM messaging_attempt WHERE message_id IN "
        f"(SELECT id FROM messaging_processedmessage WHERE {where})) AS found",
    }
    if is_key:
        story["effects"] = f"SELECT {columns} FROM (SELECT * FROM workload_effect WHERE key = '{mark}') AS found"
    return {name: [row for (row,) in query(statement)] for name, statement in story.items()}
