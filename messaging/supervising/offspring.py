"""The processes that a handler has forked, to be ended with it. Standard library only; on Linux, where /proc tells."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress


def offspring_of(pid: int) -> list[int]:
    """The living descendants of a process in its own process group: who has left that is to outlive it."""
    children: dict[int, list[int]] = {}
    for child, parent, group in _processes():
        if group == _group_of(pid):
            children.setdefault(parent, []).append(child)
    found, rest = [], [pid]
    while rest:
        own = children.pop(rest.pop(), [])
        found += own
        rest += own
    return found


def end(pids: Iterable[int]) -> None:
    """Kill processes that are in nobody's way any more."""
    for pid in pids:
        with suppress(OSError):  # it has ended
            os.kill(pid, signal.SIGKILL)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process, parent and process group of all."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in filter(str.isdigit, names):
        try:
            with open(f"/proc/{name}/stat", errors="replace") as file:
                _state, parent, group = file.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        yield int(name), int(parent), int(group)
