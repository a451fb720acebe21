"""Statements that PostgreSQL keeps prepared, where a session is surely this connection's own.

Django leaves preparing to those who ask for it, because a pooler may give each transaction another session. Whether one
does can be seen: what a pooler says of the session is not what the session itself says. Django's own pool may be told
to discard what a session knows before it hands it on, so there nothing is prepared either.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

_CURSORS = ("cursor", "_cursor", "create_cursor")  # methods by which a backend makes its cursors

_KEPT = "_messaging_cursor"  # attribute of Django's connection: to make a cursor takes a third of the driver's time

_owned: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by the driver's connection


def can_prepare(connection: BaseDatabaseWrapper) -> bool:
    """Whether statements may go past Django's cursors: in a session of ours, where nobody watches or changes these."""
    connection.close_if_health_check_failed()  # as Django's cursors do first
    raw, psycopg = connection.connection, _psycopg()
    if psycopg is None or not isinstance(raw, psycopg.Connection):
        return False  # another database's, or psycopg2's, which prepares nothing
    if connection.execute_wrappers or connection.queries_logged or "cursor" in vars(connection):
        return False
    owned = _owned.get(raw)
    if owned is None:
        is_plain = _has_djangos_cursors(connection) and not connection.settings_dict["OPTIONS"].get("pool")
        owned = _owned[raw] = is_plain and _is_own_session(connection)
    return owned


def owns(connection: BaseDatabaseWrapper) -> bool:
    """Whether `can_prepare()` has found the session of an open connection to be its own."""
    raw = connection.connection
    return raw is not None and _owned.get(raw, False)


def execute(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> Any:
    """Execute a statement that is worth keeping, such as one for every message, and return its only row."""
    kept = vars(connection).pop(_KEPT, None)  # nobody else has it meanwhile
    raw: Any = connection.connection
    _check(connection)
    cursor = kept if kept is not None and kept.connection is raw else _psycopg().Cursor(raw)
    before = raw.prepare_threshold
    raw.prepare_threshold = 0
    try:
        with connection.wrap_database_errors:
            row = cursor.execute(sql, params).fetchone()
    finally:
        raw.prepare_threshold = before
    vars(connection)[_KEPT] = cursor
    return row


def rows_of(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Execute a statement of PostgreSQL's and return its rows as the driver reads them, in binary where it can.

    JSON comes as the driver pleases: select it as text.
    """
    # Without USE_TZ, only Django's cursors read a moment as its models have it: without its time zone.
    if connection.timezone is not None and can_prepare(connection):
        with connection.wrap_database_errors, cursor_of(connection) as cursor:
            return list(cursor.execute(sql, params, binary=True).fetchall())
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def cursor_of(connection: BaseDatabaseWrapper) -> Any:
    """A cursor of the driver's that leaves it to the server to put the values in place.

    Where `can_prepare()` says so. Its errors are the driver's: use it in `connection.wrap_database_errors`.
    """
    _check(connection)
    return _psycopg().Cursor(connection.connection)


def pipeline(connection: BaseDatabaseWrapper) -> AbstractContextManager[object] | None:
    """Statements of `cursor_of()` within are sent without waiting for each other; None for a libpq that cannot."""
    raw: Any = connection.connection
    return raw.pipeline() if _psycopg().Pipeline.is_supported() else None


def _check(connection: BaseDatabaseWrapper) -> None:
    """Refuse what Django's cursors refuse: a broken transaction, and the event loop's thread."""
    connection.validate_no_broken_transaction()
    connection.ensure_connection()


def _has_djangos_cursors(connection: BaseDatabaseWrapper) -> bool:
    """Whether the backend leaves them as they are: one of many tenants chooses the schema with each cursor."""
    from django.db.backends.postgresql.base import DatabaseWrapper

    return all(getattr(type(connection), name) is getattr(DatabaseWrapper, name) for name in _CURSORS)


def _is_own_session(connection: BaseDatabaseWrapper) -> bool:
    raw: Any = connection.connection
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone()[0] == raw.info.backend_pid)


def _psycopg() -> Any:
    """The driver, where a connection has loaded it."""
    return sys.modules.get("psycopg")
