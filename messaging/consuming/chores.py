"""Periodic chores on a thread of their own, and those of one database's claims."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.connections import close_old, is_lost, reconnect
from messaging.db.patience import bound_here, note_line, sever
from messaging.exceptions import DatabaseUnavailable
from messaging.processing.processor import Processor
from messaging.wire.text import one_line

logger = logging.getLogger("messaging.consumer")

SHORTEST_PATIENCE, LONGEST_PATIENCE = 3.0, 10.0  # seconds for a database that gives no sign; a lock takes two

Chores = Mapping[str, tuple[float, Callable[[], object]]]  # what each is about: seconds between two, and how


def claims_chores(processor: Processor, database: str) -> Chores:
    """What keeps the claims in one database in order."""
    third = processor.settings.lease / 3
    return {
        "the leases of running messages": (third, partial(processor.renew_claims, database)),
        "the claims of dead workers": (third, partial(processor.sweep, database)),
    }


class Keeper(threading.Thread):
    """Does the chores of one database, so that none that hangs keeps another database's from being done.

    Args:
        database: which one; the chores use no other.
        processor: whose claims and outages these are.
        chores: what to do.
        on_outage: called when the database cannot be used.
    """

    def __init__(
        self, database: str, processor: Processor, chores: Chores, on_outage: Callable[[DatabaseUnavailable], None]
    ) -> None:
        super().__init__(name=f"messaging-keeper-{database}", daemon=True)
        self._database = database
        self._processor = processor
        self._chores = chores
        self._on_outage = on_outage
        self._over = threading.Event()
        self._failing: set[str] = set()
        self._due = dict.fromkeys(chores, 0.0)
        self._patience = min(LONGEST_PATIENCE, max(SHORTEST_PATIENCE, processor.settings.lease / 3))
        self._busy_since: float | None = None
        self._connection: BaseDatabaseWrapper | None = None  # of this thread

    def run(self) -> None:
        """Do each chore when it is due, until `stop()`."""
        bound_here(self._database, self._patience)
        while not self._over.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            now = time.monotonic()
            for chore, (interval, act) in self._chores.items():
                if self._due[chore] <= now:
                    self._try(chore, act)
                    self._due[chore] = time.monotonic() + interval
            self._after_round()
        self._before_end()
        connections.close_all()

    def stop(self, timeout: float = 5.0) -> None:
        """End; waits up to `timeout` seconds."""
        self._over.set()
        self.join(timeout)

    def hurry(self) -> None:
        """Cut the connection if a chore has hung on it for too long: a new one may do. For other threads."""
        since, connection = self._busy_since, self._connection
        if since is not None and connection is not None and time.monotonic() - since > self._patience:
            self._busy_since = None  # once
            sever(connection)

    def _after_round(self) -> None:
        """For subclasses: all that was due is done."""

    def _before_end(self) -> None:
        """For subclasses: this thread ends."""

    def _try(self, chore: str, act: Callable[[], object]) -> None:
        close_old()
        self._connection = connections[self._database]
        note_line(self._connection)
        self._busy_since = time.monotonic()
        try:
            self._act(act)
        except DatabaseUnavailable as trouble:
            self._on_outage(trouble)
        except Exception as error:  # noqa: BLE001 (no chore may end the others)
            if chore not in self._failing:
                self._failing.add(chore)
                logger.warning("Cannot see to %s; trying again until it works: %s", chore, one_line(error))
        else:
            if chore in self._failing:
                self._failing.discard(chore)
                logger.warning("Could see to %s again.", chore)
        finally:
            self._busy_since = None

    def _act(self, act: Callable[[], object]) -> None:
        """Once more where only the connection in use was lost."""
        with self._processor.outages.watch(self._database):
            try:
                act()
            except Exception as error:
                if not is_lost(error, self._database):
                    raise
                reconnect(self._database)
                self._busy_since = time.monotonic()
                act()
