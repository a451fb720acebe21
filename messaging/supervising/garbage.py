"""Garbage collection in a process that works on messages for long."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

LARGE = 1024 * 1024  # bytes
_M_MMAP_THRESHOLD = -3  # in malloc.h


def set_loaded_aside() -> None:
    """Take what is loaded by now, a whole Django site, out of every later collection.

    It stays until the process ends anyway, and looking through it again and again took a seventh of a relay's time. For
    processes of our own alone: what is garbage later within it, in a cycle, is never freed.
    """
    gc.collect()
    gc.freeze()


def give_back_large() -> None:
    """Have large pieces of memory go back to the system as soon as they are free.

    glibc keeps pieces as large as the largest that it has seen freed, for each thread: a few large messages would fill
    a container that has room for one at a time.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
