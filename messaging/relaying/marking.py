"""Marking what the broker has confirmed, beside the leasing of what comes next."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from django.db import Error, connections

from messaging.killpoints import kill_point
from messaging.models import PublishedMessage

IDLE = 30.0  # seconds after which an unused connection is replaced: a firewall may have dropped it without a word


class Marker:
    """Marks rows published, one batch at a time, in a thread that has a database connection of its own.

    Where two that write at once would wait for each other, which is everywhere but on PostgreSQL, it has no thread:
    `end()` does it. So it does after the thread failed, which may have got no connection.

    Args:
        database: alias of `DATABASES`.
        on_done: called in the thread after each batch.
    """

    def __init__(self, database: str, on_done: Callable[[], None]) -> None:
        self._database, self._on_done = database, on_done
        self._thread: ThreadPoolExecutor | None = None
        self._batch: Future[None] | None = None
        self._rows: list[PublishedMessage] = []
        self._used_at = 0.0
        self._has_failed = False

    @property
    def rows(self) -> list[PublishedMessage]:
        """Those of the batch that was begun and not ended."""
        return self._rows

    @property
    def is_done(self) -> bool:
        """Whether `end()` would not wait for the thread."""
        return self._batch is None or self._batch.done()

    def begin(self, rows: list[PublishedMessage]) -> None:
        """Take these; the batch before has ended."""
        self._rows = rows
        if connections[self._database].vendor == "postgresql" and not self._has_failed:
            self._thread = self._thread or ThreadPoolExecutor(1, f"messaging-mark-{self._database}")
            self._batch = self._thread.submit(self._mark_beside)
            self._batch.add_done_callback(lambda _: self._on_done())

    def end(self) -> None:
        """Wait until they are marked. Raises the database's error; then nobody knows whether they are."""
        batch, self._batch = self._batch, None
        try:
            if batch is None:
                self._mark()
            else:
                batch.result()
            self._has_failed = False
        except Error:
            self._has_failed = batch is not None
            raise
        finally:
            self._rows = []

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.submit(partial(_disconnect, self._database))
            self._thread.shutdown()
            self._thread = None

    def _mark_beside(self) -> None:
        """Mark in the thread, whose connection nothing else keeps busy."""
        if time.monotonic() - self._used_at > IDLE:
            _disconnect(self._database)
        self._mark()
        self._used_at = time.monotonic()

    def _mark(self) -> None:
        kill_point("relay.confirmed")
        try:
            PublishedMessage.objects.using(self._database).mark_published(self._rows)
        except Error:
            _disconnect(self._database)  # it may have gone stale
            raise
        kill_point("relay.marked")


def _disconnect(database: str) -> None:
    connections[database].close()
