"""What was delivered to this process and has not started: whose turn it is, and who must run alone."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from messaging.backends.base import Delivery
from messaging.handlers import Handler
from messaging.killpoints import kill_point
from messaging.message import DIED

logger = logging.getLogger("messaging.consumer")

GATHERING = 0.05  # seconds that an incomplete batch waits for more
REMEMBERED = 10_000  # deliveries that went back unstarted and need not run alone when they come again
PATIENCE = 10.0  # seconds that a suspect waits for what runs to end
_DIED = DIED.encode()


@dataclass(eq=False, slots=True)
class Item:
    """A delivery on its way through this process.

    Attributes:
        handler: the handler that would take it; None when nobody would.
        is_dead: whether it comes from a dead-letter queue, so that it is recorded, not run.
        is_innocent: whether it was redelivered because this process gave it back unstarted.
        is_acked: whether the broker was told that it is done.
    """

    delivery: Delivery
    handler: Handler | None
    is_dead: bool
    is_innocent: bool = False
    is_acked: bool = False

    def ack(self) -> bool:
        """Acknowledge it, once. False when its channel is gone: it comes again, and the inbox knows it."""
        if self.is_acked:
            return True
        self.is_acked = True
        reached = self.delivery.ack()
        kill_point("consumer.acked")
        return reached

    @property
    def is_stale(self) -> bool:
        """Whether the broker has taken it back."""
        return not self.is_acked and not self.delivery.is_live

    @property
    def is_atomic(self) -> bool:
        """Whether a handler runs it and blocks nobody for hours: such messages make room for a suspect."""
        return self.handler is not None and self.handler.atomic and not self.is_dead

    @property
    def is_suspect(self) -> bool:
        """Whether it may have killed a process before, so that nothing innocent should run beside it."""
        died = _DIED in (self.delivery.properties.raw_headers or b"")
        return self.is_atomic and (died or (self.delivery.redelivered and not self.is_innocent))

    @property
    def identity(self) -> tuple[str, str, str | None, int]:
        """What it is recognised by when it comes again."""
        delivery = self.delivery
        return delivery.queue, delivery.routing_key, delivery.properties.message_id, hash(delivery.body)

    @property
    def batch(self) -> int | None:
        """How many of its kind may run together; None for one at a time."""
        if self.handler is None or self.is_dead or self.delivery.redelivered or self.is_suspect:
            return None
        return self.handler.batch


@dataclass(eq=False, slots=True)
class Job:
    """What one worker does next: one item, or a batch of one handler."""

    items: list[Item]
    is_alone: bool = False

    @property
    def head(self) -> Item:
        """The first, or only, item."""
        return self.items[0]


@dataclass(order=True, slots=True)
class _Aside:
    due: float
    order: int
    item: Item = field(compare=False)


class Backlog:
    """Deliveries by queue, taken in turn. Safe to call from any thread.

    A message that was redelivered, or whose retry says so, may be why a process died. While it runs, no other atomic
    message runs here, so that only it can be blamed.

    Args:
        route: finds the handler of a delivery; cheap.
        dead_queues: queues whose deliveries are recorded, not run.
    """

    def __init__(self, route: Callable[[Delivery], Handler | None], dead_queues: Iterable[str] = ()) -> None:
        self._route = route
        self._dead_queues = frozenset(dead_queues)
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[Item]] = {}  # in the order of their turns
        self._aside: list[_Aside] = []
        self._order = itertools.count()
        self._running = self._atomic_running = 0
        self._is_alone = self._is_held = self._is_closed = False
        self._suspect_since: float | None = None
        self._unstarted: set[tuple[str, str, str | None, int]] = set()

    def put(self, delivery: Delivery) -> None:
        """Take in a delivery; called from the backend's thread."""
        is_dead = delivery.queue in self._dead_queues
        item = Item(delivery, None if is_dead else self._find_handler(delivery), is_dead)
        with self._changed:
            if delivery.redelivered and self._unstarted:
                item.is_innocent = item.identity in self._unstarted
                self._unstarted.discard(item.identity)
            if not self._is_closed:
                self._waiting.setdefault(delivery.queue, deque()).append(item)
                self._changed.notify()
                return
        delivery.requeue()

    def take(self) -> Job | None:
        """Wait for work and return it; None once the backlog is closed. Call `done()` afterwards."""
        with self._changed:
            while not self._is_closed:
                job, pause = self._next()
                if job is not None:
                    return job
                self._changed.wait(pause)
        return None

    def done(self, job: Job) -> None:
        """A job ended, however it ended."""
        with self._changed:
            self._running -= 1
            self._atomic_running -= job.head.is_atomic
            if job.is_alone:
                self._is_alone = False
            self._changed.notify_all()

    def put_back(self, items: Iterable[Item], after: float = 0.0) -> None:
        """Nothing was spent on these: offer them again after `after` seconds."""
        due = time.monotonic() + after
        with self._changed:
            for item in items:
                heapq.heappush(self._aside, _Aside(due, next(self._order), item))
            self._changed.notify_all()

    def hold(self) -> None:
        """Let nothing start until `resume()`."""
        with self._changed:
            self._is_held = True

    def resume(self) -> None:
        """Let work start again."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing start any more; what arrives from now on goes straight back."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def give_back(self, chosen: Callable[[Delivery], bool]) -> int:
        """Return the unstarted deliveries that `chosen` picks to the broker. Returns how many."""
        given = self._remove(lambda item: not item.is_acked and chosen(item.delivery))
        for item in given:
            item.delivery.requeue()
        return len(given)

    def drop_stale(self) -> int:
        """Forget the unstarted deliveries that the broker has taken back. Returns how many."""
        return len(self._remove(lambda item: item.is_stale))

    @property
    def running(self) -> int:
        """How many jobs run."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many deliveries have not started."""
        with self._changed:
            return sum(map(len, self._waiting.values())) + len(self._aside)

    def _find_handler(self, delivery: Delivery) -> Handler | None:
        try:
            return self._route(delivery)
        except Exception:
            logger.exception("No handler could be looked up for a delivery of the queue %s.", delivery.queue)
            return None

    def _remove(self, chosen: Callable[[Item], bool]) -> list[Item]:
        removed: list[Item] = []

        def keep(item: Item) -> bool:
            if chosen(item):
                removed.append(item)
                return False
            return True

        with self._changed:
            for queue, items in self._waiting.items():
                self._waiting[queue] = deque(item for item in items if keep(item))
            for item in removed:  # these have not started; what was set aside below may have
                if not item.is_suspect and len(self._unstarted) < REMEMBERED:
                    self._unstarted.add(item.identity)
            self._aside = [aside for aside in self._aside if keep(aside.item)]
            heapq.heapify(self._aside)
            if removed:
                self._changed.notify_all()
        return removed

    def _next(self) -> tuple[Job | None, float | None]:
        """The next job, or how long to wait at most before looking again (None: until something changes)."""
        if self._is_held:
            return None, None
        now = time.monotonic()
        self._recall(now)
        pauses = [self._aside[0].due - now] if self._aside else []
        heads = [(queue, items) for queue, items in self._waiting.items() if items]
        if not any(items[0].is_suspect for _, items in heads):
            self._suspect_since = None
        for queue, items in heads:
            pause = self._obstacle(items, now)
            if pause == 0:
                return self._start(queue, items), None
            if pause is not None:
                pauses.append(pause)
        return None, min(pauses, default=None)

    def _recall(self, now: float) -> None:
        while self._aside and self._aside[0].due <= now:
            item = heapq.heappop(self._aside).item
            self._waiting.setdefault(item.delivery.queue, deque()).appendleft(item)

    def _obstacle(self, items: deque[Item], now: float) -> float | None:
        """Seconds until the first of these may start: 0 for now, None for when another one ends."""
        head = items[0]
        if head.is_atomic and self._is_alone:
            return None
        if head.is_suspect and self._atomic_running:
            self._suspect_since = self._suspect_since or now
            return max(0.0, self._suspect_since + PATIENCE - now)
        if head.is_atomic and not head.is_suspect and self._suspect_since is not None:
            return None
        if head.batch is not None and 1 + len(_mates(items)) < head.batch:
            return max(0.0, head.delivery.received_at + GATHERING - now)
        return 0.0

    def _start(self, queue: str, items: deque[Item]) -> Job:
        head = items[0]
        mates = _mates(items)[: head.batch - 1] if head.batch is not None else []
        job = Job([head, *mates], is_alone=head.is_suspect)
        del self._waiting[queue]
        items.popleft()
        chosen = set(mates)
        self._waiting[queue] = deque(item for item in items if item not in chosen) if mates else items  # its next turn
        self._running += 1
        self._atomic_running += head.is_atomic
        if job.is_alone:
            self._is_alone, self._suspect_since = True, None
        return job


def _mates(items: deque[Item]) -> list[Item]:
    """Those that may run in one batch with the first."""
    head = items[0]
    return [item for item in islice(items, 1, None) if item.batch is not None and item.handler is head.handler]
