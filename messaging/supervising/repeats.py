"""Log lines that repeat: the first of a kind are written, the others counted. Standard library only.

One bad sender would fill the disk with a line for each message, and hide all others.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from messaging.supervising.log_records import ALIAS, FIELDS, LEFT_OUT, QUEUE

MOST = 20  # lines of one kind within
SECONDS = 60.0
LOGGERS = ("messaging.consumer", "messaging.processor", "messaging.relay")
KIND = "_messaging_kind"  # attribute of a record that tells its kind, of one alias and queue, from others of its text


@dataclass(slots=True)
class _Kind:
    """Lines of one kind since `began`, like `record`, which keeps no traceback alive, nor what that refers to."""

    record: logging.LogRecord
    began: float
    written: int = 0
    counted: int = 0


class Repeats(logging.Filter):
    """Of warnings and errors of one kind, lets `most` through in `seconds`, and then tells how many more there were.

    Of one kind are those of one logger, level and text, apart from what is filled in, and of the same `KIND`: give
    that nothing a stranger may choose.
    """

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self.begin()

    def begin(self) -> None:
        """Forget everything, as in a process that was forked, where the lock may be held for ever."""
        self._kinds: dict[Any, _Kind] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.levelno < logging.WARNING:
            return True
        now, key = time.monotonic(), (record.name, record.levelno, record.msg, getattr(record, KIND, None))
        over: list[_Kind] = []
        with self._lock:
            kind = self._kinds.get(key)
            if kind is None or now - kind.began >= self._seconds:
                over += [kind] if kind is not None else []
                kind = self._kinds[key] = _Kind(_changed(record), now)
            is_written = kind.written < self._most
            kind.written += is_written
            kind.counted += not is_written
            if not is_written:
                self._start()
        self._tell(over)
        return is_written

    def flush(self) -> None:
        """Tell now what was counted, and begin anew."""
        with self._lock:
            kinds, self._kinds, self._timer = list(self._kinds.values()), {}, None
        self._tell(kinds)

    def _start(self) -> None:
        """Have it told although no further line may come; called under the lock."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self.flush)
            self._timer.name, self._timer.daemon = "messaging-repeats", True
            self._timer.start()

    def _tell(self, kinds: list[_Kind]) -> None:
        for kind in kinds:
            if kind.counted:
                # Past this filter, which would count it as well.
                logging.getLogger(kind.record.name).callHandlers(_summary(kind))


def _changed(record: logging.LogRecord, **changes: Any) -> logging.LogRecord:
    """A copy without its traceback."""
    return logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, **changes})


def _summary(kind: _Kind) -> logging.LogRecord:
    """The line that stands for those that were left out: of one text for all kinds, and about no one message."""
    record, text = kind.record, "%d more lines like this one were left out: %s"
    shared = (ALIAS, QUEUE) if hasattr(record, KIND) else ()
    own = {name: None for name in FIELDS if hasattr(record, name) and name not in shared}
    args = (kind.counted, record.getMessage())
    return _changed(record, msg=text, args=args, created=time.time(), **own, **{LEFT_OUT: kind.counted})


def limit() -> None:
    """Have it so for the loggers of this process that write a line for a message."""
    repeats = Repeats()
    os.register_at_fork(after_in_child=repeats.begin)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(repeats)
    atexit.register(repeats.flush)
