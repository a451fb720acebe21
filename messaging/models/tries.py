"""What became of the tries to send an outgoing message that came to nothing: a text in its row, a line for each.

The statement that records such a try adds the line, and keeps the newest `KEPT` characters. A success writes nothing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, Func, TextField, Value
from django.db.models.functions import Coalesce, Concat, Right
from django.db.models.sql.compiler import SQLCompiler

from messaging.db.clock import as_stored

KEPT = 8000  # characters: some thirty tries
LONGEST = 500  # characters of an answer

# What became of it: no queue took it; it was not taken for now; it can never be sent; nobody knows.
UNROUTED, REFUSED, FAILED, LOST = "unrouted", "refused", "failed", "lost"


class Try(NamedTuple):
    """One try to send a message, which came to nothing.

    Attributes:
        at: when its end was recorded, by the database's clock.
        by: the relay's name; "" where that is not known.
        fate: `UNROUTED`, `REFUSED`, `FAILED` or `LOST`.
        answer: what the broker, or the connection, said.
    """

    at: datetime
    by: str
    fate: str
    answer: str


def noted(fate: str, answer: str, by: str = "") -> Any:
    """The column's new value, as an expression: with one more try.

    Args:
        fate: as a `Try` has it.
        answer: what the broker said; the beginning is kept.
        by: the relay's name.
    """
    rest = json.dumps({"by": by, "fate": fate, "answer": answer[:LONGEST]})
    before = Coalesce("tries", Value(""), output_field=TextField())
    line = Concat(before, Value('{"at": '), _Milliseconds(), Value(f", {rest[1:]}\n"), output_field=TextField())
    return Right(line, KEPT)


def told(text: str | None) -> tuple[list[Try], bool]:
    """What the column says: the tries, oldest first; and whether there were earlier ones, which are no longer kept."""
    lines = (text or "").splitlines()
    found = [_read(line) for line in lines]
    return [one for one in found if one is not None], bool(found) and found[0] is None


def _read(line: str) -> Try | None:
    """None for the rest of a line whose beginning was cut off."""
    try:
        said = json.loads(line)
        at = datetime.fromtimestamp(said["at"] / 1000, UTC)
        return Try(as_stored(at), str(said["by"]), str(said["fate"]), str(said["answer"]))
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return None


class _Milliseconds(Func):
    """How many have passed since 1970, by the database's clock."""

    # SQLite's, which has days of whole milliseconds in a float: their difference may be a little less than it is.
    template = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

    def __init__(self, **extra: Any) -> None:
        super().__init__(output_field=BigIntegerField(), **extra)

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """By the clock that `Now` reads."""
        template = "CAST(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP()) * 1000 AS bigint)"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_mysql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """Whatever the session's time zone is."""
        template = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000)"
        return self.as_sql(compiler, connection, template=template, **context)
