"""What a consumer does beside consuming: shows that it lives, renews claims, reads pause flags, waits for databases."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from django.db import connections, router, transaction

from messaging.clock import Now
from messaging.database import close_old, is_lost, is_up, reconnect
from messaging.exceptions import DatabaseUnavailable
from messaging.logs import one_line
from messaging.models import QueueControl
from messaging.models import Worker as WorkerRow
from messaging.processor import Processor

logger = logging.getLogger("messaging.consumer")

POLL = 2.0  # seconds between two looks at the pause flags
HEARTBEAT = 5.0  # seconds between two signs of life
FORGOTTEN = timedelta(days=1)
PROBE = 1.0  # seconds between two questions to a database that is away
TRIAL = 2.0  # seconds that it has to be well to count as back
LONGEST_PROBE = 30.0  # seconds, when it seems to be back again and again


class Outage:
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


class Housekeeper(threading.Thread):
    """The periodic chores of one process, on one thread with its own database connections.

    Args:
        name: of this worker process, unique.
        queues: what it consumes.
        status: says in a few words what it does now.
        on_pause: called when the paused queues changed.
        on_outage: called when a database cannot be used.
    """

    def __init__(
        self,
        name: str,
        queues: tuple[str, ...],
        processor: Processor,
        status: Callable[[], str],
        on_pause: Callable[[], None],
        on_outage: Callable[[DatabaseUnavailable], None],
    ) -> None:
        super().__init__(name="messaging-housekeeper", daemon=True)
        self.paused: frozenset[str] = frozenset()
        self.has_looked = threading.Event()
        self._worker = name
        self._queues = queues
        self._processor = processor
        self._status = status
        self._on_pause = on_pause
        self._on_outage = on_outage
        self._over = threading.Event()
        self._failing: set[str] = set()
        third = processor.settings.lease / 3
        self._chores: dict[str, tuple[float, Callable[[], None]]] = {
            "the pause flags": (min(POLL, third), self._read_flags),
            "this worker's row": (HEARTBEAT, self._show_life),
            "the leases of running messages": (third, processor.renew_claims),
            "the claims of dead workers": (third, partial(_call, processor.sweep)),
        }
        self._due = dict.fromkeys(self._chores, 0.0)

    def run(self) -> None:
        """Do each chore when it is due, until `stop()`."""
        while not self._over.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            now = time.monotonic()
            for chore, (interval, act) in self._chores.items():
                if self._due[chore] <= now:
                    self._try(chore, act)
                    self._due[chore] = time.monotonic() + interval
            self.has_looked.set()
        self._try("this worker's row", self._leave)
        connections.close_all()

    def stop(self, timeout: float = 5.0) -> None:
        """Remove the sign of life and end; waits up to `timeout` seconds."""
        self._over.set()
        self.join(timeout)

    def _try(self, chore: str, act: Callable[[], None]) -> None:
        close_old()
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

    def _act(self, act: Callable[[], None]) -> None:
        """Once more where only the connection in use was lost."""
        database = router.db_for_write(WorkerRow)
        with self._processor.outages.watch(database):
            try:
                act()
            except Exception as error:
                if not is_lost(error, database):
                    raise
                reconnect(database)
                act()

    def _read_flags(self) -> None:
        flags = QueueControl.objects.using(router.db_for_write(QueueControl))
        names = flags.filter(alias=self._processor.alias, queue__in=self._queues, paused=True)
        paused = frozenset(names.values_list("queue", flat=True))
        if paused != self.paused:
            for queue in paused ^ self.paused:
                logger.info("The queue %s is %s.", queue, "paused" if queue in paused else "no longer paused")
            self.paused = paused
            self._on_pause()

    def _show_life(self) -> None:
        rows = WorkerRow.objects.using(router.db_for_write(WorkerRow))
        values = {"paused": sorted(self.paused), "status": self._status()[:255], "seen_at": Now()}
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


def _call(function: Callable[[], object]) -> None:
    function()
