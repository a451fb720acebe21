"""Garbage collection in a process that works on messages for long."""

from __future__ import annotations

import gc


def set_loaded_aside() -> None:
    """Take what is loaded by now, a whole Django site, out of every later collection.

    It stays until the process ends anyway, and looking through it again and again took a seventh of a relay's time. For
    processes of our own alone: what is garbage later within it, in a cycle, is never freed.
    """
    gc.collect()
    gc.freeze()
