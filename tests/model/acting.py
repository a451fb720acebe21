"""Threads that run the real code and stop where a step of the model ends, to go on or to die there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connections

from messaging.supervising.ledger import Entry

DEADLINE = 120.0  # seconds that a step may take

_current = threading.local()


class Killed(BaseException):
    """Stands for SIGKILL: raised at a kill point, and at each that comes after."""


class Watch:
    """Stands in `killpoints` for the name of the armed point: a thread of ours that passes one stops there."""

    def __bool__(self) -> bool:
        return True

    def __eq__(self, name: object) -> bool:
        actor = getattr(_current, "actor", None)
        if actor is not None:
            actor.passes(str(name))
        return False

    __hash__ = None  # type: ignore[assignment]


class Actor(threading.Thread):
    """Runs `target` up to the next of its stops at a time.

    Args:
        target: what it runs.
        stops: kill points, and names of the test's own, at which it stops.
    """

    def __init__(self, target: Callable[[], object], stops: frozenset[str]) -> None:
        super().__init__(daemon=True)
        self._target, self._stops = target, stops
        self._may_go, self._has_stopped = threading.Event(), threading.Event()
        self._is_killed = False
        self.at = ""  # where it stands; "end" when it is through
        self.order = ""  # what a handler is to do
        self.entry: Entry | None = None  # what the ledger shows
        self.since = 0.0
        self.result: object = None
        self.error: BaseException | None = None

    def passes(self, name: str) -> None:
        """Called in the thread at each kill point."""
        if self._is_killed:
            raise Killed
        if name in self._stops:
            self.at = name
            self._has_stopped.set()
            self._may_go.wait()
            self._may_go.clear()
            if self._is_killed:
                raise Killed

    def run(self) -> None:
        """The thread."""
        _current.actor = self
        try:
            self.result = self._target()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 (shown by whoever waits)
            self.error = error
        finally:
            connections.close_all()
            self.at = "end"
            self._has_stopped.set()

    def go(self, order: str = "") -> str:
        """Let it run to its next stop; returns where that is."""
        self.order = order
        self._has_stopped.clear()
        if self.ident is None:
            self.start()
        else:
            self._may_go.set()
        assert self._has_stopped.wait(DEADLINE), f"It does not stop after {self.at}."
        if self.error is not None:
            raise self.error
        return self.at

    def kill(self) -> None:
        """Have it die where it stands."""
        if self.is_alive():
            self._is_killed = True
            self._may_go.set()
            self.join(DEADLINE)
            assert not self.is_alive()

    @contextmanager
    def running(self, entry: Entry) -> Iterator[Callable[[], None]]:
        """What the ledger shows of its death."""
        self.entry, self.since = entry, time.monotonic()
        yield lambda: None
        self.entry = None


def current() -> Actor:
    """The actor whose thread this is."""
    actor: Actor = _current.actor
    return actor
