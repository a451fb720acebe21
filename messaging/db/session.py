"""What a handler leaves behind in its database session, noticed before the next one runs in it.

PostgreSQL tells with the statement that is the first of a handler's transaction anyway, MariaDB and MySQL with the one
that asks for the record at its end; the connection is replaced. What is not looked at, such as parameters of the site's
own, ends with a transaction that sets it by SET LOCAL. If a statement of ours fails first, see `database.is_unfit()`.
"""

from __future__ import annotations

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.prepared import can_prepare, owns

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


def _in_test(connection: BaseDatabaseWrapper) -> bool:
    """Whether the session is within the transaction of a `TestCase`, which another connection does not see."""
    return bool(connection.atomic_blocks) and bool(getattr(connection.atomic_blocks[0], "_from_testcase", False))
