"""One handler for each way to consume."""

from __future__ import annotations

import time

from benchmarks.load import BATCH, SINGLE, TIMED
from benchmarks.site.effects import record
from benchmarks.site.models import Effect
from messaging import ReceivedMessage, handler


@handler(SINGLE, SINGLE)
def single(message: ReceivedMessage) -> None:
    """One transaction per message."""
    record(message.payload["key"])


@handler(BATCH, BATCH, batch=500)
def batch(messages: list[ReceivedMessage]) -> None:
    """One transaction for as many as there are, up to 500."""
    Effect.objects.bulk_create([Effect(key=message.payload["key"]) for message in messages])


@handler(TIMED, TIMED)
def timed(message: ReceivedMessage) -> None:
    """Notes when it began, too."""
    started = time.time()
    Effect.objects.create(key=message.payload["key"], started=started)
