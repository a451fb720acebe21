"""The database session of a connection: what is kept in it, and what a handler leaves behind there.

PostgreSQL keeps statements prepared, where a session is surely this connection's own. What a handler has changed in a
session is noticed before the next one runs in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

_CURSORS = ("cursor", "_cursor", "create_cursor")  # methods by which a backend makes its cursors

_PREPARED = "_messaging_cursor"  # attribute of Django's connection: to make a cursor takes a third of the driver's time

_owned: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by the driver's connection
_KEPT = "_messaging_session"  # attribute of Django's connection: the driver's, and how its session was at first

# Few, since it is asked with every message: each takes the server a third of a microsecond.
_PARAMETERS = (
    "search_path", "TimeZone", "default_transaction_isolation", "default_transaction_read_only", "statement_timeout",
)  # fmt: skip
STATE = "concat_ws('|', current_user, " + ", ".join(f"current_setting('{name}')" for name in _PARAMETERS) + ")"


_MYSQL = (
    "CONCAT_WS('|', DATABASE(), CURRENT_ROLE(), @@SESSION.time_zone, @@SESSION.sql_mode, "
    "@@SESSION.foreign_key_checks, {})"
)
_OF_MARIADB = "@@SESSION.tx_isolation, @@SESSION.tx_read_only, @@SESSION.max_statement_time"
_OF_MYSQL = "@@SESSION.transaction_isolation, @@SESSION.transaction_read_only, @@SESSION.max_execution_time"
_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND usename = current_user "
    "AND application_name LIKE '%% (message)' AND backend_start < statement_timestamp() - make_interval(secs => %s)"
)


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
    kept = vars(connection).pop(_PREPARED, None)  # nobody else has it meanwhile
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
    vars(connection)[_PREPARED] = cursor
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


class SessionChanged(OperationalError):
    """A handler has left its session in another state than it found it in. Use another connection."""


def compare(connection: BaseDatabaseWrapper, state: str) -> None:
    """Note how a session is where that is not known yet. Raises SessionChanged where it was otherwise.

    Args:
        connection: whose session.
        state: what `STATE` says of it now.
    """
    known = vars(connection).get(_KEPT)
    if known is None or known[0] is not connection.connection:
        vars(connection)[_KEPT] = connection.connection, state
    elif known[1] != state and not _in_test(connection):
        raise SessionChanged(f"A handler has left its database session in another state: {state}, not {known[1]}.")


def state_of(connection: BaseDatabaseWrapper) -> str:
    """The SQL that says how a session of MariaDB's or MySQL's is; of other databases, nothing."""
    if connection.vendor != "mysql":
        return "1"
    return _MYSQL.format(_OF_MARIADB if getattr(connection, "mysql_is_mariadb", False) else _OF_MYSQL)


def begin(connection: BaseDatabaseWrapper) -> None:
    """Note how a session of MariaDB's or MySQL's is before a handler runs in it: one statement for each connection."""
    if connection.vendor == "mysql":
        known = vars(connection).get(_KEPT)
        if known is None or known[0] is not connection.connection:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT {state_of(connection)}")
                vars(connection)[_KEPT] = connection.connection, cursor.fetchone()[0]


def part(connection: BaseDatabaseWrapper, state: str) -> None:
    """Have a connection closed after the commit, where a handler leaves the session of `begin()` otherwise."""
    known = vars(connection).get(_KEPT)
    if connection.vendor == "mysql" and known is not None and known[1] != state:
        vars(connection)[_KEPT] = None


def leave(connection: BaseDatabaseWrapper) -> None:
    """Close a connection whose session a handler has left otherwise."""
    if connection.vendor == "mysql" and vars(connection).get(_KEPT) is None and not connection.in_atomic_block:
        connection.close()


def renew(connection: BaseDatabaseWrapper) -> None:
    """After a handler that failed, or had no transaction: MariaDB and MySQL leave a session as it is at a rollback."""
    if connection.vendor == "mysql" and not connection.in_atomic_block:
        connection.close()


def number_of(connection: BaseDatabaseWrapper) -> int:
    """PostgreSQL's number of a session, which begins here at the latest; 0 where a pooler may stand between."""
    if connection.vendor != "postgresql":
        return 0
    if not owns(connection):
        connection.ensure_connection()
        if not can_prepare(connection):
            return 0
    return int(connection.connection.pgconn.backend_pid)


def end_orphan(database: str, number: int, age: float) -> None:
    """End the session of a process that is dead, should it go on: with a statement, or since a fork keeps it open.

    Args:
        database: where.
        number: of the session.
        age: seconds since something ran in it; a session that began later only has its number.
    """
    if number and connections[database].vendor == "postgresql":
        with connections[database].cursor() as cursor:
            cursor.execute(_END, [number, age - 1.0])


def tenants() -> list[tuple[Any, Any, bool]]:
    """The tenant of each of this thread's connections that has one, as those of django-tenants' backend do."""
    found: list[Any] = [connections[alias] for alias in _aliases_with_tenants()]
    return [(one, one.tenant, getattr(one, "include_public_schema", True)) for one in found]


def restore(before: list[tuple[Any, Any, bool]]) -> None:
    """Go back to the `tenants()` of before: that of one message is not the next one's."""
    for connection, tenant, include_public in before:
        if connection.tenant is not tenant:
            connection.set_tenant(tenant, include_public)


@cache
def _aliases_with_tenants() -> tuple[str, ...]:
    own = [name for name, one in connections.settings.items() if not one["ENGINE"].startswith("django.db.backends.")]
    return tuple(name for name in own if hasattr(connections[name], "set_tenant"))


def _in_test(connection: BaseDatabaseWrapper) -> bool:
    """Whether the session is within the transaction of a `TestCase`, which another connection does not see."""
    return bool(connection.atomic_blocks) and bool(getattr(connection.atomic_blocks[0], "_from_testcase", False))
