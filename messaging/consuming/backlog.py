"""What was delivered to this process and has not started: whose turn it is, and who must run alone."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery
from messaging.handlers import Handler
from messaging.killpoints import kill_point
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.consumer")

GATHERING = 0.05  # seconds that an incomplete batch waits for more
REMEMBERED = 10_000  # deliveries that went back unstarted and need not run alone when they come again
PATIENCE = 10.0  # seconds that a suspect waits for what runs to end


@dataclass(eq=False, slots=True)
class Item:
    """A delivery on its way through this process.

    Attributes:
        handler: the handler that would take it; None when nobody would.
        is_dead: whether it comes from a dead-letter queue, so that it is recorded, not run.
        is_innocent: whether it was redelivered because this process gave it back unstarted.
        is_urgent: whether the broker may soon give it up: its turn comes first, and it is sent round then, not run.
        is_acked: whether the broker was told that it is done.
        is_atomic: whether a handler runs it now and blocks nobody for hours: such messages make room for a suspect.
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
    is_urgent: bool = False
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
        self.is_atomic = handler is not None and handler.atomic and not (self.is_dead or self.is_urgent)
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
    """The items of one queue that wait for their turn, in order, the urgent first. Not safe to share without a lock."""

    def __init__(self) -> None:
        self._urgent: deque[Item] = deque()  # until each was tried once: it may have to wait for somebody
        self._items: deque[Item] = deque()
        self._together: Counter[int] = Counter()  # those that may run in a batch, by handler

    def __len__(self) -> int:
        return len(self._items) + len(self._urgent)

    @property
    def held(self) -> int:
        """How many last found their record in an open transaction of someone else's."""
        return sum(item.is_held for item in (*self._urgent, *self._items))

    @property
    def is_urgent(self) -> bool:
        """Whether the next goes before what other queues have."""
        return bool(self._urgent)

    @property
    def head(self) -> Item:
        """The next; there must be one."""
        return (self._urgent or self._items)[0]

    @property
    def is_full(self) -> bool:
        """Whether the next has as many mates as may run with it."""
        head = self.head
        return head.batch is None or self._together[id(head.handler)] >= head.batch

    def append(self, item: Item) -> bool:
        """Take in an item; returns whether that may let something start, or begins the waiting for its mates."""
        if item.is_urgent:
            self._urgent.append(item)
            return True
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
        if self._urgent:
            return [self._urgent.popleft()]
        head = self.head
        taken, others = list[Item](), list[Item]()
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
        removed = [item for item in (*self._urgent, *self._items) if chosen(item)]
        if removed:
            gone = set(removed)
            self._urgent = deque(item for item in self._urgent if item not in gone)
            self._items = deque(item for item in self._items if item not in gone)
            self._together = Counter(id(item.handler) for item in self._items if item.batch is not None)
        return removed


@dataclass(order=True, slots=True)
class _Aside:
    due: float
    order: int
    item: Item = field(compare=False)


