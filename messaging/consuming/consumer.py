"""The consumer: from the broker's queues to the processor, and back with an acknowledgement.

The backend's own thread feeds the backlog; worker threads take from it, have each message processed and settle it; this
module's thread keeps the consumers on the queues that are wanted, and ends it all in order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Q

from messaging import conf, topology
from messaging.backends import get_backend
from messaging.backends.allowance import Allowance, default_limit
from messaging.backends.base import Delivery
from messaging.conf.rules import dead_queue
from messaging.consuming.backlog import Backlog
from messaging.consuming.housekeeping import Housekeeper, OutageWatch
from messaging.consuming.running import ages
from messaging.consuming.subscription import Subscription
from messaging.consuming.worker import WorkerThread, enter_ledger
from messaging.db.clock import Now
from messaging.db.connections import close_old
from messaging.exceptions import BrokerUnavailable
from messaging.handlers import registry
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring.conditions import WAITS_FOR_BROKER, WAITS_FOR_DATABASE
from messaging.processing.processor import Processor
from messaging.processing.without_handler import STOPPING
from messaging.supervising.ledger import Ledger
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.consumer")

TICK = 0.5  # seconds
FIRST_TICK = 0.05  # seconds
FIRST_MESSAGES, FIRST_SECONDS = 5, 1.0  # after either of which more than one message at once may come
GIVE_BACK_AFTER = 300.0  # seconds; the broker's own patience ends at 30 minutes
KEEP_CONSUMING = 10.0  # seconds of a database's absence after which the broker keeps what it has
FROZEN_SHOWN = 600.0  # seconds for which a worker's state tells that it could do nothing else
DEAD_PREFETCH = 10
CAREFUL = 60.0  # seconds for which one message at once is taken where many might be given up, or be too large together
LONGEST_STATUS = 200  # characters, for whoever asks on this host
MAX_PREFETCH = 65535  # that AMQP can ask for


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process consumes, and how.

    Attributes:
        alias: alias of `MESSAGING`.
        queues: queues to consume.
        concurrency: worker threads.
        prefetch: unacknowledged deliveries per queue at most; None for each queue's setting.
        burst: whether to stop when there is nothing left to do.
        relay: whether some process of this command sends the outbox.
        processes: how many consume, in the same memory.
    """

    alias: str
    queues: tuple[str, ...]
    concurrency: int = 4
    prefetch: int | None = None
    burst: bool = False
    relay: bool = True
    processes: int = 1

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that this process may hold."""
        return conf.get(self.alias).held_bytes or default_limit(self.processes)

    @property
    def dead_queues(self) -> frozenset[str]:
        """The dead-letter queues that are drained into the inbox, those with a handler of their own excepted."""
        settings = conf.get(self.alias)
        dead = {dead_queue(queue) for queue in self.queues if settings.queue(queue).dead_letter}
        return frozenset(dead.difference(registry.queues(self.alias)))

    @property
    def batch_queues(self) -> frozenset[str]:
        """The queues whose messages are processed together."""
        return frozenset(handler.queue for handler in registry.all(self.alias) if handler.batch is not None)

    def prefetches(self) -> dict[str, int]:
        """Unacknowledged deliveries at most, by queue: while a batch runs, the next one gathers."""
        settings = conf.get(self.alias)
        result = dict.fromkeys(self.dead_queues, DEAD_PREFETCH)
        for queue in self.queues:
            batches = [2 * (handler.batch or 1) for handler in registry.all(self.alias) if handler.queue == queue]
            wanted = self.prefetch or max([settings.queue(queue).prefetch, *batches])
            result[queue] = min(wanted, MAX_PREFETCH)
        return result


class Consumer:
    """Consumes in this process until stopped.

    Args:
        plan: what and how.
        name: of this process, under which claims are recorded and operators see it.
        ledger: where the supervisor reads what runs; None without a supervisor.
        is_careful: whether the process before died and nobody knows of what: it may have held too much.
    """

    def __init__(self, plan: Plan, name: str, ledger: Ledger | None = None, *, is_careful: bool = False) -> None:
        self._plan = plan
        self.processor = Processor(plan.alias, name, running=enter_ledger)
        allowance = Allowance(plan.held_bytes)
        self._backlog = Backlog(
            self.processor.route, plan.dead_queues, self._hurry, allowance, self.processor.is_near_limit
        )
        self._outage = OutageWatch(self._backlog.hold, self._on_database_back)
        self._workers = [
            WorkerThread(
                index, self._backlog, self.processor, self._outage.begin, ledger.slot(index) if ledger else None
            )
            for index in range(plan.concurrency)
        ]
        self._stopping = threading.Event()
        self._housekeeper = Housekeeper(
            name,
            plan.queues,
            self.processor,
            self._status,
            self._stopping.is_set,
            self._wake_up,
            self._outage.begin,
            ledger,
            lambda: ages(self._backlog.heads()),
        )
        self._keepers = self._housekeeper.keepers()
        self._late: set[str] = set()  # databases in which claims are about to lapse
        self._backend = get_backend(plan.alias)
        self._subscription = Subscription(
            self._backend,
            topology.only(topology.build(plan.alias), list(plan.queues)),
            plan.prefetches(),
            plan.dead_queues,
            self._backlog.put,
            self._wake_up,
            allowance,
        )
        self._is_careful = is_careful
        self._well_since: float | None = None  # when the broker was there first
        self._wake = threading.Event()
        self._idle_since: float | None = None
        self._froze = 0.0, -FROZEN_SHOWN  # for how long, and when that ended
        self._stepped_at: float | None = None  # when its loop last went round

    def run(self) -> None:
        """Consume until `stop()`, or with `burst` until there is nothing left.

        Raises TopologyError when the broker holds something unusable at the start.
        """
        for thread in (*self._keepers, *self._workers):
            thread.start()
        self._housekeeper.has_looked.wait(KEEP_CONSUMING)  # a paused queue is not to be touched at the start either
        try:
            while not self._stopping.is_set():
                self._step()
                self._wake.wait(self._tick())
                self._wake.clear()
        finally:
            self._leave()

    def stop(self) -> None:
        """Finish what runs, hand back the rest; `run()` returns then. Called from any thread."""
        self._stopping.set()
        self._wake.set()

    def note_freeze(self, seconds: float) -> None:
        """A handler kept everything else in this process from running for so long: operators are to read it."""
        self._froze = seconds, time.monotonic()

    def state(self) -> dict[str, Any]:
        """How it does, for whoever asks on this host: its status, and when its loop last went round."""
        return {"status": self._status()[:LONGEST_STATUS], "stepped": self._stepped_at}

    def _step(self) -> None:
        self._stepped_at = time.monotonic()
        self._look_after_claims()
        self._backlog.drop_stale()
        self._subscription.follow(self._wanted(), self._wide())
        self._backlog.give_back(self._is_to_go_back)
        if self._plan.burst and self._has_been_idle():
            logger.info("Nothing is left to do.")
            self.stop()

    def _leave(self) -> None:
        self._backlog.close()
        self._subscription.cancel_all()
        self._backlog.give_back(lambda _: True)
        for worker in self._workers:
            while worker.is_alive():
                self._look_after_claims()
                worker.join(TICK)
        self._backlog.give_back(lambda _: True)  # what was set aside meanwhile
        self._subscription.close()
        self.processor.leave()
        for keeper in reversed(self._keepers):
            keeper.stop()

    def _look_after_claims(self) -> None:
        """Say once when claims cannot be renewed, before they lapse: their messages may run elsewhere then."""
        for keeper in self._keepers:
            keeper.hurry()
        late = self.processor.late_claims()
        for database in {claim.database for claim in late} - self._late:
            claims = [claim for claim in late if claim.database == database]
            which = " and ".join([claims[0].name, *([f"{len(claims) - 1} more"] if len(claims) > 1 else [])])
            logger.warning(
                '%s: the claim in the database "%s" cannot be renewed, and is about to lapse; it may be run elsewhere '
                "as well.",
                which,
                database,
                extra=claims[0].about if len(claims) == 1 else about(alias=self._plan.alias),
            )
        for database in self._late - {claim.database for claim in late}:
            logger.warning('No claim in the database "%s" is about to lapse any more.', database)
        self._late = {claim.database for claim in late}

    def _wanted(self) -> frozenset[str]:
        if self._outage.lasted > KEEP_CONSUMING:
            return frozenset()
        return self._plan.dead_queues | (frozenset(self._plan.queues) - self._housekeeper.paused)

    def _wide(self) -> frozenset[str]:
        """The queues that may deliver more than one message at once.

        A broker counts each death against everything that the process held, and gives up in the end what it has
        delivered too often. One that dies as soon as it has begun would have it give up what never ran. So would one
        that takes longer for its first commit than it lives: of what is nearly given up it holds one, which goes first.
        A queue of batches is left alone: a batch dies together anyway.
        """
        if self._well_for() >= CAREFUL:
            return self._wanted()
        if self._is_careful:
            return frozenset()
        return self._plan.batch_queues | (self._backlog.fresh if self._has_settled_in() else frozenset())

    def _has_settled_in(self) -> bool:
        return self._backlog.finished >= FIRST_MESSAGES or self._well_for() >= FIRST_SECONDS

    def _well_for(self) -> float:
        """How many seconds ago the broker was there first."""
        now = time.monotonic()
        if self._well_since is None and self._subscription.is_well:
            self._well_since = now
        return 0.0 if self._well_since is None else now - self._well_since

    def _tick(self) -> float:
        """Seconds until the next look, unless something wakes it."""
        is_settled_in = self._has_settled_in()  # which notes since when the broker has been there
        return TICK if is_settled_in or self._is_careful or self._well_since is None else FIRST_TICK

    def _is_to_go_back(self, delivery: Delivery) -> bool:
        waited = time.monotonic() - delivery.received_at
        return waited > GIVE_BACK_AFTER or delivery.queue in self._housekeeper.paused

    def _hurry(self) -> None:
        self._subscription.hurry()

    def _wake_up(self) -> None:
        self._wake.set()

    def _on_database_back(self) -> None:
        self._backlog.resume()
        self._wake.set()

    def _status(self) -> str:
        if self._stopping.is_set():
            return STOPPING
        if self._late:
            return f"cannot renew its claims in {', '.join(sorted(self._late))}"
        if self._outage.lasted:
            return WAITS_FOR_DATABASE
        if not self._subscription.is_well:
            return WAITS_FOR_BROKER
        status = f"running {self._backlog.running}, waiting {self._backlog.waiting}"
        if away := self._subscription.away:
            status += f"; cannot use for now: {', '.join(sorted(away))}"
        seconds, ended = self._froze
        if time.monotonic() - ended < FROZEN_SHOWN:
            status += f"; a handler kept all else from running for {seconds:.0f} s"
        held = self._backlog.held
        if not held:
            return status
        return f"{status}; waits for another process's transaction: {held} message{'' if held == 1 else 's'}"

    # Burst

    def _has_been_idle(self) -> bool:
        """Whether nothing was left at two looks: a message may be on its way between two places at one of them."""
        if not self._is_idle():
            self._idle_since = None
            return False
        self._idle_since = self._idle_since or time.monotonic()
        return time.monotonic() - self._idle_since >= TICK

    def _is_idle(self) -> bool:
        if not self._subscription.is_well or self._subscription.away or self._outage.lasted:
            return False
        if self._backlog.running or self._backlog.waiting:
            return False
        if self._has_work(self._is_abandoned) or (self._plan.relay and self._has_work(self._is_due)):
            return False
        queues = (self._plan.dead_queues | frozenset(self._plan.queues)) - self._housekeeper.paused
        try:
            depths = self._backend.depths(sorted(queues))
        except BrokerUnavailable:
            return False
        consuming = self._subscription.consuming
        # RabbitMQ says 0 of both for a quorum queue whose leader does not answer within 250 ms.
        return not any(depth.ready or (depth.consumers == 0 and depth.queue in consuming) for depth in depths)

    def _has_work(self, found: Callable[[str], bool]) -> bool:
        """Whether a database holds work; one that does not answer cannot be said to hold none."""
        close_old()
        try:
            return any(found(database) for database in conf.get(self._plan.alias).databases)
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing is known)
            logger.debug("The database cannot be read: %s", error)
            return True

    def _is_due(self, database: str) -> bool:
        """Whether the relay has something to send now, or is sending it; what is scheduled for later does not count."""
        now = Q(due_at__lte=Now()) | Q(lease_token__isnull=False)
        return PublishedMessage.objects.using(database).scheduled(self._plan.alias).filter(now).exists()

    def _is_abandoned(self, database: str) -> bool:
        """Whether a dead worker's claim waits to be swept up."""
        return ProcessedMessage.objects.using(database).abandoned(self._plan.alias).exists()
