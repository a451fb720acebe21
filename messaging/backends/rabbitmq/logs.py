"""The backend's own logger, and silence for pika's in our threads.

pika logs each failed connection several times with tracebacks, and message bodies at WARNING. What matters of that is
said once by this backend, so records that pika makes in our I/O threads are dropped; other users of pika in the same
process keep theirs, which is why this is a filter on the thread and not a level on the logger.
"""

from __future__ import annotations

import logging
import threading

logger = logging.getLogger("messaging.rabbitmq")

_thread = threading.local()


def hush_this_thread() -> None:
    """Drop what pika logs in the current thread from now on."""
    for name, candidate in list(logging.root.manager.loggerDict.items()):
        if name.split(".")[0] == "pika" and isinstance(candidate, logging.Logger):
            candidate.addFilter(_loud)  # adding it again does nothing
    _thread.hushed = True


def _loud(_record: logging.LogRecord) -> bool:
    return not getattr(_thread, "hushed", False)
