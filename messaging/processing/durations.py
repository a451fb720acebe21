"""How long a handler ran, told by its process's monotonic clock.

A record that is written before its handler runs says that this was brief. Where it was not, one more statement corrects
it behind the handler, in the same transaction: some thousandths of what such a run took, and nothing for all others.
"""

from __future__ import annotations

from contextlib import suppress

from django.db import Error, connections, transaction
from django.db.models import QuerySet

from messaging.db.clock import Now
from messaging.db.connections import is_doomed
from messaging.models import ProcessedMessage
from messaging.models.processed import BRIEF as BRIEF_MICROS

BRIEF = BRIEF_MICROS / 1_000_000  # seconds
UNMEASURED = 0  # what a record says of a run that has not ended, and of a brief one


def micros(seconds: float) -> int:
    """As a record says it of a run that was measured: never `UNMEASURED`."""
    return max(1, round(seconds * 1_000_000))


def correct(rows: QuerySet[ProcessedMessage], seconds: float) -> bool:
    """Say of recorded runs how long they took, and that they end now, within the transaction that recorded them.

    What the handler has left in its session may be in the way, such as another role: the transaction goes on then.
    Returns whether it was said. Raises the database's error where the transaction cannot go on.
    """
    connection = connections[rows.db]
    try:
        with transaction.atomic(using=rows.db):
            return rows.update(processed_at=Now(), duration=micros(seconds)) > 0
    except Error:
        if is_doomed(connection) or not connection.is_usable():
            raise
        return False


def correct_late(rows: QuerySet[ProcessedMessage], seconds: float) -> None:
    """The same behind the commit, which nothing undoes any more, where it could not be said before."""
    with suppress(Error):
        rows.update(processed_at=Now(), duration=micros(seconds))
