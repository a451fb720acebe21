"""What one feed has handed over, and what is still to be written about it. Safe to call from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

GATHERING = 0.02  # seconds that an acknowledgement waits for others, to be written with them
MANY = 200  # acknowledgements that are written without waiting for more


@dataclass(eq=False, slots=True)
class EmbeddedSubscription:
    """One consumer's life: its queue, and the rows that were delivered to it and are not settled."""

    queue: str
    queue_id: int
    prefetch: int
    is_active: bool = True
    is_narrow: bool = False  # whether one message at once is to be delivered, for now
    held: set[int] = field(default_factory=set)
    large: int = 0  # the last row whose body is in a file: a disk has little room for such ones

    @property
    def room(self) -> int:
        """How many more may be delivered."""
        if self.large in self.held:
            return 0
        return max(0, (1 if self.is_narrow else self.prefetch) - len(self.held))

    @property
    def is_low(self) -> bool:
        """Whether so little is left that its workers may soon have nothing to do."""
        return 2 * len(self.held) <= (1 if self.is_narrow else self.prefetch)


class Holdings:
    """Subscriptions and settlements of one lease.

    Args:
        wake: called when something should be written now.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._subscriptions: dict[str, EmbeddedSubscription] = {}
        self._out: set[int] = set()  # handed over and not settled
        self._done: list[int] = []
        self._back: list[int] = []
        self._since = 0.0
        self._is_starved = self._is_hungry = False  # a queue was full at the last look; it is nearly empty since
        self.is_live = False

    def subscribe(self, subscription: EmbeddedSubscription) -> None:
        """Take in a consumer."""
        with self._lock:
            self._subscriptions[subscription.queue] = subscription

    def widen(self, queues: Collection[str]) -> bool:
        """Let those on these queues have as many as they asked for. False if they may have them already."""
        with self._lock:
            narrow = [one for one in self._subscriptions.values() if one.is_narrow and one.queue in queues]
            for subscription in narrow:
                subscription.is_narrow = False
            return bool(narrow)

    def unsubscribe(self, queue: str) -> bool:
        """End a consumer; what it holds can still be settled. False if there is none."""
        with self._lock:
            subscription = self._subscriptions.pop(queue, None)
            if subscription is not None:
                subscription.is_active = False
            return subscription is not None

    def end(self) -> None:
        """The lease is over: nothing can be settled any more."""
        with self._lock:
            self.is_live = False
            self._subscriptions.clear()

    @property
    def queues(self) -> dict[str, int]:
        """The queues with a consumer, and their numbers."""
        with self._lock:
            return {one.queue: one.queue_id for one in self._subscriptions.values()}

    def rooms(self) -> dict[int, EmbeddedSubscription]:
        """The consumers that can be given more, by their queues' numbers."""
        with self._lock:
            rooms = {one.queue_id: one for one in self._subscriptions.values() if one.room}
            self._is_starved, self._is_hungry = len(rooms) < len(self._subscriptions), False
            return rooms

    def hold(self, subscription: EmbeddedSubscription, row_id: int) -> bool:
        """Note that a row is handed over; False when its consumer is no more."""
        with self._lock:
            if not subscription.is_active:
                return False
            subscription.held.add(row_id)
            self._out.add(row_id)
            self._is_starved |= not subscription.room
            return True

    def settle(self, subscription: EmbeddedSubscription, row_id: int, *, done: bool) -> bool:
        """Note that a row is done, or goes back. False when the lease is over: it comes again."""
        with self._lock:
            if not self.is_live:
                return False
            if row_id not in subscription.held:
                return True  # settled before
            subscription.held.discard(row_id)
            self._out.discard(row_id)
            if not self._count:
                self._since = time.monotonic()
            (self._done if done else self._back).append(row_id)
            self._is_hungry |= self._is_starved and subscription.is_low
            if self._is_hungry or self._count in (1, MANY):
                self._wake()
            return True

    def hurry(self) -> None:
        """Someone waits for more than there was room for."""
        with self._lock:
            if self._is_starved and self._count and not self._is_hungry:
                self._is_hungry = True
                self._wake()

    def take_settled(self, *, at_once: bool = False) -> tuple[list[int], list[int]]:
        """What is to be written now: the rows that are done, and those that go back."""
        with self._lock:
            if not (at_once or self._is_hungry or self._count >= MANY or time.monotonic() >= self.due_at):
                return [], []
            taken = self._done, self._back
            self._done, self._back = [], []
            return taken

    def put_back(self, done: list[int], back: list[int]) -> None:
        """These could not be written."""
        with self._lock:
            self._done += done
            self._back += back

    def unknown(self, row_ids: Iterable[int]) -> list[int]:
        """Those of these rows that were never handed over."""
        with self._lock:
            return sorted(set(row_ids).difference(self._out, self._done, self._back))

    @property
    def due_at(self) -> float:
        """When what was settled is to be written, by `time.monotonic()`."""
        return self._since + GATHERING if self._count else float("inf")

    @property
    def is_starved(self) -> bool:
        """Whether some queue had no room at the last look, so that settling makes room."""
        return self._is_starved

    @property
    def _count(self) -> int:
        return len(self._done) + len(self._back)
