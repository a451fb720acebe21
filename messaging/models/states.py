"""Conditions on a row's state."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, F, Func
from django.db.models.lookups import In
from django.db.models.sql.compiler import SQLCompiler


def in_state(*states: str) -> In:
    """That a row is in one of these states, for statements that find it by something else: its id, its inbox row.

    PostgreSQL learns of a backlog when it next analyzes the table, by default after a tenth of it has changed. Until
    then an index of unsent rows alone seems to hold none, and so to be the cheapest way to one whose id is given: each
    statement would read the whole backlog. This condition implies that of no partial index, so none is considered.
    """
    return In(_Unindexed(F("state"), output_field=CharField()), list(states))


class _Unindexed(Func):
    """A text column as an expression that no index knows."""

    template = "%(expressions)s"

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """Concatenated with nothing."""
        return self.as_sql(compiler, connection, template="(%(expressions)s || '')", **context)
