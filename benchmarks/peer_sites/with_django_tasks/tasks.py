"""The task for Django's tasks framework."""

from __future__ import annotations

from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from benchmarks.peer_sites.publishing import publish
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
    from benchmarks.peer_sites.with_django_tasks.tasks import effect as importable  # a task of __main__ cannot be found

    publish(importable.enqueue)
