"""The Huey task. Its result is its record that it ran."""

from __future__ import annotations

from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from huey.contrib.djhuey import db_task

from benchmarks.peer_sites.publishing import publish
from benchmarks.site.effects import record


@db_task(name="effect")
def effect(content: dict[str, Any]) -> str:
    """Record an effect."""
    record(content["key"])
    return str(content["key"])


if __name__ == "__main__":
    from benchmarks.peer_sites.with_huey.tasks import effect as importable  # a task of __main__ cannot be found

    publish(importable)
