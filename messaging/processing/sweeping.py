"""Claims whose worker died or was stopped: crashes are counted, and the messages go round again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from django.db import connections, transaction

from messaging.db.connections import is_database_error
from messaging.models import ProcessedMessage
from messaging.models.light import forget_body, light
from messaging.processing import inbox, without_handler
from messaging.processing.inbox import SetAside
from messaging.processing.station import Station


def sweep(station: Station, database: str) -> int:
    """End the claims in a database that ran out: count the crashes of their workers, and send the messages round again.

    Returns how many were recorded. Raises DatabaseUnavailable.
    """
    with station.outages.watch(database):
        abandoned = _abandoned(station, database)
        if not station.outages.leases_tell(database, station.settings.lease):
            return 0
        return _end_claims(station, database, abandoned)


def _abandoned(station: Station, database: str) -> list[ProcessedMessage]:
    rows = ProcessedMessage.objects.using(database).abandoned(station.alias)
    skips = connections[database].features.has_select_for_update_skip_locked
    with transaction.atomic(using=database) if skips else nullcontext():
        if skips:  # a locked one is being run, or recorded, right now
            rows = rows.select_for_update(skip_locked=True)
        anonymous = light(rows.filter(message_id="", round=1)[:1000])
        found = [row for row in anonymous if not inbox.comes_again(row, without_handler.handler_of(station, row))]
        return found + light(rows.exclude(message_id="", round=1)[:100])


def _end_claims(station: Station, database: str, abandoned: Sequence[ProcessedMessage]) -> int:
    """Record each; one that cannot be recorded, such as a damaged row, does not stop the others."""
    count, trouble = 0, None
    enough = time.monotonic() + station.settings.lease / 6  # the claims of this process wait to be renewed
    for row in abandoned:
        if time.monotonic() > enough:
            break
        try:
            handler = station.handlers.find(station.alias, row.queue, row.envelope().routing_key)
            count += without_handler.end_abandoned(station, database, row, handler)
        except SetAside:
            continue
        except Exception as error:
            if is_database_error(error):
                raise
            trouble = error
        finally:
            forget_body(row)
    if trouble is not None:
        raise trouble
    return count
