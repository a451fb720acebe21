"""What each page of the console costs in tables as they are: `python -m benchmarks.site.console`.

With a number, how long it takes to requeue so many failed messages.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import django

if __name__ == "__main__":
    django.setup()

from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connection
from django.test import Client

from benchmarks.scale import GROUP
from messaging.models import FailureGroup, Operation, ProcessedMessage, PublishedMessage
from messaging.operations import Operator
from messaging.operations.stored import run_waiting, store

TIMES = 5  # that a page is asked for: the median counts
ADMIN = "/admin/messaging/"
OUTGOING, INCOMING, GROUPS = f"{ADMIN}publishedmessage/", f"{ADMIN}processedmessage/", f"{ADMIN}failuregroup/"
ABSENT = "absent"


def pages() -> Iterator[str]:
    """The pages and filters whose cost could depend on how many rows there are."""
    yield from ("/admin/", *(f"{ADMIN}{query}" for query in ("", "?period=24h", "?period=7d")))
    yield from (f"{ADMIN}{name}/" for name in ("queuecontrol", "worker", "operation", "auditrecord", "failuregroup"))
    group = FailureGroup.objects.get(fingerprint=GROUP)
    yield from (f"{GROUPS}{group.pk}/{name}/" for name in ("change", "requeue", "discard", "silence"))
    yield from (OUTGOING, INCOMING)
    for state in (*PublishedMessage.State.values, "due", "waiting"):
        yield OUTGOING + "?" + urlencode({"state": state})
    for state in (*ProcessedMessage.State.values, "away"):
        yield INCOMING + "?" + urlencode({"state": state})
    for filters in (
        {"queue": ABSENT}, {"handler": ABSENT}, {"alias": ABSENT}, {"exception": "Absent"}, {"run": "1h"},
        {"state": "failed", "queue": ABSENT}, {"state": "processed", "queue": ABSENT},
        {"queue": ABSENT, "handler": ABSENT, "period": "15m"}, {"state": "failed", "exception": "Absent", "run": "1s"},
        {"fingerprint": GROUP}, {"fingerprint": GROUP, "state": "failed"}, {"q": ABSENT},
        {"q": "0190e2f2-7b9a-7000-8000-000000000000"}, {"state": "failed", "period": "24h"},
        {"state": "failed", "period": "15m"}, {"state": "failed", "period": "24h", "queue": ABSENT},
    ):  # fmt: skip
        yield INCOMING + "?" + urlencode(filters)
    for filters in ({"queue": ABSENT}, {"state": "pending", "period": "24h"}, {"q": ABSENT}):
        yield OUTGOING + "?" + urlencode(filters)
    for model, address in ((ProcessedMessage, INCOMING), (PublishedMessage, OUTGOING)):
        for row in (model._base_manager.order_by("pk")[0], model._base_manager.order_by("-pk")[0]):
            yield f"{address}{row.pk}/change/"
        yield address + "?" + urlencode({"before": model._base_manager.order_by("-pk")[0].pk // 2})
    failed = ProcessedMessage.objects.filter(state="failed").order_by("-pk")[0]
    yield f"{INCOMING}{failed.pk}/change/?" + urlencode({"_changelist_filters": "state=failed"})
    yield f"{OUTGOING}add/"


class Statements:
    """Counts what is asked of the database."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, execute: Any, *arguments: Any) -> Any:
        """One statement."""
        self.count += 1
        return execute(*arguments)

    @classmethod
    @contextmanager
    def counted(cls) -> Iterator[Statements]:
        """Count within a block."""
        own = cls()
        with connection.execute_wrapper(own):
            yield own


def cost(client: Client, page: str) -> tuple[float, int]:
    """Milliseconds for a page, the median of several; and its statements, those for the session and user included."""
    took, most = [], 0
    for _ in range(TIMES):
        cache.clear()
        with Statements.counted() as statements:
            began = time.perf_counter()
            answer = client.get(page)
            took.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200:
            raise AssertionError(f"{page} answered {answer.status_code}")
        most = max(most, statements.count)
    return statistics.median(took), most


def requeue(count: int) -> dict[str, float]:
    """Requeue so many failed messages as a stored operation. Seconds, and megabytes that the process grew by."""
    failed = ProcessedMessage.objects.filter(state="failed").order_by("pk")
    last = failed.values_list("pk", flat=True)[count - 1]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    operation = store(failed.filter(pk__lte=last), "requeue", Operator(name="scale"))
    run_waiting("default", "scale", threading.Event())
    took = time.perf_counter() - began
    done = Operation.objects.get(pk=operation.pk)
    if (done.state, done.done) != (Operation.State.DONE, count):
        raise AssertionError(f"{done.done} of {count} were requeued: {done.reasons}")
    return {
        "count": count,
        "seconds": took,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main() -> None:
    """Ask for every page, or requeue so many."""
    if len(sys.argv) > 1:
        print(json.dumps(requeue(int(sys.argv[1]))))
        return
    client = Client(headers={"host": "localhost"})
    client.force_login(get_user_model().objects.create_superuser(f"scale-{time.time()}"))
    client.get("/admin/")  # imports, and compiles templates
    print(json.dumps({page: cost(client, page) for page in dict.fromkeys(pages())}))


if __name__ == "__main__":
    main()
