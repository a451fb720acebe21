"""A batch: many messages of one handler in one transaction, or none of them."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import QuerySet

from messaging import signals
from messaging.db.clock import Now
from messaging.db.connections import Local, brief_locks
from messaging.db.insert_many import insert_values
from messaging.db.session import renew
from messaging.handlers import Handler
from messaging.killpoints import kill_point
from messaging.message import HandlerContext, ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.monitoring import counters
from messaging.processing import durations, inbox
from messaging.processing.execution import proven_commit
from messaging.processing.inbox import TWIN_WAIT
from messaging.processing.station import Station, Work, inserts_first
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.processor")


def run_batch(station: Station, handler: Handler, works: Sequence[Work]) -> bool:
    """Run a batch handler on messages and record them, in one transaction.

    Returns whether that was done. If not, nothing happened: whatever was in the way, each message shows it alone.
    Raises DatabaseUnavailable.
    """
    keys = [work.envelope.key or uuid.uuid4() for work in works]
    if any(work.redelivered or work.envelope.row_key is not None for work in works) or len(set(keys)) < len(keys):
        return False
    former = [key for work in works if (key := work.envelope.former_key) is not None]
    if _are_known(station, handler, former):
        return False
    if station.elsewhere.knows_any(handler.database, handler.queue, [*keys, *former]):
        return False
    began, started = datetime.now(UTC), time.monotonic()
    shared = _shared(station, handler, began)
    witness = inbox.Place(ProcessedMessage(key=keys[0], **shared))  # one stands for all: they are written together
    traced = nullcontext() if signals.tracing is None else signals.tracing.process_batch(works, station.settings)
    with station.outages.watch(handler.database):
        try:
            with traced:
                _run(station, handler, works, keys, shared, witness)
        except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
            station.outages.raise_if_away(error, handler.database)
            renew(connections[handler.database])
            if witness.is_unfinished:
                station.outages.steadily(handler.database, lambda: _take_back(station, handler, keys, began))
            return False
    kill_point("processor.committed")
    duration = time.monotonic() - started
    ids = [work.envelope.message_id for work in works]
    counters.add_processed(station.alias, handler.queue, duration, ids, handler=handler.name)
    if signals.message_processed.has_listeners(ProcessedMessage):
        _tell(station, handler, keys, duration)
    return True


def _shared(station: Station, handler: Handler, began: datetime) -> dict[str, Any]:
    """What the records of a batch have in common; `began` tells them from those of copies."""
    return {
        "alias": station.alias,
        "queue": handler.queue,
        "state": ProcessedMessage.State.PROCESSED,
        "attempts": 1,
        "handler": handler.name[:255],
        "worker": station.worker,
        "processed_at": Now(),
        "started_at": began,
        "duration": durations.UNMEASURED,
    }


def _run(
    station: Station,
    handler: Handler,
    works: Sequence[Work],
    keys: Sequence[uuid.UUID],
    shared: Mapping[str, Any],
    witness: inbox.Place,
) -> None:
    database = handler.database
    first = inserts_first(database)
    messages = [ReceivedMessage(work.envelope, queue=work.queue) for work in works]
    name, facts = f"a batch of {len(works)}", partial(_about, handler)
    entry = works[0].entry(station, witness, shared["started_at"].timestamp(), batch=len(works))
    with station.running(entry), proven_commit(database, name, facts, mode="DEFERRED") as proof:
        if first:
            _insert_all(works, keys, shared, database, proof.local(handler.timeout))
            proof.recorded(witness.row)
        try:
            began, works[0].has_begun = time.monotonic(), True
            context = HandlerContext(None, database, True, None, using=handler.using, worker=station.worker)
            station.call(handler, messages, context)
            took = time.monotonic() - began
            kill_point("processor.handled")
            proof.refuse_other()
            is_brief = not first or took < durations.BRIEF
            is_told = is_brief or durations.correct(_rows(station, handler, keys), took)
        except BaseException:
            witness.is_unfinished = first
            raise
        if not first:
            _insert_all(works, keys, {**shared, "duration": durations.micros(took)}, database)
    if not is_told:
        durations.correct_late(_rows(station, handler, keys), took)


def _rows(station: Station, handler: Handler, keys: Sequence[uuid.UUID]) -> QuerySet[ProcessedMessage]:
    """What a batch has recorded."""
    rows = ProcessedMessage.objects.using(handler.database)
    return rows.filter(alias=station.alias, queue=handler.queue, key__in=keys)


# For one release: delete this function and its call with the next.
def _are_known(station: Station, handler: Handler, keys: Sequence[uuid.UUID]) -> bool:
    """Whether the release before has recorded CloudEvents, or others of the same `message_id`."""
    rows = _rows(station, handler, keys)
    return bool(keys) and station.outages.steadily(handler.database, rows.exists)


def _take_back(station: Station, handler: Handler, keys: Sequence[uuid.UUID], began: datetime) -> None:
    """Delete the records of a batch that failed, should its handler have committed them itself."""
    own = {"state": ProcessedMessage.State.PROCESSED, "worker": station.worker, "started_at": began}
    _rows(station, handler, keys).filter(**own).delete()


def _insert_all(
    works: Sequence[Work], keys: Sequence[uuid.UUID], shared: Mapping[str, Any], database: str, local: Local = ()
) -> None:
    each = [{"key": key, **work.envelope.columns} for key, work in zip(keys, works, strict=True)]
    with brief_locks(connections[database], TWIN_WAIT, local):
        insert_values(ProcessedMessage, shared, each, database, lambda own: len(own["body"]))


def _tell(station: Station, handler: Handler, keys: Sequence[uuid.UUID], duration: float) -> None:
    """Say which messages were processed. They are, whatever comes of it."""
    try:
        for row in _rows(station, handler, keys).order_by("id"):
            signals.message_processed.send_robust(ProcessedMessage, row=row, duration=duration)
    except DatabaseError:
        text = "A batch of %d is processed, but nobody could be told."
        logger.exception(text, len(keys), extra=_about(handler))


def _about(handler: Handler) -> dict[str, Any]:
    """What a log record says of a batch."""
    return about(alias=handler.using, queue=handler.queue, handler=handler.name)
