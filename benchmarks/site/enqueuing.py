"""The task for Django's tasks, and what enqueues it: `python -m benchmarks.site.enqueuing COUNT ALIAS`.

Not called `tasks`: some of the peers import each module of that name.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from django.db import transaction

from benchmarks.payloads import payload
from benchmarks.site.effects import record

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@task
def effect(content: dict[str, Any]) -> None:
    """Record an effect."""
    record(content["key"])


if __name__ == "__main__":
    from benchmarks.site.enqueuing import effect as importable  # a task of __main__ cannot be found

    began = time.perf_counter()
    with transaction.atomic():
        enqueue = importable.using(backend=sys.argv[2]).enqueue
        for _ in range(int(sys.argv[1])):
            enqueue(payload())
    print(json.dumps({"seconds": time.perf_counter() - began}))
