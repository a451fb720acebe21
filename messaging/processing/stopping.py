"""What a stop does to the claims that this process holds: they are marked when it begins, and given up when it is over.

A process may be killed at any moment after it was asked to stop. Its claims say by then that they were interrupted, so
that whoever finds them does not count an attempt.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta

from django.db import DatabaseError, connections, transaction

from messaging.db.clock import Now
from messaging.db.connections import close_old
from messaging.db.patience import bound_here, sever
from messaging.exceptions import DatabaseUnavailable, WireError
from messaging.models import ProcessedMessage, Worker
from messaging.models.processed import ProcessedMessageQuerySet
from messaging.processing import without_handler
from messaging.processing.inbox import SetAside
from messaging.processing.station import Claim, Station
from messaging.supervising.log_records import about
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")

PATIENCE = 2.0  # seconds for a network that gives no sign
PAUSE = 0.5  # seconds between two tries
FORGOTTEN = timedelta(days=1)


def interrupt(station: Station) -> None:
    """Mark the claims of this process, so that a run which does not end in time is no attempt. Waits until it is done.

    Claims that begin from now on are marked as they begin.
    """
    station.claims.are_interrupted = True
    _everywhere(station, _mark, "mark")


def give_up(station: Station) -> None:
    """Send what this process runs round again, because it is about to end. Waits until it is done.

    Nothing that fails or ends from now on is recorded: see `Claims.are_over`.
    """
    station.claims.are_interrupted = station.claims.are_over = True
    _everywhere(station, _give_up, "give up")


def leave(station: Station) -> None:
    """Give up the claims under which nothing runs any more; every handler has ended. Waits until it is done."""
    _everywhere(station, _give_up, "give up")
    with suppress(DatabaseError):
        for database in station.claims.told:
            Worker.objects.using(database).filter(name=station.worker).delete()


def _everywhere(station: Station, act: Callable[[Station, str], None], what: str) -> None:
    """Do it in every database that holds a claim of this process; one that does not answer keeps none of the others."""
    databases = [database for database in station.databases if station.claims.of(database)]
    threads = [
        threading.Thread(target=_steadily, args=(station, act, database, what), name="messaging-stop", daemon=True)
        for database in databases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _steadily(station: Station, act: Callable[[Station, str], None], database: str, what: str) -> None:
    """Try until it is done, or this process is ended."""
    bound_here(database, PATIENCE)
    is_known = False
    try:
        while True:
            try:
                close_old()
                station.outages.steadily(database, lambda: act(station, database))
                return
            except (DatabaseUnavailable, SetAside) as trouble:
                words = one_line(trouble) or "rows are locked"
            except Exception as error:  # noqa: BLE001  whatever it is, nothing better can be done
                words = one_line(error)
            if not is_known:
                logger.warning('Cannot %s the claims in the database "%s" yet: %s', what, database, words)
            is_known = True
            time.sleep(PAUSE)
    finally:
        connections.close_all()


def _mark(station: Station, database: str) -> None:
    """One UPDATE. A handler's own transaction locks its row: of such a run the worker says that it is stopping."""
    claims = station.claims.of(database)
    locking = [claim for claim in claims if claim.at_broker]
    rows = ProcessedMessage.objects.using(database).filter(state=ProcessedMessage.State.PROCESSING)
    if len(locking) < len(claims):
        rows.filter(lease_token__in=_tokens(set(claims).difference(locking))).update(interrupted=True)
    if locking and _mark_free(rows.filter(lease_token__in=_tokens(locking)), database) < len(locking):
        _say_stopping(station, database)


def _mark_free(rows: ProcessedMessageQuerySet, database: str) -> int:
    """Mark those of the rows that nobody locks; returns how many."""
    if not connections[database].features.has_select_for_update_skip_locked:
        return 0
    with transaction.atomic(using=database):
        free = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))
        return ProcessedMessage.objects.using(database).filter(pk__in=free).update(interrupted=True)


def _say_stopping(station: Station, database: str) -> None:
    workers = Worker.objects.using(database)
    values = {"kind": "consume", "alias": station.alias, "host": socket.gethostname()[:255], "pid": os.getpid()}
    values |= {"status": without_handler.STOPPING, "is_stopping": True, "seen_at": Now()}
    workers.filter(kind="consume", seen_at__lt=Now() - FORGOTTEN).delete()
    workers.update_or_create(name=station.worker[:200], defaults=values)
    station.claims.told.add(database)


def _give_up(station: Station, database: str) -> None:
    """End the claims one by one. Raises SetAside, at the end, when a row is locked still."""
    claims = {claim.token: claim for claim in station.claims.of(database)}
    if station.claims.are_over:
        for claim in claims.values():
            if claim.at_broker and not claim.is_idle and claim.connection is not None:
                sever(claim.connection)  # its transaction locks the row
    rows = ProcessedMessage.objects.using(database).filter(state=ProcessedMessage.State.PROCESSING)
    locked = False
    for row in rows.filter(lease_token__in=list(claims)).order_by("at_broker"):
        token = row.lease_token
        try:
            without_handler.give_up(station, database, row)
        except SetAside:
            locked = True
            claims = {held: claim for held, claim in claims.items() if held != token}
        except WireError as error:  # whoever sweeps it fails it
            extra = about(row, attempt=row.attempts)
            logger.warning("%s cannot be sent round again: %s", row, one_line(error), extra=extra)
    for claim in claims.values():
        station.claims.drop(claim)
    if locked:
        raise SetAside


def _tokens(claims: Iterable[Claim]) -> list[uuid.UUID]:
    return [claim.token for claim in claims]
