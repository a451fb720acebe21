"""Log lines on standard error for commands, where the site configures no logging of its own. Standard library only."""

from __future__ import annotations

import logging

LENGTH = 300  # characters of an error in a log line
LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG, 3: logging.DEBUG}


def configure(verbosity: int = 1) -> None:
    """Show the app's log lines on standard error unless the site's `LOGGING` takes care of them.

    Args:
        verbosity: 0 shows warnings and errors, 1 what matters to an operator, 2 everything.
    """
    logger = logging.getLogger("messaging")
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(LEVELS.get(verbosity, logging.INFO))


def one_line(error: object) -> str:
    """An error's text for a log line: a driver's may have several lines, and no end.

    What could steer a terminal is shown as escapes: strangers choose ids and routing keys.
    """
    line = " ".join(str(error).split()) or type(error).__name__
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return line if len(line) <= LENGTH else line[: LENGTH - 1] + "…"
