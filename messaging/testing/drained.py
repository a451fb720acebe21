"""What `testing.drain()` did: told by the app's own signals, and read again from the rows at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.dispatch import Signal

from messaging import signals
from messaging.models import ProcessedMessage, PublishedMessage

State = ProcessedMessage.State


@dataclass(frozen=True, slots=True)
class Drained:
    """What `drain()` did.

    Attributes:
        processed: inbox rows of messages that were processed, in the order of their first attempts.
        retrying: inbox rows of messages that wait for another attempt; `attempt_set` has the attempts so far.
        failed: inbox rows of messages that rest as failed.
        sent_elsewhere: outbox rows of messages that no handler of this site takes, because they are for other services.
        errors: what handlers raised, in order, and the reasons of messages that failed without a handler.
    """

    processed: list[ProcessedMessage] = field(default_factory=list)
    retrying: list[ProcessedMessage] = field(default_factory=list)
    failed: list[ProcessedMessage] = field(default_factory=list)
    sent_elsewhere: list[PublishedMessage] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


class Events:
    """Collects what happens to the messages of one alias while `recorded()`."""

    def __init__(self, alias: str) -> None:
        self.errors: list[BaseException] = []
        self.sent_elsewhere: list[PublishedMessage] = []
        self._alias = alias
        self._seen: dict[tuple[str, str, UUID], None] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Listen to the signals."""
        with ExitStack() as stack:
            for signal in (signals.message_processed, signals.message_retrying, signals.message_failed):
                stack.enter_context(_connected(signal, self._note))
            yield

    def drained(self) -> Drained:
        """The rows as they are now."""
        drained = Drained(sent_elsewhere=self.sent_elsewhere, errors=self.errors)
        rows = {State.PROCESSED: drained.processed, State.RETRYING: drained.retrying, State.FAILED: drained.failed}
        for database, queue, key in self._seen:
            row = ProcessedMessage.objects.using(database).filter(alias=self._alias, queue=queue, key=key).first()
            if row is not None and row.state in rows:
                rows[State(row.state)].append(row)
        return drained

    def _note(self, row: ProcessedMessage, error: BaseException | None = None, **_details: Any) -> None:
        self._seen[row._state.db or "default", row.queue, row.key] = None
        if error is not None:
            self.errors.append(error)
            error.add_note(f"Raised while drain() had this message processed: {row}")


@contextmanager
def _connected(signal: Signal, receiver: Any) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)
