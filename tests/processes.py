"""What the system says of processes that are not ours (Linux)."""

from __future__ import annotations

import contextlib
from pathlib import Path


def stat_of(pid: int) -> list[str]:
    """Its state, its parent, its group and so on, as in `/proc/PID/stat`; [] once it is gone."""
    with contextlib.suppress(OSError):  # also where that happens between opening the file and reading it
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def is_alive(pid: int) -> bool:
    """Whether a process runs; not one that only waits for its status to be read."""
    return stat_of(pid)[:1] not in ([], ["Z"])


def states_of_group(leader: int) -> list[str]:
    """The letter that the system gives for the state of each process of a group."""
    stats = (stat_of(int(path.name)) for path in Path("/proc").glob("[0-9]*"))
    return [stat[0] for stat in stats if stat and int(stat[2]) == leader and stat[0] != "Z"]
