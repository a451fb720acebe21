"""What the tests of the processor share beside the fixture `handle`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing import durations
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Entry
from tests.app.models import Effect
from tests.deliveries import Arrived, envelope_of, in_a_thread

State = ProcessedMessage.State
Handle = Callable[..., Processor]


def effect(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.id, value=str(message.payload))


def ignore(message: ReceivedMessage) -> None:
    pass


def nothing() -> None:
    pass


class Held:
    """A handler that says that it has begun, and goes on when it is let go; then it raises `error`, if any."""

    def __init__(self, error: Exception | None = None) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self._error = error

    def run(self, message: ReceivedMessage) -> None:
        self.entered.set()
        self.leave.wait(120)
        if self._error is not None:
            raise self._error


def only_row() -> ProcessedMessage:
    return ProcessedMessage.objects.get()


def next_round() -> PublishedMessage:
    return PublishedMessage.objects.get(state="pending")


def claim_of(delivery: Arrived) -> dict[str, Any]:
    import uuid

    envelope = envelope_of(delivery)
    assert envelope.key is not None
    return {
        "alias": "default",
        "queue": delivery.queue,
        "key": envelope.key,
        "digest": envelope.digest,
        "message_id": envelope.message_id,
        "state": State.PROCESSING,
        "lease_token": uuid.uuid4(),
        "wire": envelope.to_wire(),
        "body": delivery.body.decode(),
        "worker": "worker-0",
    }


def entry_of(delivery: Arrived, **changes: Any) -> Entry:
    claim = claim_of(delivery)
    values: dict[str, Any] = {
        "alias": "default",
        "queue": delivery.queue,
        "key": str(claim["key"]),
        "digest": str(claim["digest"]),
        "round": 1,
        "message_id": claim["message_id"],
        "database": "default",
        "handler": "tests.effect",
        "started": 1_700_000_000.0,
    }
    return Entry(**{**values, **changes})


def statements(run: Callable[[], object]) -> list[str]:
    """The statements that a call executes on Django's database, those that begin and end transactions left out.

    A handler that takes long would cost one more.
    """
    with mock.patch.object(durations, "BRIEF", 3600.0), CaptureQueriesContext(connection) as queries:
        run()
    found = [query["sql"].split()[0] for query in queries]
    return [verb for verb in found if verb not in ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")]


def end_this_session() -> None:
    """Have the server end this thread's connection, as a failover does."""
    own, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(%s)"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL %s"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(own)
        (pid,) = cursor.fetchone()
    in_a_thread(lambda: connection.cursor().execute(end, [pid])).join()