class Backlog:
    """Deliveries by queue, taken in turn, but for the urgent ones. Safe to call from any thread.

    A message that was redelivered, or whose row says so, may be why a process died. While it runs, no other atomic
    message runs here, so that only it can be blamed.

    Args:
        route: finds the handler of a delivery; cheap.
        dead_queues: queues whose deliveries are recorded, not run.
        on_idle: called, at once and under a lock, when someone finds nothing to take.
        allowance: is told of what comes in and what is done with.
        is_near_limit: tells of what came again whether the broker may soon give it up; cheap.
    """

    def __init__(
        self,
        route: Callable[[Delivery], Handler | None],
        dead_queues: Iterable[str] = (),
        on_idle: Callable[[], None] = lambda: None,
        allowance: Allowance | None = None,
        is_near_limit: Callable[[Delivery], bool] = lambda _: False,
    ) -> None:
        self._route = route
        self._is_near_limit = is_near_limit
        self._on_idle = on_idle
        self._allowance = allowance or Allowance()
        self._dead_queues = frozenset(dead_queues)
        self._changed = threading.Condition()
        self._waiting: defaultdict[str, Line] = defaultdict(Line)  # in the order of their turns
        self._aside: list[_Aside] = []
        self._order = itertools.count()
        self.running = self._atomic_running = self._held_running = 0  # jobs, the atomic ones, and those that were held
        self.finished = 0  # items of jobs that have ended
        self._is_alone = self._is_held = self._is_closed = False
        self._suspect_since: float | None = None
        self._unstarted: set[tuple[str, str, str | None, int]] = set()  # their identities
        self._fresh: frozenset[str] = frozenset()
        self._has_urgent = False  # if not, no line has

    def put(self, delivery: Delivery) -> None:
        """Take in a delivery; called from the backend's thread."""
        is_dead = delivery.queue in self._dead_queues
        handler = None if is_dead or delivery.spool is not None else self._find_handler(delivery)
        is_urgent = delivery.redelivered and handler is not None and self._is_near_limit(delivery)
        with self._changed:
            if is_urgent == (delivery.queue in self._fresh):
                self._fresh ^= {delivery.queue}
            self._has_urgent |= is_urgent
            item = Item(delivery, handler, is_dead, delivery.redelivered and self._gave_back(delivery), is_urgent)
            if not self._is_closed:
                self._allowance.held += item.size
                if self._waiting[delivery.queue].append(item):
                    self._changed.notify()
                return
        delivery.requeue()

    def take(self) -> Job | None:
        """Wait for work and return it; None once the backlog is closed. Call `done()` afterwards."""
        with self._changed:
            while not self._is_closed:
                job, pause = self._next()
                if job is not None:
                    if any(self._waiting.values()):
                        self._changed.notify()  # whoever waits for nothing in particular
                    return job
                self._on_idle()
                self._changed.wait(pause)
        return None

    def done(self, job: Job) -> None:
        """A job ended, however it ended."""
        with self._changed:
            self.running -= 1
            self.finished += len(job.items)
            self._atomic_running -= job.head.is_atomic
            self._held_running -= job.held
            self._allowance.let_go(job.size)
            if job.is_alone:
                self._is_alone = False
            if job.is_alone or self._suspect_since is not None:  # nothing else waits for the end of what runs
                self._changed.notify_all()

    def put_back(self, items: Iterable[Item], after: float = 0.0, *, held: bool = False, alone: bool = False) -> None:
        """Nothing was spent on these: offer them again after `after` seconds.

        `held` where a transaction has them, `alone` where nothing innocent is to run beside them.
        """
        due = time.monotonic() + after
        with self._changed:
            for item in items:
                item.is_held = held
                if alone:
                    item.isolate()
                self._allowance.held += item.size  # until the job that it was in is done, it counts twice
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

    def heads(self) -> list[Delivery]:
        """The next delivery of each queue that has any."""
        with self._changed:
            return [line.head.delivery for line in self._waiting.values() if line]

    @property
    def fresh(self) -> frozenset[str]:
        """The queues whose last delivery the broker will not soon give up, nor therefore what is behind it."""
        return self._fresh

    @property
    def waiting(self) -> int:
        """How many deliveries have not started."""
        with self._changed:
            return sum(map(len, self._waiting.values())) + len(self._aside)

    @property
    def held(self) -> int:
        """How many deliveries wait for another process's transaction, being tried again now and then."""
        with self._changed:
            aside = sum(one.item.is_held for one in self._aside)
            return aside + sum(line.held for line in self._waiting.values()) + self._held_running

    def _find_handler(self, delivery: Delivery) -> Handler | None:
        try:
            return self._route(delivery)
        except Exception:
            logger.exception('No handler could be looked up for "%s".', delivery.queue, extra=about(delivery))
            return None

    def _gave_back(self, delivery: Delivery) -> bool:
        """Whether this process gave it back unstarted, and has not seen it since."""
        before = len(self._unstarted)
        if before:
            self._unstarted.discard(identity(delivery))
        return len(self._unstarted) < before

    def _remove(self, chosen: Callable[[Item], bool]) -> list[Item]:
        with self._changed:
            removed = [item for line in self._waiting.values() for item in line.remove(chosen)]
            for item in removed:  # these have not started; what was set aside below may have
                if not item.is_suspect and len(self._unstarted) < REMEMBERED:
                    self._unstarted.add(identity(item.delivery))
            aside = [one.item for one in self._aside if chosen(one.item)]
            if aside:
                gone = set(aside)
                self._aside = [one for one in self._aside if one.item not in gone]
                heapq.heapify(self._aside)
            if removed or aside:
                self._allowance.let_go(sum(item.size for item in removed + aside))
                self._changed.notify_all()
        return removed + aside

    def _next(self) -> tuple[Job | None, float | None]:
        """The next job, or how long to wait at most before looking again (None: until something changes)."""
        if self._is_held:
            return None, None
        now = time.monotonic()
        self._recall(now)
        pauses = [self._aside[0].due - now] if self._aside else []
        lines = [(queue, line) for queue, line in self._waiting.items() if line]
        if self._has_urgent:
            lines.sort(key=lambda waiting: not waiting[1].is_urgent)
            self._has_urgent = bool(lines) and lines[0][1].is_urgent
        if not any(line.head.is_suspect for _, line in lines):
            self._suspect_since = None
        for queue, line in lines:
            pause = self._obstacle(line, now)
            if pause == 0:
                return self._start(queue, line), None
            if pause is not None:
                pauses.append(pause)
        return None, min(pauses, default=None)

    def _recall(self, now: float) -> None:
        while self._aside and self._aside[0].due <= now:
            item = heapq.heappop(self._aside).item
            self._waiting[item.delivery.queue].append_left(item)

    def _obstacle(self, line: Line, now: float) -> float | None:
        """Seconds until the first of these may start: 0 for now, None for when another one ends."""
        head = line.head
        if head.is_atomic and self._is_alone:
            return None
        if head.is_suspect and self._atomic_running:
            self._suspect_since = self._suspect_since or now
            return max(0.0, self._suspect_since + PATIENCE - now)
        if head.is_atomic and not head.is_suspect and self._suspect_since is not None:
            return None
        if not line.is_full:
            return max(0.0, head.delivery.received_at + GATHERING - now)
        return 0.0

    def _start(self, queue: str, line: Line) -> Job:
        items = line.take()
        job = Job(items, items[0].is_suspect, sum(item.is_held for item in items))
        self._held_running += job.held
        self._waiting[queue] = self._waiting.pop(queue)  # its next turn comes after the others'
        self.running += 1
        self._atomic_running += job.head.is_atomic
        if job.is_alone:
            self._is_alone, self._suspect_since = True, None
        return job
