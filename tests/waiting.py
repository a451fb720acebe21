"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DEADLINE = 180.0  # seconds: a machine that stands still for a while fails no test


def wait_until(predicate: Callable[[], T], *, deadline: float = DEADLINE, interval: float = 0.05, what: str = "") -> T:
    """Call `predicate` until it returns something true, and return that.

    Args:
        predicate: called every `interval` seconds; what it raises ends the wait.
        deadline: seconds after which AssertionError is raised.
        what: what is waited for, for the error's text.
    """
    end = time.monotonic() + deadline
    while not (result := predicate()):
        if time.monotonic() > end:
            raise AssertionError(f"Not within {deadline} s: {what or predicate!r}; the last answer was {result!r}.")
        time.sleep(interval)
    return result
