"""What is done for those who cannot: messages of dead receivers are freed, expired ones become dead letters."""

from __future__ import annotations

import logging
import math
import time

from django.db import transaction

from messaging.backends.database import letters, local
from messaging.backends.database.processes import has_ended
from messaging.db.clock import Now
from messaging.exceptions import WireError
from messaging.models import EmbeddedConnection, EmbeddedMessage

logger = logging.getLogger("messaging.database")

AT_ONCE = 200  # expired messages moved at one look


class Sweeper:
    """Looks after one database's queues. Every feed does it; whoever comes first wins.

    Args:
        database: alias of `DATABASES`.

    Attributes:
        has_more: whether the last look left expired messages behind, so that the next should follow soon.
    """

    def __init__(self, database: str) -> None:
        self.has_more = False
        self._database = database
        self._late: dict[int, float] = {}  # since when, by connection

    def sweep(self, own: int = 0, renewed_at: float = math.inf) -> int:
        """Free what the dead hold, and see to expired messages; returns how many connections were given up.

        Args:
            own: the connection of who sweeps, which lives.
            renewed_at: when its own lease was last renewed, by `time.monotonic()`.
        """
        ended = sum(map(self._end, self._dead(own, renewed_at)))
        self._bury_expired()
        if ended:
            local.wake(self._database)
        return ended

    def _dead(self, own: int, renewed_at: float) -> list[EmbeddedConnection]:
        """Those whose process is gone, or whose lease had run out before we renewed ours and was not renewed since.

        A late lease alone proves nothing: on SQLite a slow writer keeps everybody from renewing.
        """
        rows = EmbeddedConnection.objects.using(self._database)
        others = list(rows.exclude(pk=own))
        alive = set(rows.alive().values_list("pk", flat=True)) if others else set()
        before = self._late
        self._late = {one.pk: before.get(one.pk) or time.monotonic() for one in others if one.pk not in alive}
        return [one for one in others if before.get(one.pk, math.inf) < renewed_at or has_ended(one.process)]

    def _end(self, dead: EmbeddedConnection) -> bool:
        rows = EmbeddedConnection.objects.using(self._database)
        condition = {} if has_ended(dead.process) else {"leased_until__lte": Now()}
        if not rows.end(dead.pk, **condition):
            return False
        logger.warning("A receiver is gone (%s); what it held is delivered again.", dead.process or dead.pk)
        return True

    def _bury_expired(self) -> None:
        rows = EmbeddedMessage.objects.using(self._database).expired().select_related("queue__dead").defer("body")
        found = list(rows.order_by("expires_at", "id")[:AT_ONCE])
        self.has_more = len(found) == AT_ONCE
        if found:
            with transaction.atomic(using=self._database):  # one for all: each commit waits for the disk
                for row in found:
                    self._bury(row)

    def _bury(self, row: EmbeddedMessage) -> None:
        """Move one to its dead-letter queue, or drop it where its queue has none, as RabbitMQ does."""
        unclaimed = EmbeddedMessage.objects.using(self._database).expired().filter(pk=row.pk)
        dead = row.queue.dead
        if dead is None:
            unclaimed.delete()
            return
        try:
            wire = letters.dead(bytes(row.wire), row.queue.name, dead.name)
        except WireError:  # headers that cannot be written again: it is kept as it is
            wire = bytes(row.wire)
        unclaimed.update(queue=dead, wire=wire, deliveries=0, expires_at=None)
