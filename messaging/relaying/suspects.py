"""Finding the message over which the broker closed a channel: suspects are sent in small groups, then alone."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

GROUP = 64  # of thousands of suspects nearly all are innocent; the mates of the culprit are sent once more each


class Suspects(Generic[T]):
    """What waits to be sent again with fewer others under way, then with none."""

    def __init__(self) -> None:
        self._first: deque[T] = deque()
        self._again: deque[T] = deque()
        self._group: list[T] = []

    def __len__(self) -> int:
        return len(self._first) + len(self._again)

    def add(self, item: T) -> None:
        """Take in a suspect; one that was in the last group will be sent alone."""
        (self._again if self._is_in_group(item) else self._first).append(item)

    def next_group(self) -> list[T]:
        """The next ones to send while nothing else is under way."""
        if self._again:
            self._group = [self._again.popleft()]
        else:
            self._group = [self._first.popleft() for _ in range(min(GROUP, len(self._first)))]
        return self._group

    def is_alone(self, item: T) -> bool:
        """Whether it was sent alone, so that the fault is its own."""
        return len(self._group) == 1 and self._is_in_group(item)

    def drain(self) -> list[T]:
        """Give up all of them, and return them."""
        items = [*self._again, *self._first]
        self._first.clear()
        self._again.clear()
        return items

    def _is_in_group(self, item: T) -> bool:
        return any(item is one for one in self._group)
