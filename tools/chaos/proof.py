"""The proof, by query: the publishers' ledger against the effects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Query = Callable[[str], list[tuple[Any, ...]]]

SHOWN = 20  # messages of which the evidence holds everything
AFTERMATH = 60  # seconds after a failover in which a stop may be among what was forgotten

_DUE = "SELECT FROM workload_expected AS due WHERE due.key = found.key"
_EFFECTS = "(SELECT key FROM workload_effect UNION ALL SELECT key FROM workload_elsewhere)"
_ALL = f"(SELECT key FROM {_EFFECTS} AS found UNION ALL SELECT key FROM workload_meeting)"
_FORGOTTEN = "EXISTS (SELECT FROM workload_forgotten AS gone WHERE gone.kind = '{}' AND gone.key = {}key)"


def _forgotten(kind: str, table: str = "found.") -> str:
    return _FORGOTTEN.format(kind, table)


_MISSING = """SELECT key FROM workload_expected AS due
    WHERE NOT EXISTS (SELECT FROM workload_effect AS found WHERE found.key = due.key)
    AND NOT EXISTS (SELECT FROM workload_elsewhere AS found WHERE found.key = due.key)"""
# An effect outside its record's transaction may be forgotten alone: its handler is recorded after the promotion.
_ALONE = f"due.may_repeat AND {_forgotten('effect', 'due.')}"
LOST = f"{_MISSING} AND NOT ({_ALONE})"
_TWICE = f"""SELECT key FROM {_EFFECTS} AS found WHERE NOT EXISTS ({_DUE} AND due.may_repeat)
    GROUP BY key HAVING count(*) > 1"""
_UNDUE = f"SELECT key FROM {_EFFECTS} AS found WHERE NOT EXISTS ({_DUE})"
RERUN = f"SELECT key FROM {_EFFECTS} AS found WHERE EXISTS ({_DUE} AND due.may_repeat) GROUP BY key HAVING count(*) > 1"
DOUBLED = f"SELECT key FROM ({_TWICE}) AS found WHERE NOT {_forgotten('published')}"
UNASKED = f"SELECT key FROM ({_UNDUE}) AS found WHERE NOT {_forgotten('expected')}"
# Contents of which fewer messages had an effect than the broker took, and by how many.
_MET = "(SELECT count(*) FROM workload_meeting AS found WHERE found.key = strange.key)"
_MISSED = f"SELECT key, sum(confirmed) - {_MET} AS missing FROM workload_stranger AS strange GROUP BY key"
_EXCUSED = """(SELECT greatest(count(*) FILTER (WHERE kind = 'received'), count(*) FILTER (WHERE kind = 'effect'))
    FROM workload_forgotten AS gone WHERE gone.key = missed.key)"""
STRANGERS_LOST = f"SELECT key FROM ({_MISSED}) AS missed WHERE missing > {_EXCUSED}"
SPENT = """SELECT attempt.message_id AS id, attempt.ended_at FROM messaging_attempt AS attempt
    JOIN messaging_processedmessage AS received ON received.id = attempt.message_id
    WHERE attempt.crashed AND received.queue = 'marathon'"""
_SOON_AFTER = f"""EXISTS (SELECT FROM workload_forgotten AS gone WHERE gone.kind = 'at' AND spent.ended_at BETWEEN
    to_timestamp(gone.key::float) AND to_timestamp(gone.key::float) + interval '{AFTERMATH} seconds')"""
UNSENT = "SELECT id FROM messaging_publishedmessage WHERE state = 'pending'"
FAILED_OUT = "SELECT id FROM messaging_publishedmessage WHERE state = 'failed'"
FAILED_IN = "SELECT id FROM messaging_processedmessage WHERE state = 'failed'"
# Whose message was acknowledged before a failover that has forgotten it: the death of its run is all that there is.
_BEREFT = """received.wire IS NULL AND received.lease_token IS NULL AND EXISTS (SELECT FROM messaging_attempt AS attempt
    JOIN workload_forgotten AS gone ON gone.kind = 'at'
        AND to_timestamp(gone.key::float) BETWEEN attempt.started_at AND attempt.ended_at
    WHERE attempt.message_id = received.id)"""
_UNENDED = """SELECT id FROM messaging_processedmessage AS received
    WHERE state IN ('processing', 'retrying', 'requeued')"""
UNENDED = f"{_UNENDED} AND NOT ({_BEREFT})"

# Oversized ones that do not rest as failed, and that no operator found so.
UNRESTED = """SELECT key FROM workload_expected AS due WHERE key LIKE '%.oversized'
    AND NOT EXISTS (SELECT FROM messaging_processedmessage AS received WHERE received.message_id = due.key
        AND state = 'failed' AND exception_type LIKE '%MessageTooLarge')
    AND NOT EXISTS (SELECT FROM messaging_auditrecord AS act WHERE act.message_id = due.key
        AND action = 'requeue' AND state_before = 'failed')"""

# What has to be nothing at the end; the last two in each database.
FLAWS = {
    "lost": LOST,
    "lost of those without an id": STRANGERS_LOST,
    "doubled": DOUBLED,
    "had an effect though its publishing was rolled back": UNASKED,
    "attempts spent by a stop": f"SELECT id FROM ({SPENT}) AS spent WHERE NOT {_SOON_AFTER}",
    "too large, and never at rest as failed": UNRESTED,
}
LEFT = {
    "failed": f"{FAILED_IN} UNION ALL {FAILED_OUT}",
    "still on its way": f"{UNENDED} UNION ALL {UNSENT}",
}
LEDGER = {
    "effects expected": "SELECT id FROM workload_expected",
    "of messages too large for their consumer": "SELECT id FROM workload_expected WHERE key LIKE '%.oversized'",
    "messages without an id": "SELECT 1 FROM workload_stranger, generate_series(1, confirmed)",
    "handlers without a transaction that ran again": RERUN,
}
FACTS = {
    "published": "SELECT id FROM messaging_publishedmessage WHERE inbox_id IS NULL AND state = 'published'",
    "processed": "SELECT id FROM messaging_processedmessage WHERE state = 'processed'",
    "effects": "SELECT id FROM workload_effect",
    "sent round again": "SELECT id FROM messaging_publishedmessage WHERE inbox_id IS NOT NULL",
    "attempts that failed": "SELECT id FROM messaging_attempt WHERE NOT crashed",
    "attempts that crashed": "SELECT id FROM messaging_attempt WHERE crashed",
}
# What a copy that lags costs when it is promoted, whatever we do.
COSTS = {
    "messages that were published in what was forgotten": "SELECT id FROM workload_forgotten WHERE kind = 'published'",
    "effects that were forgotten": "SELECT id FROM workload_forgotten WHERE kind = 'effect'",
    "of them made again": "SELECT id FROM workload_forgotten AS gone WHERE kind = 'effect' AND EXISTS "
    f"(SELECT FROM {_ALL} AS found WHERE found.key = gone.key)",
    "effects of messages whose publishing was forgotten": f"SELECT key FROM ({_UNDUE}) AS found "
    f"WHERE {_forgotten('expected')}",
    "effects made twice, since a message was sent, forgotten and published again": f"SELECT key FROM ({_TWICE}) AS "
    f"found WHERE {_forgotten('published')}",
    "effects of handlers without a transaction that were forgotten alone": f"{_MISSING} AND {_ALONE}",
    "messages without an id whose end or effect was forgotten": f"SELECT 1 FROM ({_MISSED}) AS missed, "
    f"generate_series(1, missing::int) WHERE missing BETWEEN 1 AND {_EXCUSED}",
    "runs that died after their message and claim were forgotten": f"{_UNENDED} AND {_BEREFT}",
    "attempts spent by a stop that was forgotten": f"SELECT id FROM ({SPENT}) AS spent WHERE {_SOON_AFTER}",
}


def count(query: Query, names: Mapping[str, str], *others: Query) -> dict[str, int]:
    """How many rows each statement has, in one look; in `others` too."""
    columns = ", ".join(f"(SELECT count(*) FROM ({statement}) AS counted)" for statement in names.values())
    rows = [one(f"SELECT {columns}")[0] for one in (query, *others)]
    return {name: sum(counts) for name, counts in zip(names, zip(*rows, strict=True), strict=True)}


def insert(query: Query, table: str, rows: Iterable[tuple[object, ...]]) -> None:
    """Fill one of the tables for the proof, anew."""
    values = ", ".join(f"({', '.join(map(repr, row))})" for row in rows)
    columns = {"elsewhere": "key", "stranger": "key, confirmed", "forgotten": "kind, key"}[table]
    query(f"TRUNCATE workload_{table}")
    if values:
        query(f"INSERT INTO workload_{table} ({columns}) VALUES {values}")


def gather(query: Query, elsewhere: Query) -> None:
    """Bring the other database's effects to where the ledger is."""
    insert(query, "elsewhere", elsewhere("SELECT key FROM workload_effect"))


