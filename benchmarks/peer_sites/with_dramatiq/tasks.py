"""The Dramatiq actor."""

from __future__ import annotations

from typing import Any

import django

if __name__ == "__main__":
    django.setup()

import dramatiq

from benchmarks.peer_sites.publishing import publish
from benchmarks.site.effects import record


@dramatiq.actor(actor_name="effect", queue_name="bench_dramatiq")
def effect(content: dict[str, Any]) -> None:
    """Record an effect."""
    record(content["key"])


if __name__ == "__main__":
    publish(effect.send)
