"""How many bytes of messages a process may hold, and how many it holds: what waits for its turn, and what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

SHARE = 16  # of the memory there is: a message takes about ten times its size while it is stored and its handler runs
LEAST = 1024 * 1024  # bytes

_CGROUP, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMITS = ("memory.max", "memory.high", "memory/memory.limit_in_bytes", "memory.limit_in_bytes")


class Allowance:
    """The bytes that one consumer process may hold, in all its queues. Whoever counts holds a lock of its own.

    Attributes:
        limit: bytes; None for any number.
        held: bytes of the bodies that were delivered and are not done with.
        on_room: called, from any thread, when something was let go of while `is_waited_for`.
        is_waited_for: whether someone has stopped taking in messages.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.held = 0
        self.on_room: Callable[[], None] = lambda: None
        self.is_waited_for = False

    def let_go(self, size: int) -> None:
        """So many bytes are done with."""
        self.held -= size
        if self.is_waited_for:
            self.on_room()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held. What is the only message always may."""
        return self.limit is None or not self.held or self.held + size <= self.limit

    def fits(self, size: float) -> int:
        """How many messages of that size may be held, at least one."""
        return sys.maxsize if self.limit is None else max(1, int(self.limit / max(size, 1.0)))


def default_limit(processes: int = 1) -> int:
    """The bytes that each of so many processes may hold where the settings do not say."""
    return max(LEAST, memory() // (SHARE * max(1, processes)))


def memory() -> int:
    """Bytes that this process and the others of its container may use."""
    limits = [limit for limit in (*_of_cgroups(), _of_process()) if limit]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def _of_cgroups() -> list[int]:
    """The limits of this process's control groups, whose parents' hold as well."""
    try:
        own = {line.split(":", 2)[2].strip("/") for line in _OWN_CGROUP.read_text().splitlines()}
    except (OSError, IndexError):
        own = set()
    folders = {_CGROUP}
    for name in own:
        for root in (_CGROUP, _CGROUP / "memory"):
            folders |= {root / name, *(root / parent for parent in Path(name).parents)}
    return [limit for folder in folders for name in _LIMITS if (limit := _read(folder / name))]


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _of_process() -> int | None:
    try:
        import resource  # which Windows does not have
    except ImportError:
        return None
    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)
