"""What a process runs now, and whether that takes longer than usual, for its heartbeat to tell operators."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.db import connections
from django.db.models import Max

from messaging.backends.base import Delivery
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.processed import LONG
from messaging.supervising.ledger import Ledger, RunningEntry
from messaging.wire.envelope import made_at

MOST = 20  # runs that a worker's row tells of, the longest ones
LENGTH = 255  # characters of each name in it
NOTICED = 10.0  # seconds after which it is asked how long a handler usually takes
RUNS = 20  # last long ones of a handler that say what is usual
RECENT = 1000  # newest messages among which a handler with no long run has to be for its runs to be brief
REMEMBERED = 300.0  # seconds for which the answer is believed


def ages(deliveries: Iterable[Delivery]) -> dict[str, float]:
    """How old messages are, in seconds by queue, for `Worker.oldest`; of first deliveries whose id tells."""
    found = {}
    for delivery in deliveries:
        made = made_at(delivery.properties.message_id or "") if delivery.envelope.round == 1 else None
        if made is not None:
            found[delivery.queue[:LENGTH]] = round(max(0.0, time.time() - made), 1)
    return found


class Running:
    """Tells what the ledger of a process has.

    Args:
        ledger: of this process; None without a supervisor.
        database: where the usual is asked for; of what runs elsewhere only its time limit is known.
    """

    def __init__(self, ledger: Ledger | None, database: str) -> None:
        self._ledger = ledger
        self._database = database
        self._usual: dict[str, tuple[float | None, float]] = {}  # by handler: seconds, and until when that is believed
        self._sent: dict[str, int | None] = {}  # by key: the outgoing row of what is noticed

    def tell(self) -> list[dict[str, Any]] | None:
        """The longest runs first, for `Worker.running`; None where nobody knows."""
        if self._ledger is None:
            return None
        now = time.monotonic()
        found = sorted(self._ledger.running_entries(), key=lambda running: running.since)[:MOST]
        known, self._sent = self._sent, {}
        return [self._told(running, now - running.since, known) for running in found]

    def _told(self, running: RunningEntry, age: float, known: dict[str, int | None]) -> dict[str, Any]:
        """Without a query while it is too young to be noticed."""
        entry = running.entry
        told: dict[str, Any] = {
            "alias": entry.alias,
            "queue": entry.queue[:LENGTH],
            "handler": entry.handler[:LENGTH],
            "message_id": entry.message_id[:LENGTH],
            "database": entry.database,
            "row": entry.row,
            "batch": entry.batch,
            "age": round(age, 1),
            "limit": entry.timeout,
        }
        if age > NOTICED and entry.database == self._database:
            told["usual"] = self._usual_of(entry.handler, time.monotonic())
            if not entry.row and entry.message_id:
                self._sent[entry.key] = known[entry.key] if entry.key in known else self._outgoing(entry.message_id)
                told["outgoing"] = self._sent[entry.key]
        return told

    def _outgoing(self, message_id: str) -> int | None:
        rows = PublishedMessage.objects.using(self._database).filter(message_id=message_id, inbox=None)
        return rows.order_by("-pk").values_list("pk", flat=True).first()

    def _usual_of(self, handler: str, now: float) -> float | None:
        """Seconds that a handler has usually taken at most; None where nothing is known of it."""
        known = self._usual.get(handler)
        if known is None or known[1] < now:
            known = self._usual[handler] = self._ask(handler), now + REMEMBERED
        return known[0]

    def _ask(self, handler: str) -> float | None:
        rows = ProcessedMessage.objects.using(self._database)
        newest = rows.aggregate(newest=Max("pk"))["newest"] or 0
        own = rows.filter(handler=handler[:255])
        recent = own.filter(pk__gt=newest - RECENT, state=ProcessedMessage.State.PROCESSED, duration__isnull=False)
        long = own.filter(duration__gte=LONG)
        if not connections[self._database].features.supports_partial_indexes:  # and so there is none of these
            long = long.filter(pk__gt=newest - 10 * RECENT)
        # What failed, as for its time limit, says nothing of what is usual.
        found = long.order_by("-pk").values_list("state", "duration")[: 2 * RUNS]
        times = [duration for state, duration in found if state == ProcessedMessage.State.PROCESSED and duration]
        if times:
            return max(times[:RUNS]) / 1_000_000
        return LONG / 1_000_000 if recent.exists() else None
