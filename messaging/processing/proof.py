"""Whether the transaction that a handler leaves is still the one that began for it.

A handler can end its transaction behind Django's back, by a ROLLBACK of its own or by an error that the server rolls
everything back for, and whatever it does next is committed without the record. Each database tells in its own way:

- PostgreSQL reports `application_name` with every change of it. The statement that writes the record sets it for the
  transaction, so that it falls back when that ends: the driver knows without asking.
- MySQL and MariaDB are asked for the record.
- SQLite, where the record is written last, has a savepoint that only this transaction knows. So has a test's
  transaction on any database.
"""

from __future__ import annotations

from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.connections import Local, is_doomed
from messaging.db.savepoints import release
from messaging.db.session import begin
from messaging.exceptions import CommitNotProven
from messaging.models import ProcessedMessage
from messaging.processing.inbox import stands

# Seconds beyond a handler's timeout after which the server ends its idle transaction. More than a supervisor that still
# runs, on however busy a machine, takes to kill the process, so that this is what is recorded; less than anyone minds.
MARGIN = 10.0
LONGEST = 2**31 - 1  # milliseconds that PostgreSQL takes

UNPROVEN = (
    "The handler returned, but its transaction was rolled back: it called set_rollback(True), closed the database "
    "connection, or caught a database error without a savepoint of its own."
)
ENDED = (
    "The handler returned, but its transaction had ended before: it executed ROLLBACK or COMMIT itself, or caught a "
    "deadlock. What it did since is not part of the transaction that records the message."
)

# Whoever watches the server sees which sessions run handlers; at most 63 bytes are kept, and all are ASCII.
_MARK = ("application_name", "left(current_setting('application_name'), 40) || ' (message)'")


class Proof:
    """Made in a transaction that has just begun, it tells at the end whether that is still the open one.

    Args:
        database: where.
        in_test: whether the transaction is a savepoint in that of a test.
    """

    def __init__(self, database: str, *, in_test: bool) -> None:
        self._database, self._in_test = database, in_test
        connection = self._connection = connections[database]
        if not in_test:
            begin(connection)
        has_savepoint = in_test or connection.vendor == "sqlite"
        self._savepoint = connection.savepoint() if has_savepoint else None
        self._before = self._marked = _reported(connection)
        self._record: ProcessedMessage | None = None

    def local(self, timeout: float | None) -> Local:
        """What the statement that writes the record sets for this transaction.

        That of a machine that hangs would keep the message from all others for as long as its TCP connection lasts.

        Args:
            timeout: the handler's, in seconds.
        """
        if self._connection.vendor != "postgresql" or self._in_test:
            return ()
        return (_MARK,) if timeout is None else (_MARK, _idle_limit(timeout))

    def recorded(self, row: ProcessedMessage) -> None:
        """The record is written, and the handler is about to run."""
        self._record, self._marked = row, _reported(self._connection)

    def refuse_other(self) -> None:
        """Raise CommitNotProven where this transaction can only be rolled back, or has been; once, at its end."""
        if is_doomed(self._connection):
            raise CommitNotProven(UNPROVEN)
        if self._savepoint is not None:
            self._release(self._savepoint)
        elif self._record is not None and not self._is_marked() and not stands(self._record, self._database):
            raise CommitNotProven(ENDED)

    def _is_marked(self) -> bool:
        """Whether the driver knows that it is the same; without knowing it the database is asked."""
        return bool(self._marked != self._before and _reported(self._connection) == self._marked)

    def _release(self, savepoint: str) -> None:
        if self._in_test:
            release(self._connection, savepoint)
            return
        try:
            self._connection.savepoint_commit(savepoint)
        except Error as error:
            raise CommitNotProven(ENDED) from error


def _idle_limit(timeout: float) -> tuple[str, str]:
    """A lower limit of the site's own stays."""
    name = "idle_in_transaction_session_timeout"
    own = f"nullif(extract(epoch FROM current_setting('{name}')::interval) * 1000, 0)"
    return name, f"least({own}, {min(LONGEST, int((timeout + MARGIN) * 1000))})::bigint::text"


def _reported(connection: BaseDatabaseWrapper) -> Any:
    """The session's `application_name` as the driver knows it; None where there is none."""
    raw: Any = connection.connection
    if connection.vendor != "postgresql" or raw is None or raw.closed:
        return None
    if hasattr(raw, "pgconn"):  # past psycopg's own attributes, which take thirty times as long
        return raw.pgconn.parameter_status(b"application_name")
    return raw.info.parameter_status("application_name")
