"""Questions about databases and their connections, and what follows from their errors.

Is it up, was that a conflict, how long may a lock be waited for; and which are up, since when, and when they were away.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar, cast

from django.db import DataError, Error, IntegrityError, InterfaceError, InternalError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.patience import bound
from messaging.db.session import STATE, SessionChanged, compare
from messaging.exceptions import DatabaseUnavailable
from messaging.wire.bodies import one_line

CONFLICTS = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock
MYSQL_CONFLICTS = {1020, 1213}  # record changed since it was read (MariaDB's snapshot isolation), deadlock
LOCK_WAITS = {"55P03"}  # PostgreSQL: lock not available
MYSQL_LOCK_WAITS = {1205, 3572}  # lock wait timeout exceeded
# A character that the column's character set lacks; JSON nested too deeply, in MySQL's words; a CHECK constraint, which
# is how MariaDB says that.
MYSQL_REFUSALS = {1366, 3157, 3819, 4025}
POSTGRESQL_IN_ERROR = 3  # libpq's PQTRANS_INERROR
READ_ONLY = "25006"  # PostgreSQL: a server that is no longer the primary, on a connection from before
FORGOTTEN = "26000"  # PostgreSQL: a statement that was prepared, until a handler executed DEALLOCATE ALL
# The server ended the session or the connection broke; "" where the driver itself noticed.
LOST = {"", READ_ONLY, FORGOTTEN, "57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}
MYSQL_LOST = {0, 1927, 2006, 2013, 2055, 4031}
# PostgreSQL: disk full, out of memory, input or output error. SQLite's have names instead.
UNABLE = {"53100", "53200", "58030"}
MYSQL_UNABLE = {1021, 1114, 1290, 1836}  # disk full, table full, read-only (twice)
SQLITE_UNABLE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
IDLE = {"25P03", "25P04"}  # PostgreSQL: a transaction that was idle, or open, for longer than is allowed
MYSQL_IDLE = {4031}
# How long that is for MariaDB and MySQL, which end such a session without a word: seconds, 0 for as long as it likes.
_PATIENCE = (
    "SHOW VARIABLES WHERE Variable_name IN "
    "('wait_timeout', 'idle_transaction_timeout', 'idle_write_transaction_timeout')"
)
BATCH = 1000  # rows of one INSERT
BATCH_BYTES = 4 * 1024 * 1024  # a quarter of MariaDB's own limit: quoted, a byte may take two

Row = TypeVar("Row")
Local: TypeAlias = "tuple[tuple[str, str], ...]"  # parameters of PostgreSQL's, and what they are to be in SQL
T = TypeVar("T")

REMEMBERED = 16  # outages of one database; what lapsed in an older one was swept long ago


def is_up(database: str) -> bool:
    """Whether the database answers on a fresh connection, and takes writes as far as it says.

    Only this tells an outage from a statement or lock timeout: both are `OperationalError`.
    """
    probe = separate(database)
    try:
        with probe.cursor() as cursor:
            cursor.execute("SHOW transaction_read_only" if probe.vendor == "postgresql" else "SELECT 1")
            return bool(cursor.fetchone() != ("on",))
    except MemoryError:  # it was not asked
        raise
    except Exception:  # noqa: BLE001  whatever the driver raises, it does not answer
        return False
    finally:
        with suppress(Exception):  # a connection that never came to be
            probe.close()


def separate(database: str) -> BaseDatabaseWrapper:
    """A connection beside this thread's own and outside of any pool, not yet open. Close it yourself."""
    connection = connections[database].copy()
    bound(connection)
    if "pool" in connection.settings_dict.get("OPTIONS", {}):
        options = {name: value for name, value in connection.settings_dict["OPTIONS"].items() if name != "pool"}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
    return connection


def is_database_error(error: BaseException) -> bool:
    """Whether an error may mean that the database is away: ask `is_up()`."""
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


def is_unable(error: BaseException) -> bool:
    """Whether the database answers and yet cannot write to its disk."""
    state, code = _codes(error)
    return state in UNABLE or code in MYSQL_UNABLE or _sqlite_error(error).startswith(SQLITE_UNABLE)


def reconnect(database: str) -> None:
    """Leave this thread's connection, unless a transaction is open on it; the next statement opens a new one."""
    connection = connections[database]
    if not connection.in_atomic_block:
        connection.close()


def is_conflict(error: BaseException) -> bool:
    """Whether running the same transaction again may succeed: a deadlock, a serialization failure, a busy SQLite."""
    state, code = _codes(error)
    return state in CONFLICTS or code in MYSQL_CONFLICTS or _is_busy(error)


