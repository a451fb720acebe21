"""What one message costs in each step, in tables as they are: `python -m benchmarks.site.scaling ROUND`."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from django.conf import settings
from django.db import IntegrityError, transaction

from benchmarks.payloads import payload
from benchmarks.scale import EXPIRED, OLDEST, PRUNINGS, STEP
from messaging import Message, publish_many
from messaging.db.insert_one import insert
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.retention import expired, prune
from messaging.wire.envelope import new_id

BATCH, TIMES = 200, 20  # messages of a measurement, measurements of a step: the quickest counts, as noise only adds
outbox = PublishedMessage.objects


class Stopwatch:
    """Microseconds for a message, by step; the least of all times."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    @contextmanager
    def timing(self, step: str, count: int = BATCH) -> Iterator[None]:
        """Time a block that handles so many messages."""
        began = time.perf_counter()
        yield
        took = (time.perf_counter() - began) / count * 1e6
        self.found[step] = min(took, self.found.get(step, took))


def publishing(watch: Stopwatch) -> None:
    """Publish, lease, mark; and what is to be sent later, as a retry is."""
    with watch.timing("publish"):
        publish_many([Message("nobody", payload()) for _ in range(BATCH)])
    with watch.timing("relay claim"):
        held = outbox.lease("default", "scale", 60, BATCH)
    assert len(held) == BATCH
    with watch.timing("relay mark"):
        outbox.mark_published(held)
    with watch.timing("retry scheduling"):
        publish_many([Message("nobody", payload(), delay=3600) for _ in range(BATCH)])


def deduping(watch: Stopwatch) -> None:
    """Record new messages, then find that each is there already."""
    rows = [_incoming() for _ in range(BATCH)]
    with watch.timing("inbox record"), transaction.atomic():
        for row in rows:
            insert(row, "default")
    twins = [_incoming(row.key) for row in rows]
    with watch.timing("inbox dedupe"):
        for twin in twins:
            try:
                insert(twin, "default")
            except IntegrityError:
                continue
            raise AssertionError("a message was recorded twice")


def pruning(watch: Stopwatch, number: int) -> None:
    """Delete what has expired by this round: rows of one age, the oldest that there are."""
    for done in range(PRUNINGS):
        days = OLDEST - STEP * (PRUNINGS * (number - 1) + done + 0.5)
        settings.MESSAGING["default"]["RETENTION"] = {"published": days, "processed": days}
        found = dict(expired("default"))
        for what in ("published", "processed"):
            with watch.timing(f"prune, {what}", EXPIRED):
                count = prune(found[what])
            assert count == EXPIRED, count


def _incoming(key: uuid.UUID | None = None) -> ProcessedMessage:
    """With an id as `publish()` gives it, and a key that is a hash, and so anywhere in its index."""
    key = key or uuid.uuid4()
    values: dict[str, Any] = {"message_id": new_id(), "key": key, "digest": key}
    return ProcessedMessage(state=ProcessedMessage.State.PROCESSED, queue="nobody", body="{}", **values)


STEPS: tuple[Callable[[Stopwatch], None], ...] = (publishing, deduping)


def main() -> None:
    """Measure every step."""
    watch = Stopwatch()
    for _ in range(TIMES):
        for step in STEPS:
            step(watch)
    pruning(watch, int(sys.argv[1]))
    print(json.dumps(watch.found))


if __name__ == "__main__":
    main()
