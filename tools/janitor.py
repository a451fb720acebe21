"""A small process that outlives its parent by a moment to end what the parent could not: also after `kill -9`.

It reads one order per line from its standard input (watch PID, forget PID, remove FOLDER). When that closes, because
the parent closed it or died, it kills the process groups still watched, removes the folders and leaves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path


class Janitor:
    """The parent's side. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Kill the process group of `pid` at the end."""
        self._order(f"watch {pid}")

    def forget(self, pid: int) -> None:
        """The process group of `pid` has ended; its number may be given to someone else."""
        self._order(f"forget {pid}")

    def remove(self, folder: Path) -> None:
        """Remove `folder` at the end."""
        self._order(f"remove {folder}")

    def close(self) -> None:
        """Kill and remove now what was ordered, and wait until that is done."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _order(self, line: str) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def main() -> None:
    """The janitor's side."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, None] = {}
    folders: list[str] = []
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        if order == "watch":
            groups[int(argument)] = None
        elif order == "forget":
            groups.pop(int(argument), None)
        elif order == "remove":
            folders.append(argument)
    for group in reversed(groups):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
