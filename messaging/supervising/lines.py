"""The supervisor's log lines where the site has a `LOGGING` of its own: a child writes them. Standard library only.

The supervisor could apply that `LOGGING` only by loading the site's code. A line stays with it until a child says that
it is written, so that none is lost with a child; what none has written at the end goes to standard error.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from messaging.supervising.log_records import FIELDS

MOST = 1000  # lines that wait

Line = dict[str, Any]


class HandedOver(logging.Handler):
    """Gives each line to a child.

    Args:
        give: hands a line to some child; returns whether one took it.
    """

    def __init__(self, give: Callable[[Line], bool]) -> None:
        super().__init__()
        self._give = give
        self._waiting: deque[Line] = deque(maxlen=MOST)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over, behind those that wait."""
        line = {"name": record.name, "level": record.levelno, "text": record.getMessage(), "at": time.time()}
        line["extra"] = {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        self._waiting.append(line)
        self.hand_over()

    def hand_over(self) -> None:
        """Give away what waits, as far as somebody takes it."""
        while self._waiting and self._give(self._waiting[0]):
            self._waiting.popleft()

    def take_back(self, lines: list[Line]) -> None:
        """Lines that a child did not write before its end."""
        self._waiting.extendleft(reversed(lines))

    def write_rest(self) -> None:
        """Write to standard error what waits."""
        while self._waiting and sys.stderr is not None:
            sys.stderr.write(f"{self._waiting.popleft()['text']}\n")


def write(line: Line) -> None:
    """Log a line of the supervisor's, as of when it was said."""
    logger = logging.getLogger(line["name"])
    if logger.isEnabledFor(line["level"]):
        extra = line.get("extra")  # a supervisor of the release before gives none
        record = logger.makeRecord(line["name"], line["level"], __file__, 0, line["text"], (), None, extra=extra)
        record.created = line["at"]
        logger.handle(record)
