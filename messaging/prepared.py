"""Statements that PostgreSQL keeps prepared, where a session is surely this connection's own.

Django leaves preparing to those who ask for it, because a pooler may give each transaction another session. Whether one
does can be seen: what a pooler says of the session is not what the session itself says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

_owned: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by the driver's connection


def can_prepare(connection: BaseDatabaseWrapper) -> bool:
    """Whether `execute()` works on this connection, and nobody watches what Django's cursors execute."""
    raw, psycopg = connection.connection, _psycopg()
    if psycopg is None or not isinstance(raw, psycopg.Connection):
        return False  # another database's, or psycopg2's, which prepares nothing
    if connection.execute_wrappers or connection.queries_logged:
        return False
    owned = _owned.get(raw)
    if owned is None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            owned = _owned[raw] = cursor.fetchone()[0] == raw.info.backend_pid
    return owned


def execute(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> Any:
    """Execute a statement that is worth keeping, such as one for every message, and return its only row."""
    raw: Any = connection.connection
    before = raw.prepare_threshold
    raw.prepare_threshold = 0
    try:
        with connection.wrap_database_errors, _psycopg().Cursor(raw) as cursor:
            return cursor.execute(sql, params).fetchone()
    finally:
        raw.prepare_threshold = before


def _psycopg() -> Any:
    """The driver, where a connection has loaded it."""
    return sys.modules.get("psycopg")
