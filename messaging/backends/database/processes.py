"""Which process a connection belongs to, so that the end of one on this machine is noticed at once."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


def identity() -> str:
    """This process, told apart from any other that ever ran, wherever it can be."""
    pid = os.getpid()
    return f"{_machine()} {pid} {_started(pid)}"


def has_ended(process: str) -> bool:
    """Whether a process that gave this identity ran on this machine and is gone; False where nobody can tell."""
    machine, _, rest = process.rpartition(" ")[0].rpartition(" ")
    started = process.rpartition(" ")[2]
    if machine != _machine() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return started != _started(int(rest))


@cache
def _machine() -> str:
    """Host, boot and process namespace: containers have process numbers of their own."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()[:100]}/{boot}/{namespace}"


def _started(pid: int) -> str:
    """When a process began, as the kernel counts; "ended" for one that only waits to be collected by its parent."""
    # The name in parentheses may hold anything, so the fields are counted behind it: state is first, start the 20th.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
