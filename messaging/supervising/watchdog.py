"""Whether a process does anything beside a handler that holds the interpreter's lock. Standard library only.

A regular expression, or C code that does not let go of the lock, stops every other thread: nothing is acknowledged, no
claim is renewed, no stop is obeyed. So each process gives its supervisor a sign of life. Where that stays away, the
supervisor has the process write down its stacks, for which it needs no lock.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

logger = logging.getLogger("messaging.supervisor")

PULSE = 1.0  # seconds between two signs of life
SILENCE = 10.0  # seconds without one that are worth a line
STOPPED = 2.0  # seconds between two looks of a supervisor that did not run itself
MOST = 32 * 1024  # bytes of stacks
# One that nobody uses by name; there is none where a system has no such signals.
_SIGNAL = int(signal.SIGRTMIN) + 9 if hasattr(signal, "SIGRTMIN") else 0


class Watch:
    """The supervisor's, over one process after the other.

    Args:
        limit: seconds of silence after which a process is to be ended; None to let it be.

    Attributes:
        fd: the file that the process writes its stacks to; -1 where it cannot.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._patience = SILENCE if limit is None else min(SILENCE, limit / 2)
        self.fd = os.memfd_create("messaging-stacks") if _SIGNAL and hasattr(os, "memfd_create") else -1
        self.begin()

    @property
    def heard_at(self) -> float | None:
        """When it last gave a sign of life, CLOCK_MONOTONIC; None before the first."""
        return self._heard_at

    def begin(self) -> None:
        """Another process starts, of which nothing has been heard."""
        self._heard_at: float | None = None
        self._looked_at = time.monotonic()
        self._is_asked = self._is_told = False

    def heard(self, pid: int) -> None:
        """It lives."""
        now = time.monotonic()
        if self._is_told:
            logger.warning("Process %s goes on, after %.0f s.", pid, now - (self._heard_at or now))
        self._heard_at, self._is_asked, self._is_told = now, False, False

    def look(self, pid: int, running: Callable[[], Sequence[str]]) -> bool:
        """Say so where nothing was heard of it for too long. Returns whether it is to be ended.

        Args:
            pid: the process.
            running: tells the handlers that it runs.
        """
        now, looked_at = time.monotonic(), self._looked_at
        self._looked_at = now
        if self._heard_at is not None and now - looked_at > STOPPED:
            self._heard_at = now  # this process was stopped too, perhaps by the machine
        silent = now - self._heard_at if self._heard_at is not None else 0.0
        if silent <= self._patience:
            return False
        if not self._is_asked:
            self._is_asked = True
            self._ask(pid)
        elif not self._is_told:  # at the next look: by then it has answered
            self._is_told = True
            handlers = " or ".join(running())
            what = f"{handlers} holds the interpreter's lock" if handlers else "it hangs"
            text = "Process %s has done nothing else for %.0f s: %s, or the machine is too busy.%s"
            logger.warning(text, pid, silent, what, self._stacks())
        return self.limit is not None and silent > self.limit

    def _ask(self, pid: int) -> None:
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
            with suppress(OSError):  # it has ended
                os.kill(pid, _SIGNAL)

    def _stacks(self) -> str:
        written = os.pread(self.fd, MOST, 0).decode(errors="replace").strip() if self.fd >= 0 else ""
        return f" Its stacks:\n{written}" if written else ""


class Pulse(threading.Thread):
    """The process's own signs of life.

    Args:
        fd: where its stacks are asked for; -1 for nowhere.
        beat: gives a sign.
        on_freeze: called with the seconds for which this thread could not run.
    """

    def __init__(self, fd: int, beat: Callable[[], object], on_freeze: Callable[[float], object]) -> None:
        super().__init__(name="messaging-pulse", daemon=True)
        self._beat, self._on_freeze = beat, on_freeze
        if fd >= 0:
            os.set_inheritable(fd, False)
            faulthandler.register(_SIGNAL, file=fd, all_threads=True)

    def run(self) -> None:
        """Until the process ends."""
        while True:
            before = time.monotonic()
            self._beat()
            time.sleep(PULSE)
            late = time.monotonic() - before - PULSE
            if late > SILENCE:
                self._on_freeze(late)
