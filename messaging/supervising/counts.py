"""What the children of one supervisor have counted, those that have died included. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from messaging.metrics import names
from messaging.metrics.tally import Found, Tally, Totals, create


class Counts:
    """The counts of all children together; no number falls as long as the supervisor lives.

    Args:
        alias: which alias of `MESSAGING` they consume.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._totals = Totals()
        self._places: list[Place] = []
        self._lock = threading.Lock()  # a scrape has a thread of its own
        self._deaths = 0

    def place(self) -> Place:
        """Where one child after another counts. Raises OSError where there is no room."""
        place = Place(self._lock, self._totals.keep, self._note_death)
        self._places.append(place)
        return place

    def read(self) -> Found:
        """All of it now. From any thread."""
        labels = (self._alias,)
        with self._lock:
            found = self._totals.with_([place.tally.read() for place in self._places])
            running = sum(place.is_taken for place in self._places)
        found[names.PROCESSES.name, labels] = float(running), time.time()
        found[names.DEATHS.name, labels] = (float(self._deaths),)
        return found

    def _note_death(self) -> None:
        self._deaths += 1


class Place:
    """One child's. Made by `Counts`, used by the supervisor's only thread."""

    def __init__(self, lock: threading.Lock, keep: Callable[[Found], None], note_death: Callable[[], None]) -> None:
        self.tally: Tally = create()
        self.is_taken = False
        self.note_death = note_death
        self._lock = lock
        self._keep = keep

    @property
    def fd(self) -> int:
        """The file that the child inherits."""
        return self.tally.fd if self.tally.fd is not None else -1

    def begin(self) -> None:
        """A process runs here."""
        self.is_taken = True

    def end(self) -> None:
        """It has ended, however: what it counted is kept, and the next one begins with nothing."""
        with self._lock:
            self.is_taken = False
            self._keep(self.tally.read())
            self.tally.clear()
