"""What was delivered to this process and has not started: whose turn it is, and who must run alone."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery
from messaging.consuming.items import Item, Job, Line, identity
from messaging.handlers import Handler

logger = logging.getLogger("messaging.consumer")

GATHERING = 0.05  # seconds that an incomplete batch waits for more
REMEMBERED = 10_000  # deliveries that went back unstarted and need not run alone when they come again
PATIENCE = 10.0  # seconds that a suspect waits for what runs to end


@dataclass(order=True, slots=True)
class _Aside:
    due: float
    order: int
    item: Item = field(compare=False)


class Backlog:
    """Deliveries by queue, taken in turn. Safe to call from any thread.

    A message that was redelivered, or whose row says so, may be why a process died. While it runs, no other atomic
    message runs here, so that only it can be blamed.

    Args:
        route: finds the handler of a delivery; cheap.
        dead_queues: queues whose deliveries are recorded, not run.
        on_idle: called, at once and under a lock, when someone finds nothing to take.
        allowance: is told of what comes in and what is done with.
    """

    def __init__(
        self,
        route: Callable[[Delivery], Handler | None],
        dead_queues: Iterable[str] = (),
        on_idle: Callable[[], None] = lambda: None,
        allowance: Allowance | None = None,
    ) -> None:
        self._route = route
        self._on_idle = on_idle
        self._allowance = allowance or Allowance()
        self._dead_queues = frozenset(dead_queues)
        self._changed = threading.Condition()
        self._waiting: dict[str, Line] = {}  # in the order of their turns
        self._aside: list[_Aside] = []
        self._order = itertools.count()
        self._running = self._atomic_running = self._held_running = 0
        self._is_alone = self._is_held = self._is_closed = False
        self._suspect_since: float | None = None
        self._unstarted: set[tuple[str, str, str | None, int]] = set()  # their identities

    def put(self, delivery: Delivery) -> None:
        """Take in a delivery; called from the backend's thread."""
        is_dead = delivery.queue in self._dead_queues
        handler = None if is_dead or delivery.spool is not None else self._find_handler(delivery)
        with self._changed:
            item = Item(delivery, handler, is_dead, is_innocent=delivery.redelivered and self._gave_back(delivery))
            if not self._is_closed:
                self._allowance.held += item.size
                if self._line(delivery.queue).append(item):
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
            self._running -= 1
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

    @property
    def running(self) -> int:
        """How many jobs run."""
        return self._running

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
            logger.exception("No handler could be looked up for a delivery of the queue %s.", delivery.queue)
            return None

    def _gave_back(self, delivery: Delivery) -> bool:
        """Whether this process gave it back unstarted, and has not seen it since."""
        if not self._unstarted:
            return False
        known = identity(delivery)
        is_known = known in self._unstarted
        self._unstarted.discard(known)
        return is_known

    def _line(self, queue: str) -> Line:
        line = self._waiting.get(queue)
        if line is None:
            line = self._waiting[queue] = Line()
        return line

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
            self._line(item.delivery.queue).append_left(item)

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
        self._running += 1
        self._atomic_running += job.head.is_atomic
        if job.is_alone:
            self._is_alone, self._suspect_since = True, None
        return job
