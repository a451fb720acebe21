"""The Huey task, with what it takes for the same records: a row with each message, in the transaction of its work."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from typing import Any

import django

if __name__ == "__main__":
    django.setup()

from django.db import IntegrityError, transaction
from huey.contrib.djhuey import db_task

from benchmarks.peer_sites.publishing import publish
from benchmarks.site.effects import record


@db_task(name="effect")
def effect(content: dict[str, Any]) -> None:
    """Record the message and an effect, unless the message was recorded before."""
    from benchmarks.peer_sites.with_huey_recorded.models import Received

    key, body, worker = content["key"], json.dumps(content), str(os.getpid())
    with suppress(IntegrityError), transaction.atomic():
        Received.objects.create(
            message_id=key, name="effect", body=body, state="processed", handler="effect", worker=worker
        )
        record(key)


def send(content: dict[str, Any]) -> None:
    """Record what is sent in the caller's transaction, and enqueue it after its commit."""
    from benchmarks.peer_sites.with_huey_recorded.models import Sent
    from benchmarks.peer_sites.with_huey_recorded.tasks import effect as importable  # one of __main__ cannot be found

    with transaction.atomic():
        Sent.objects.create(message_id=content["key"], name="effect", body=json.dumps(content), state="published")
        transaction.on_commit(partial(importable, content))


if __name__ == "__main__":
    publish(send)