def is_lock_wait(error: BaseException) -> bool:
    """Whether another transaction held a lock longer than we were willing to wait."""
    state, code = _codes(error)
    return state in LOCK_WAITS or code in MYSQL_LOCK_WAITS or _is_busy(error)


def is_refusal(error: BaseException) -> bool:
    """Whether the database refused a value, which it may take in another form."""
    return isinstance(error, DataError) or _codes(error)[1] in MYSQL_REFUSALS


def is_lost(error: BaseException, database: str) -> bool:
    """Whether the connection broke under a statement, or its session is unfit, so that a new one will do.

    An error without a driver's behind it is somebody else's. Within a test's transaction no other connection will do.
    """
    connection = connections[database]
    if connection.in_atomic_block:
        return False
    if isinstance(error, SessionChanged):
        return True
    if not is_database_error(error) or error.__cause__ is None:
        return False
    state, code = _codes(error)
    if connection.vendor == "postgresql":
        return state in LOST or state.startswith("08")
    return connection.vendor == "mysql" and (code is None or code in MYSQL_LOST)


def is_unfit(error: BaseException, database: str) -> bool:
    """Whether a statement of ours may have failed because of its session, so that a new one may do.

    It was lost, or a handler has left it with another search path or role, or with a limit on statements.
    """
    if is_lost(error, database):
        return True
    if not isinstance(error, Error) or isinstance(error, (IntegrityError, DataError)):
        return False
    return not (is_lock_wait(error) or is_conflict(error) or connections[database].in_atomic_block)


def was_idle(error: BaseException) -> bool:
    """Whether the server says that it ended the session because that did nothing, or was open, for too long."""
    state, code = _codes(error)
    return is_database_error(error) and (state in IDLE or code in MYSQL_IDLE)


def is_too_long(database: str, seconds: float) -> bool:
    """Whether the server lets no transaction be idle for so long, and ends it without saying why."""
    connection = connections[database]
    if connection.vendor != "mysql":
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute(_PATIENCE)
            limits = [float(value) for _, value in cursor.fetchall()]
    except Error:
        return False
    return any(0 < limit <= seconds for limit in limits)


def is_doomed(connection: BaseDatabaseWrapper) -> bool:
    """Whether the open transaction can only be rolled back.

    PostgreSQL answers COMMIT in a failed transaction with ROLLBACK and no error, so that Django runs its commit hooks.
    """
    if connection.needs_rollback or connection.closed_in_transaction:
        return True
    info = getattr(connection.connection, "info", None) if connection.vendor == "postgresql" else None
    return info is not None and int(info.transaction_status) == POSTGRESQL_IN_ERROR


def close_old() -> None:
    """Close this thread's connections that broke or outlived `CONN_MAX_AGE`, unless a transaction is open on them."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
            if _has_news(connection) and not connection.is_usable():
                connection.close()


def batches(rows: Sequence[Row], size_of: Callable[[Row], int], most: int = BATCH) -> Iterator[list[Row]]:
    """Rows that one INSERT each may hold: MySQL and MariaDB refuse a statement beyond `max_allowed_packet`.

    Args:
        rows: in the order in which they are to be inserted.
        size_of: the bytes of a row, roughly.
        most: rows of one statement.
    """
    batch: list[Row] = []
    size = 0
    for row in rows:
        added = size_of(row)
        if batch and (len(batch) == most or size + added > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += added
    if batch:
        yield batch


@contextmanager
def brief_locks(connection: BaseDatabaseWrapper, seconds: float, local: Local = ()) -> Iterator[None]:
    """Inside a transaction, wait at most `seconds` for locks; an error ends the transaction, and with it the limit.

    Raises SessionChanged where an earlier transaction left its session in another state.

    Args:
        connection: which one.
        seconds: to wait.
        local: what the same statement sets for the rest of the transaction, on PostgreSQL.
    """
    if connection.vendor == "postgresql":
        wait = ("lock_timeout", f"'{int(seconds * 1000)}'")
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {STATE}, {setting((wait, *local))}")
            compare(connection, cursor.fetchone()[0])
        yield
        _execute(connection, "SET LOCAL lock_timeout TO DEFAULT")
    elif connection.vendor == "mysql":
        limit = max(1, round(seconds))
        before = "@messaging_lock_wait = @@SESSION.innodb_lock_wait_timeout"
        _execute(connection, f"SET {before}, SESSION innodb_lock_wait_timeout = {limit}")
        try:
            yield
        finally:
            # Past Django, which refuses statements after an error: the limit belongs to the session.
            with suppress(Exception), closing(connection.connection.cursor()) as cursor:
                cursor.execute("SET SESSION innodb_lock_wait_timeout = @messaging_lock_wait")
    else:
        yield


def setting(local: Local) -> str:
    """The expressions that set parameters of PostgreSQL's until the transaction ends."""
    return ", ".join(f"set_config('{name}', {value}, true)" for name, value in local)


