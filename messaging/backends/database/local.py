"""Tells the receivers of this process that a queue has got something: they need not wait for their next look."""

from __future__ import annotations

import threading
from collections.abc import Callable

_guard = threading.Lock()
_listeners: dict[str, set[Callable[[], None]]] = {}


def listen(database: str, on_wake: Callable[[], None]) -> None:
    """Call `on_wake` when this process has put messages into a database's queues."""
    with _guard:
        _listeners.setdefault(database, set()).add(on_wake)


def unlisten(database: str, on_wake: Callable[[], None]) -> None:
    """Undo `listen()`."""
    with _guard:
        _listeners.get(database, set()).discard(on_wake)


def wake(database: str) -> None:
    """Messages were committed."""
    with _guard:
        listeners = list(_listeners.get(database, ()))
    for on_wake in listeners:
        on_wake()
