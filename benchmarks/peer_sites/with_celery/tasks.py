"""The Celery application."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.peer_sites.publishing import publish
from benchmarks.site.effects import record

app = Celery("bench")
app.config_from_object("django.conf:settings", namespace="CELERY")
if __name__ == "__main__":
    app.loader.import_default_modules()  # django.setup() and its checks


@app.task(name="bench.effect")
def effect(content: dict[str, Any]) -> None:
    """Record an effect."""
    record(content["key"])


if __name__ == "__main__":
    publish(effect.delay)