@contextmanager
def transaction_mode(connection: BaseDatabaseWrapper, mode: str) -> Iterator[None]:
    """On SQLite, begin transactions in this mode; nothing elsewhere."""
    if connection.vendor != "sqlite":
        yield
        return
    connection.ensure_connection()  # which reads the site's own mode
    sqlite = cast("Any", connection)
    before = sqlite.transaction_mode
    sqlite.transaction_mode = mode
    try:
        yield
    finally:
        sqlite.transaction_mode = before


def _execute(connection: BaseDatabaseWrapper, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _codes(error: BaseException) -> tuple[str, int | None]:
    """The SQLSTATE of PostgreSQL's drivers and the error number of MySQL's."""
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""
    code = cause.args[0] if cause.args and isinstance(cause.args[0], int) else None
    return str(state), code


def _is_busy(error: BaseException) -> bool:
    """SQLite's SQLITE_BUSY, SQLITE_LOCKED and their kin."""
    return _sqlite_error(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _sqlite_error(error: BaseException) -> str:
    name = getattr(error.__cause__ or error, "sqlite_errorname", "")
    return name if isinstance(name, str) else ""


def _has_news(connection: BaseDatabaseWrapper) -> bool:
    """Whether the server sent something while nothing was asked: mostly that it ended the connection."""
    fileno = getattr(connection.connection, "fileno", None)
    if fileno is None:
        return False
    try:
        poll = select.poll()
        poll.register(fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except Exception:  # noqa: BLE001  a driver says in its own way that there is no socket any more
        return True


class Outages:
    """What one process knows about its databases; safe to share between threads."""

    def __init__(self) -> None:
        self.up_since: dict[str, float] = {}
        self._began = time.monotonic()
        self._seen: dict[str, float] = {}
        self._away_since: dict[str, float] = {}
        self._past: dict[str, deque[tuple[float, float]]] = {}

    @contextmanager
    def watch(self, database: str) -> Iterator[None]:
        """Turn the errors of a database that is away into DatabaseUnavailable; let others pass."""
        try:
            yield
        except Exception as error:
            self.raise_if_away(error, database)
            raise
        now = self._seen[database] = time.monotonic()
        self.up_since.setdefault(database, now)
        if database in self._away_since:
            self._end(database, now)

    def steadily(self, database: str, record: Callable[[], T]) -> T:
        """Do what may be done twice, once more on a new connection where the first one broke, or may be unfit.

        Raises DatabaseUnavailable where the database is away, or the second connection breaks as well.
        """
        with self.watch(database):
            try:
                return record()
            except Error as error:
                if not is_unfit(error, database):
                    raise
            reconnect(database)
            try:
                return record()
            except Error as error:
                if not is_lost(error, database):
                    raise
                words = f'The connection to the database "{database}" breaks ({one_line(error)})'
                raise DatabaseUnavailable(words, database) from error

    def raise_if_away(self, error: BaseException, database: str) -> None:
        """Raise DatabaseUnavailable if that is what an error comes from."""
        if is_database_error(error) and (is_unable(error) or not is_up(database)):
            self.up_since.pop(database, None)
            self._away_since.setdefault(database, self._seen.get(database, self._began))
            reconnect(database)  # an open connection may lead to a server that has become read-only
            words = f'The database "{database}" cannot be used ({one_line(error)})'
            raise DatabaseUnavailable(words, database) from error

    def leases_tell(self, database: str, lease: float) -> bool:
        """Whether an expired lease means a dead worker: after an outage every lease looks expired for a while."""
        since = self.up_since.get(database)
        return since is not None and time.monotonic() - since >= lease

    def seen(self, database: str) -> list[tuple[float, float, bool]]:
        """The outages of a database that are over: seconds since each began, at the earliest, and since it ended.

        And whether this process saw it begin: otherwise it was begun in the outage.
        """
        now, past = time.monotonic(), tuple(self._past.get(database, ()))
        return [(now - begin, now - end, begin != self._began) for begin, end in past]

    def _end(self, database: str, now: float) -> None:
        begin = self._away_since.pop(database, now)
        self._past.setdefault(database, deque(maxlen=REMEMBERED)).append((begin, now))
