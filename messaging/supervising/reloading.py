"""Noticing that a source file changed, for `consume --reload`. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

INTERVAL = 1.0  # seconds between two looks


class FileWatcher:
    """Compares the modification times of files."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._looked_at = 0.0

    @property
    def known(self) -> bool:
        """Whether it watches anything yet."""
        return bool(self._times)

    def add(self, paths: Iterable[str]) -> None:
        """Watch these files too."""
        for path in paths:
            if path not in self._times:
                self._times[path] = _modified(path)

    def changed(self) -> str:
        """The path of a file that changed since the last look, or ""; looks at most once per second."""
        if time.monotonic() - self._looked_at < INTERVAL:
            return ""
        self._looked_at = time.monotonic()
        found = ""
        for path, before in self._times.items():
            now = _modified(path)
            if now and now != before:  # an editor may replace a file: gone for a moment is no change
                self._times[path] = now
                found = path
        return found


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
