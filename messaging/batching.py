"""A batch: many messages of one handler in one transaction, or none of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.db import connections

from messaging import inbox, signals
from messaging.clock import Now
from messaging.database import brief_locks
from messaging.execution import proven_commit, refuse_doomed
from messaging.handlers import Handler
from messaging.inbox import TWIN_WAIT
from messaging.inserting import insert_many
from messaging.killpoints import kill_point
from messaging.message import ReceivedMessage, Running
from messaging.models import ProcessedMessage
from messaging.station import Station, Work, inserts_first


def run_batch(station: Station, handler: Handler, works: Sequence[Work]) -> bool:
    """Run a batch handler on messages and record them, in one transaction.

    Returns whether that was done. If not, nothing happened: whatever was in the way, each message shows it alone.
    Raises DatabaseUnavailable.
    """
    if any(work.redelivered or work.envelope.row_key is not None for work in works):
        return False
    rows = _rows(station, handler, works)
    if len({row.key for row in rows}) < len(rows):
        return False
    started = time.time()
    with station.outages.watch(handler.database):
        try:
            _run(station, handler, works, rows, started)
        except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
            station.outages.raise_if_away(error, handler.database)
            return False
    kill_point("processor.committed")
    for row in rows:
        signals.message_processed.send_robust(ProcessedMessage, row=row, duration=time.time() - started)
    return True


def _rows(station: Station, handler: Handler, works: Sequence[Work]) -> list[ProcessedMessage]:
    now = Now()
    rows = [inbox.fresh(station.alias, work.queue, work.envelope).row for work in works]
    for row in rows:
        row.state, row.attempts, row.processed_at = ProcessedMessage.State.PROCESSED, 1, now
        row.handler, row.worker = handler.name[:255], station.worker
    return rows


def _run(
    station: Station, handler: Handler, works: Sequence[Work], rows: list[ProcessedMessage], started: float
) -> None:
    database = handler.database
    first = inserts_first(database)
    messages = [ReceivedMessage(work.envelope, queue=work.queue) for work in works]
    with (
        station.running(works[0].entry(station, inbox.Place(rows[0]), started, batch=len(works))),
        proven_commit(database, f"a batch of {len(works)}", mode="DEFERRED"),
    ):
        if first:
            _insert_all(rows, database)
        station.call(handler, messages, Running(None, database, True, None))
        kill_point("processor.handled")
        refuse_doomed(database, rows[0] if first else None)
        if not first:
            _insert_all(rows, database)


def _insert_all(rows: list[ProcessedMessage], database: str) -> None:
    with brief_locks(connections[database], TWIN_WAIT):
        insert_many(rows, database, lambda row: len(row.body))
