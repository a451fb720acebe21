"""Deliveries on their way through one process, and in what order those of one queue start."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from messaging.backends.base import Delivery
from messaging.handlers import Handler
from messaging.killpoints import kill_point


@dataclass(eq=False, slots=True)
class Item:
    """A delivery on its way through this process.

    Attributes:
        handler: the handler that would take it; None when nobody would.
        is_dead: whether it comes from a dead-letter queue, so that it is recorded, not run.
        is_innocent: whether it was redelivered because this process gave it back unstarted.
        is_acked: whether the broker was told that it is done.
        is_atomic: whether a handler runs it and blocks nobody for hours: such messages make room for a suspect.
        is_suspect: whether it may have killed a process before, so that nothing innocent should run beside it.
        batch: how many of its kind may run together; None for one at a time.
        is_held: whether it last found its record in an open transaction of someone else's.
        troubles: how often the consumer itself failed on it.
        size: bytes of its body.
    """

    delivery: Delivery
    handler: Handler | None
    is_dead: bool
    is_innocent: bool = False
    is_acked: bool = False
    is_atomic: bool = field(init=False)
    is_suspect: bool = field(init=False)
    batch: int | None = field(init=False)
    is_held: bool = field(init=False, default=False)
    troubles: int = field(init=False, default=0)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        delivery, handler = self.delivery, self.handler
        self.size = len(delivery.body)
        self.is_atomic = handler is not None and handler.atomic and not self.is_dead
        self.is_suspect = self.is_atomic and delivery.redelivered and not self.is_innocent
        runs_together = self.is_atomic and not delivery.redelivered
        is_in_batch = handler is not None and handler.batch is not None and runs_together
        # What a row has to be asked about runs alone, or a stranger could have the whole batch run one by one.
        self.batch = handler.batch if handler is not None and is_in_batch and delivery.envelope.is_proven else None

    def isolate(self) -> None:
        """Let nothing innocent run beside it: its row says that its last run killed a process."""
        self.is_suspect, self.batch = True, None

    def ack(self) -> bool:
        """Acknowledge it, once. False when its channel is gone: it comes again, and the inbox knows it."""
        if self.is_acked:
            return True
        self.is_acked = True
        if self.delivery.spool is not None:
            self.delivery.spool.close()
        reached = self.delivery.ack()
        kill_point("consumer.acked")
        return reached

    @property
    def is_stale(self) -> bool:
        """Whether the broker has taken it back."""
        return not self.is_acked and not self.delivery.is_live


@dataclass(eq=False, slots=True)
class Job:
    """What one worker does next: one item, or a batch of one handler. `held` of them were when it began."""

    items: list[Item]
    is_alone: bool = False
    held: int = 0

    @property
    def head(self) -> Item:
        """The first, or only, item."""
        return self.items[0]

    @property
    def size(self) -> int:
        """Bytes of their bodies."""
        return self.items[0].size if len(self.items) == 1 else sum(item.size for item in self.items)


def identity(delivery: Delivery) -> tuple[str, str, str | None, int]:
    """What a delivery is recognised by when it comes again."""
    return delivery.queue, delivery.routing_key, delivery.properties.message_id, hash(delivery.body)


class Line:
    """The items of one queue that wait for their turn, in order. Not safe to share without a lock."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._together: Counter[int] = Counter()  # those that may run in a batch, by handler

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held(self) -> int:
        """How many last found their record in an open transaction of someone else's."""
        return sum(item.is_held for item in self._items)

    @property
    def head(self) -> Item:
        """The next; there must be one."""
        return self._items[0]

    @property
    def is_full(self) -> bool:
        """Whether the next has as many mates as may run with it."""
        head = self.head
        return head.batch is None or self._together[id(head.handler)] >= head.batch

    def append(self, item: Item) -> bool:
        """Take in an item; returns whether that may let something start, or begins the waiting for its mates."""
        self._items.append(item)
        if item.batch is None:
            return True
        count = self._together[id(item.handler)] = self._together[id(item.handler)] + 1
        return count == 1 or count % item.batch == 0

    def append_left(self, item: Item) -> None:
        """Take in an item whose turn comes first."""
        self._items.appendleft(item)
        self._together[id(item.handler)] += item.batch is not None

    def take(self) -> list[Item]:
        """Remove the next, and with it those that may run in one batch with it."""
        head = self.head
        taken: list[Item] = []
        others: list[Item] = []
        while self._items and len(taken) < (head.batch or 1):
            item = self._items.popleft()
            fits = item is head or (item.batch is not None and item.handler is head.handler)
            (taken if fits else others).append(item)
        self._items.extendleft(reversed(others))
        if head.batch is not None:
            self._together[id(head.handler)] -= len(taken)
        return taken

    def remove(self, chosen: Callable[[Item], bool]) -> list[Item]:
        """Remove those that `chosen` picks."""
        items = list(self._items)
        removed = [item for item in items if chosen(item)]
        if removed:
            gone = set(removed)
            self._fill(item for item in items if item not in gone)
        return removed

    def _fill(self, items: Iterable[Item]) -> None:
        self._items = deque(items)
        self._together = Counter(id(item.handler) for item in self._items if item.batch is not None)
