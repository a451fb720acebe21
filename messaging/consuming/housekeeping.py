"""What a consumer does beside consuming: shows that it lives, renews claims, reads pause flags, waits for databases.

The chores of each database have a thread of their own, so that none waits for another database.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.consuming.resending import resend
from messaging.consuming.running import Running
from messaging.db.clock import Now
from messaging.db.connections import close_old, is_lost, is_up, reconnect
from messaging.db.patience import bound_here, note_line, sever
from messaging.exceptions import DatabaseUnavailable
from messaging.models import QueueControl
from messaging.models import Worker as WorkerRow
from messaging.monitoring import counters, failure_groups
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Ledger
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")

SHORTEST_PATIENCE, LONGEST_PATIENCE = 3.0, 10.0  # seconds for a database that gives no sign; a lock takes two

Chores = Mapping[str, tuple[float, Callable[[], object]]]  # what each is about: seconds between two, and how
POLL = 2.0  # seconds between two looks at the pause flags
HEARTBEAT = 5.0  # seconds between two signs of life
FAILURES = "the failure groups"
ADOPTION = 60.0  # seconds between two looks for groups that nobody has written
HEARD = 0.5  # seconds after which a consumer that heard of a pause has stopped taking, and says so
FORGOTTEN = timedelta(days=1)
PROBE = 1.0  # seconds between two questions to a database that is away
RESEND_INTERVAL = 20.0  # seconds between two looks for rounds that did not come back
TRIAL = 2.0  # seconds that it has to be well to count as back
LONGEST_PROBE = 30.0  # seconds, when it seems to be back again and again


def claims_chores(processor: Processor, database: str) -> Chores:
    """What keeps the claims in one database in order, and the groups of what failed there."""
    third = processor.settings.lease / 3
    return {
        "the leases of running messages": (third, partial(processor.renew_claims, database)),
        "the claims of dead workers": (third, partial(processor.sweep, database)),
        FAILURES: (HEARTBEAT, partial(failure_groups.write, database)),
        "failures in no group": (ADOPTION, failure_groups.Adoption(database).go_on),
    }


class Keeper(threading.Thread):
    """Does the chores of one database, so that none that hangs keeps another database's from being done.

    Args:
        database: which one; the chores use no other.
        processor: whose claims and outages these are.
        chores: what to do.
        on_outage: called when the database cannot be used.
    """

    def __init__(
        self, database: str, processor: Processor, chores: Chores, on_outage: Callable[[DatabaseUnavailable], None]
    ) -> None:
        super().__init__(name=f"messaging-keeper-{database}", daemon=True)
        self._database = database
        self._processor = processor
        self._chores = chores
        self._on_outage = on_outage
        self._over = threading.Event()
        self._failing: set[str] = set()
        self._due = dict.fromkeys(chores, 0.0)
        self._patience = min(LONGEST_PATIENCE, max(SHORTEST_PATIENCE, processor.settings.lease / 3))
        self._busy_since: float | None = None
        self._connection: BaseDatabaseWrapper | None = None  # of this thread

    def run(self) -> None:
        """Do each chore when it is due, until `stop()`."""
        bound_here(self._database, self._patience)
        while not self._over.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            now = time.monotonic()
            for chore, (interval, act) in self._chores.items():
                if self._due[chore] <= now:
                    self._try(chore, act)
                    self._due[chore] = time.monotonic() + interval
            self._after_round()
        self._before_end()
        connections.close_all()

    def stop(self, timeout: float = 5.0) -> None:
        """End; waits up to `timeout` seconds."""
        self._over.set()
        self.join(timeout)

    def hurry(self) -> None:
        """Cut the connection if a chore has hung on it for too long: a new one may do. For other threads."""
        since, connection = self._busy_since, self._connection
        if since is not None and connection is not None and time.monotonic() - since > self._patience:
            self._busy_since = None  # once
            sever(connection)

    def _after_round(self) -> None:
        """For subclasses: all that was due is done."""

    def _before_end(self) -> None:
        """This thread ends."""
        if FAILURES in self._chores:
            self._try(FAILURES, partial(failure_groups.write, self._database))

    def _try(self, chore: str, act: Callable[[], object]) -> None:
        close_old()
        self._connection = connections[self._database]
        note_line(self._connection)
        self._busy_since = time.monotonic()
        try:
            self._act(act)
        except DatabaseUnavailable as trouble:
            self._on_outage(trouble)
        except Exception as error:  # noqa: BLE001 (no chore may end the others)
            if chore not in self._failing:
                self._failing.add(chore)
                logger.warning("Cannot see to %s; trying again until it works: %s", chore, one_line(error))
        else:
            if chore in self._failing:
                self._failing.discard(chore)
                logger.warning("Could see to %s again.", chore)
        finally:
            self._busy_since = None

    def _act(self, act: Callable[[], object]) -> None:
        """Once more where only the connection in use was lost."""
        with self._processor.outages.watch(self._database):
            try:
                act()
            except Exception as error:
                if not is_lost(error, self._database):
                    raise
                reconnect(self._database)
                self._busy_since = time.monotonic()
                act()


class OutageWatch:
    """Whether a database is away; asks it on a thread of its own until it answers.

    One with a full disk answers all the same. So work goes on on trial, and who fails then prolongs the outage.

    Args:
        on_begin, on_end: called when the first database goes away and when all are back.
    """

    def __init__(self, on_begin: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_begin = on_begin
        self._on_end = on_end
        self._lock = threading.Lock()
        self._away: set[str] = set()
        self._since: float | None = None
        self._relapsed = threading.Event()

    @property
    def lasted(self) -> float:
        """Seconds since it began; 0 while there is none."""
        since = self._since
        return time.monotonic() - since if since is not None else 0.0

    def begin(self, trouble: DatabaseUnavailable) -> None:
        """A database cannot be used."""
        with self._lock:
            self._away.add(trouble.database)
            self._relapsed.set()
            self._on_begin()
            if self._since is not None:
                return
            self._since = time.monotonic()
        logger.warning("%s: consumption pauses until it can be used, what was delivered is kept.", trouble)
        threading.Thread(target=self._wait, name="messaging-outage", daemon=True).start()

    def _wait(self) -> None:
        pause = PROBE
        while True:
            time.sleep(pause)
            if not self._goes_on_trial():
                continue
            if self._relapsed.wait(TRIAL):
                pause = min(LONGEST_PROBE, 2 * pause)
                continue
            with self._lock:
                if self._relapsed.is_set():
                    continue
                lasted, self._since = self.lasted, None
            logger.warning("The database can be used again after %.0f s: consumption goes on.", lasted)
            return

    def _goes_on_trial(self) -> bool:
        with self._lock:
            away = set(self._away)
        back = {database for database in away if is_up(database)}
        with self._lock:
            self._away -= back
            if self._away:
                return False
            self._relapsed.clear()
            self._on_end()
            return True


class Housekeeper(Keeper):
    """The chores of one process where its `Worker` row is, and the claims there if it may have any.

    Args:
        name: of this worker process, unique.
        queues: what it consumes.
        status: says in a few words what it does now.
        is_stopping: whether it was asked to stop.
        on_pause: called when the paused queues changed.
        on_outage: called when a database cannot be used.
        ledger: what this process runs; None without a supervisor.
        oldest: how old, in seconds, the next message of each queue is that this process holds.
    """

    def __init__(
        self,
        name: str,
        queues: tuple[str, ...],
        processor: Processor,
        status: Callable[[], str],
        is_stopping: Callable[[], bool],
        on_pause: Callable[[], None],
        on_outage: Callable[[DatabaseUnavailable], None],
        ledger: Ledger | None = None,
        oldest: Callable[[], dict[str, float]] = dict,
    ) -> None:
        database = router.db_for_write(WorkerRow)
        chores = {
            "the pause flags": (min(POLL, processor.settings.lease / 3), self._read_flags),
            "this worker's row": (HEARTBEAT, self._show_life),
            "the counters": (HEARTBEAT, lambda: counters.write_when_due(database)),
            "the counters of the last minutes": (HEARTBEAT, lambda: counters.join_when_due(database)),
            **(claims_chores(processor, database) if database in processor.databases else {}),
        }
        super().__init__(database, processor, chores, on_outage)
        self.name = "messaging-housekeeper"
        self.paused: frozenset[str] = frozenset()
        self.has_looked = threading.Event()
        self._worker = name
        self._queues = queues
        self._status = status
        self._is_stopping = is_stopping
        self._on_pause = on_pause
        self._running = Running(ledger, database)
        self._oldest = oldest

    def keepers(self) -> list[Keeper]:
        """Itself, and one for each further database that may hold claims."""
        processor = self._processor
        further = [database for database in processor.databases if database != self._database]
        keepers = [
            Keeper(database, processor, claims_chores(processor, database), self._on_outage) for database in further
        ]
        if processor.settings.resend_after is not None:  # on threads of their own: they ask the broker
            keepers += [
                Keeper(database, processor, self._resending(database), self._on_outage)
                for database in processor.databases
            ]
        return [self, *keepers]

    def _resending(self, database: str) -> Chores:
        act = partial(resend, self._processor.alias, self._queues, database)
        return {"the rounds that did not come back": (RESEND_INTERVAL, act)}

    def _after_round(self) -> None:
        self.has_looked.set()

    def _before_end(self) -> None:
        super()._before_end()
        self._try("the counters", partial(counters.write, self._database))
        self._try("this worker's row", self._leave)

    def _read_flags(self) -> None:
        flags = QueueControl.objects.using(router.db_for_write(QueueControl))
        names = flags.filter(alias=self._processor.alias, queue__in=self._queues, paused=True)
        paused = frozenset(names.values_list("queue", flat=True))
        if paused != self.paused:
            for queue in paused ^ self.paused:
                logger.info("The queue %s is %s.", queue, "paused" if queue in paused else "no longer paused")
            self.paused = paused
            self._on_pause()
            soon = time.monotonic() + HEARD
            self._due["this worker's row"] = min(soon, self._due["this worker's row"])  # operators wait for that

    def _show_life(self) -> None:
        rows = WorkerRow.objects.using(router.db_for_write(WorkerRow))
        values = {"paused": sorted(self.paused), "status": self._status()[:255], "seen_at": Now()}
        values |= {"is_stopping": self._is_stopping() or None, "running": self._running.tell()}
        values["oldest"] = self._oldest()
        if rows.filter(name=self._worker).update(**values):
            return
        with transaction.atomic(using=rows.db):
            rows.filter(seen_at__lt=Now() - FORGOTTEN).delete()
            rows.create(
                name=self._worker,
                kind="consume",
                host=socket.gethostname()[:255],
                pid=os.getpid(),
                alias=self._processor.alias,
                queues=list(self._queues),
                **values,
            )

    def _leave(self) -> None:
        WorkerRow.objects.using(router.db_for_write(WorkerRow)).filter(name=self._worker).delete()
