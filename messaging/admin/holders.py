"""Which open transactions keep messages from everybody else, as PostgreSQL tells; other databases are not asked.

A record that is not committed yet cannot be seen, and yet every other delivery of its message waits for it: the handler
takes its time, or its machine hangs or is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import Error, connections

from messaging.models import ProcessedMessage
from messaging.monitoring.databases import is_away, known

LONG = 10  # seconds after which an open transaction is worth a look
SHOWN = 20

_COLUMNS = """
    a.pid, a.xact_start, CASE WHEN a.state LIKE 'idle%%' THEN a.state_change END, coalesce(host(a.client_addr), ''),
    (SELECT count(*) FROM pg_stat_activity w WHERE w.wait_event_type = 'Lock' AND a.pid = ANY(pg_blocking_pids(w.pid)))
"""
_LONG = f"""
    SELECT {_COLUMNS} FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND a.xact_start < clock_timestamp() - make_interval(secs => %s)
    AND EXISTS (
        SELECT 1 FROM pg_locks l
        WHERE l.pid = a.pid AND l.relation = %s::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
    )
    ORDER BY a.xact_start LIMIT {SHOWN}
"""  # noqa: S608  nothing but our own texts
_OF_ROW = f"""
    SELECT {_COLUMNS} FROM {{table}} m
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = m.xmax AND l.mode = 'ExclusiveLock'
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE m.id = %s AND a.pid <> pg_backend_pid() AND l.granted
"""  # noqa: S608  as above


@dataclass(frozen=True, slots=True)
class Holder:
    """A session whose transaction has written to the inbox and has not ended.

    Attributes:
        database: alias of `DATABASES`.
        pid: of the server's process, as `pg_terminate_backend()` takes it.
        since: when its transaction began.
        idle_since: since when it has sent nothing; None while a statement of its runs.
        client: the address that it comes from; "" for the server's own machine.
        waiting: how many sessions wait for it at this moment.
    """

    database: str
    pid: int
    since: datetime
    idle_since: datetime | None
    client: str
    waiting: int


def long_ones() -> list[Holder]:
    """The transactions that have kept messages for longer than `LONG` seconds, oldest first."""
    found = [holder for database in known() for holder in _ask(database, _LONG, [LONG, _table(database)])]
    return sorted(found, key=lambda holder: holder.since)


def of_row(row: ProcessedMessage) -> Holder | None:
    """The transaction that has changed a recorded message and has not ended; None where nobody knows of one."""
    database = row._state.db or "default"
    found = _ask(database, _OF_ROW.format(table=_table(database)), [row.pk])
    return found[0] if found else None


def _ask(database: str, sql: str, params: list[int | str]) -> list[Holder]:
    connection = connections[database]
    if connection.vendor != "postgresql" or is_away(database):
        return []
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return [Holder(database, *values) for values in cursor.fetchall()]
    except Error:  # it is away, or keeps this to itself: the page has more to say
        if connection.in_atomic_block:  # in which nothing can be read any more
            raise
        return []


def _table(database: str) -> str:
    return connections[database].ops.quote_name(ProcessedMessage._meta.db_table)
