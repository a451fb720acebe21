"""Log lines on standard error for commands, where the site configures no logging of its own. Standard library only."""

from __future__ import annotations

import logging
import os

LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG, 3: logging.DEBUG}


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
