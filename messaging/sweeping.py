"""Claims whose worker died: their crashes are counted, and their messages go round again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from django.db import connections, transaction

from messaging import inbox, unrun
from messaging.database import is_database_error
from messaging.handlers import Handler
from messaging.inbox import SetAside
from messaging.models import ProcessedMessage
from messaging.station import Station
from messaging.texts import storable


def sweep(station: Station) -> int:
    """Count the crashes of workers whose claims ran out, and send their messages round again.

    Returns how many were recorded. Raises DatabaseUnavailable.
    """
    count = 0
    for database in {handler.database for handler in station.handlers.all(station.alias)}:
        with station.outages.watch(database):
            abandoned = _abandoned(station, database)
            if station.outages.leases_tell(database, station.settings.lease):
                count += _end_claims(station, database, abandoned)
    return count


def _abandoned(station: Station, database: str) -> list[ProcessedMessage]:
    rows = ProcessedMessage.objects.using(database).abandoned(station.alias)
    skips = connections[database].features.has_select_for_update_skip_locked
    with transaction.atomic(using=database) if skips else nullcontext():
        if skips:  # a locked one is being run, or recorded, right now
            rows = rows.select_for_update(skip_locked=True)
        anonymous = rows.filter(message_id="", round=1)[:1000]
        found = [row for row in anonymous if not inbox.comes_again(row, _handler_of(station, row))]
        return found + list(rows.exclude(message_id="", round=1)[:100])


def _handler_of(station: Station, row: ProcessedMessage) -> Handler | None:
    return station.handlers.find(station.alias, row.queue, storable(row.routing_key))


def _end_claims(station: Station, database: str, abandoned: Sequence[ProcessedMessage]) -> int:
    """Record each; one that cannot be recorded, such as a damaged row, does not stop the others."""
    count, trouble = 0, None
    for row in abandoned:
        try:
            handler = station.handlers.find(station.alias, row.queue, row.envelope().routing_key)
            count += unrun.record_abandoned(database, row, handler, station.settings)
        except SetAside:
            continue
        except Exception as error:
            if is_database_error(error):
                raise
            trouble = error
    if trouble is not None:
        raise trouble
    return count