def strangers(ledger: str) -> list[tuple[str, int]]:
    """What the strangers' file says: each content, and how many messages of it were confirmed."""
    counts: Counter[str] = Counter()
    for line in ledger.splitlines():
        key, _, confirmed = line.partition(" ")
        counts[key] += confirmed == "1"  # a line that was not finished tells of nothing confirmed
    return list(counts.items())


def progress(query: Query, *others: Query) -> tuple[int, int, int]:
    """Effects expected, effects missing yet, failed messages. Cheap enough to be asked while all runs."""
    for other in others:
        gather(query, other)
    counts = count(query, {"expected": LEDGER["effects expected"], "missing": LOST})
    return counts["expected"], counts["missing"], count(query, {"failed": FAILED_IN}, *others)["failed"]


def is_rested(query: Query, *_others: Query) -> bool:
    """Whether all that are too large have been recorded as failed."""
    return not query(f"{UNRESTED} LIMIT 1")


def is_settled(query: Query, *others: Query) -> bool:
    """Whether nothing is missing and nothing is on its way."""
    if any(count(query, LEFT, *others).values()):
        return False
    for other in others:
        gather(query, other)
    return not any(count(query, {name: FLAWS[name] for name in ("lost", "lost of those without an id")}).values())


def keep_evidence(folder: Path, query: Query, *others: Query) -> Path:
    """Write all that the databases know of flawed messages into `folder`, and return the file."""
    evidence: dict[str, Any] = {}
    for flaw, statement in FLAWS.items():
        for mark, *_ in query(f"{statement} LIMIT {SHOWN}"):
            evidence[f"{flaw}: {mark}"] = [_story(one, mark) for one in (query, *others)]
    for flaw, statement in LEFT.items():
        for one in (query, *others):
            for (mark,) in one(f"{statement} LIMIT {SHOWN}"):
                evidence[f"{flaw}: {mark}"] = _story(one, mark)
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
