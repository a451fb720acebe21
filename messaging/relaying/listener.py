"""PostgreSQL's LISTEN: a relay hears of what was published, and need not wait for its next look."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.connections import separate
from messaging.publishing.publisher import CHANNEL, notify

logger = logging.getLogger("messaging.relay")
PROBE = 30.0  # seconds of silence after which the connection is tried
PAUSE = 5.0  # seconds before a lost connection is opened again


class Listener(threading.Thread):
    """A thread with a database connection of its own that calls `on_wake` when a transaction published something.

    Only a hint: what it misses, the relay finds by looking.

    Args:
        database: alias of `DATABASES`; ask `can_listen()` first.
        alias: alias of `MESSAGING` to listen for.
        on_wake: called in this thread.
    """

    def __init__(self, database: str, alias: str, on_wake: Callable[[], None]) -> None:
        super().__init__(name=f"messaging-listen-{database}", daemon=True)
        self._database, self._alias, self._on_wake = database, alias, on_wake
        self._end, self._other_end = socket.socketpair()
        self._heard = False

    @property
    def has_heard(self) -> bool:
        """Whether notifications are known to arrive here: a pooler between may swallow them without an error."""
        return self._heard

    def run(self) -> None:
        """Listen until `stop()`, across reconnects."""
        with self._end:
            while True:
                # A new selector each time: one that still knows a closed connection refuses its successor.
                with selectors.DefaultSelector() as selector:
                    selector.register(self._end, selectors.EVENT_READ)
                    try:
                        return self._listen(selector)
                    except Exception as error:  # noqa: BLE001 - whatever the driver raises: the relay goes on looking
                        logger.debug('Not listening on database "%s" for now: %s', self._database, error)
                self._heard = False
                if self._ends_within(PAUSE):
                    return None

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._other_end.close()
        self.join(PAUSE)

    def _ends_within(self, seconds: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def _listen(self, selector: selectors.BaseSelector) -> None:
        connection = separate(self._database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            raw: Any = connection.connection
            selector.register(raw, selectors.EVENT_READ)
            self._call_out()
            self._wait(selector, connection, raw)
        finally:
            with contextlib.suppress(Exception), connection.cursor() as cursor:
                cursor.execute("UNLISTEN *")  # a pooler between may hand the connection on
            connection.close()

    def _call_out(self) -> None:
        """Notify from another session, as a publisher would: hearing that is the proof that notifications arrive.

        Where no other session is to be had, the first publisher's will prove it.
        """
        separately = contextlib.closing(separate(self._database))
        with contextlib.suppress(Exception), separately as other:
            notify(other, self._alias)

    def _wait(self, selector: selectors.BaseSelector, connection: BaseDatabaseWrapper, raw: Any) -> None:
        while True:
            ready = [key.fileobj for key, _ in selector.select(PROBE)]
            if self._end in ready:
                return
            if not ready:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
            if self._alias in _notifications(raw):
                self._heard = True
                self._on_wake()


def can_listen(database: str) -> bool:
    """Whether the database can notify."""
    return connections[database].vendor == "postgresql"


def _notifications(raw: Any) -> set[str]:
    """The payloads that have arrived; `raw` is a connection of psycopg 3 or 2."""
    payloads: set[str] = set()
    if hasattr(raw, "pgconn"):
        raw.pgconn.consume_input()
        while notification := raw.pgconn.notifies():
            payloads.add(notification.extra.decode(errors="replace"))
    else:
        raw.poll()
        while raw.notifies:
            payloads.add(raw.notifies.pop().payload)
    return payloads
