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

from django.db import router, transaction

from messaging.consuming.chores import Chores, Keeper, claims_chores
from messaging.consuming.resending import resend
from messaging.db.clock import Now
from messaging.db.connections import is_up
from messaging.exceptions import DatabaseUnavailable
from messaging.models import QueueControl
from messaging.models import Worker as WorkerRow
from messaging.processing.processor import Processor

logger = logging.getLogger("messaging.consumer")

POLL = 2.0  # seconds between two looks at the pause flags
HEARTBEAT = 5.0  # seconds between two signs of life
FORGOTTEN = timedelta(days=1)
PROBE = 1.0  # seconds between two questions to a database that is away
RESEND_INTERVAL = 20.0  # seconds between two looks for rounds that did not come back
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


class Housekeeper(Keeper):
    """The chores of one process where its `Worker` row is, and the claims there if it may have any.

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
        database = router.db_for_write(WorkerRow)
        chores = {
            "the pause flags": (min(POLL, processor.settings.lease / 3), self._read_flags),
            "this worker's row": (HEARTBEAT, self._show_life),
            **(claims_chores(processor, database) if database in processor.databases else {}),
        }
        super().__init__(database, processor, chores, on_outage)
        self.name = "messaging-housekeeper"
        self.paused: frozenset[str] = frozenset()
        self.has_looked = threading.Event()
        self._worker = name
        self._queues = queues
        self._status = status
        self._on_pause = on_pause

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
