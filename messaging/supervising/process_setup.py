"""What a command sets up in its process: log lines, streams, garbage collection. Standard library only."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from contextlib import suppress

LARGE = 1024 * 1024  # bytes
_M_MMAP_THRESHOLD = -3  # in malloc.h
LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG, 3: logging.DEBUG}


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


def configure(verbosity: int = 1) -> bool:
    """Show the app's log lines on standard error unless the site's `LOGGING` takes care of them.

    Args:
        verbosity: 0 shows warnings and errors, 1 what matters to an operator, 2 everything.

    Returns whether the site's does.
    """
    logger = logging.getLogger("messaging")
    if logger.hasHandlers():
        return True
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(LEVELS.get(verbosity, logging.INFO))
    return False


def open_streams() -> None:
    """Point standard streams that are closed at nothing: else the next file takes their number, and what is printed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
