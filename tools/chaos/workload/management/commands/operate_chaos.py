"""`manage.py operate_chaos`: what an operator does in the admin."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand

from messaging import conf, operations
from messaging.models import ProcessedMessage, PublishedMessage

BY = operations.Operator(name="chaos")
BATCH = 500


class Command(BaseCommand):
    """One act of an operator's."""

    help = "Pause or resume a queue, replay what was published, or requeue what was received."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do, and to what: `replay` and `requeue` read the numbers of rows, of each database, as JSON."""
        parser.add_argument("act", choices=["pause", "resume", "replay", "requeue"])
        parser.add_argument("--queue", default="", help="which is paused or resumed")
        parser.add_argument("--latest", type=int, help="replay so many instead")

    def handle(self, *args: Any, act: str, queue: str, latest: int | None, **options: Any) -> None:
        """Act, in every database."""
        if act in ("pause", "resume"):
            operations.set_paused(queue, act == "pause", BY)
            return
        chosen = json.load(sys.stdin) if latest is None else {}
        for database in conf.get("default").databases:
            if act == "requeue":
                operations.requeue(ProcessedMessage.objects.using(database).filter(pk__in=chosen[database]), BY)
                continue
            rows = PublishedMessage.objects.using(database)
            ids = chosen.get(database, [])
            if latest is not None:
                ids = rows.filter(inbox=None).order_by("-pk").values_list("pk", flat=True)[:latest]
            for batch in _batches(ids):
                outcome = operations.replay(rows.filter(pk__in=batch), BY)
                self.stdout.write(f"Replayed {len(outcome.done)} in {database}, skipped {outcome.skipped_count}.")


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
