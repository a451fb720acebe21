"""A worker thread: takes a job, has it processed, settles its deliveries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from django.db import connections, reset_queries

from messaging.backlog import Backlog
from messaging.database import close_old, is_lost, reconnect
from messaging.exceptions import DatabaseUnavailable
from messaging.items import Item, Job
from messaging.killpoints import kill_point
from messaging.ledger import Entry, Slot, end_without_memory
from messaging.processor import Processor, Settlement

logger = logging.getLogger("messaging.consumer")

AFTER_ERROR = 5.0  # seconds until a delivery is tried again on which the consumer itself failed

_current = threading.local()


def running(entry: Entry) -> AbstractContextManager[Callable[[], None]]:
    """Enter an attempt into the ledger slot of this worker thread; for `Processor`."""
    slot: Slot | None = getattr(_current, "slot", None)
    return slot.running(entry) if slot is not None else nullcontext(lambda: None)


class Worker(threading.Thread):
    """Processes jobs until the backlog is closed. Whatever a handler does, the thread survives.

    Args:
        index: its number within the process.
        on_outage: called when a database cannot be used, before what was under way is put back.
        slot: its place in the process's ledger.
    """

    def __init__(
        self,
        index: int,
        backlog: Backlog,
        processor: Processor,
        on_outage: Callable[[DatabaseUnavailable], None],
        slot: Slot | None = None,
    ) -> None:
        super().__init__(name=f"messaging-worker-{index}", daemon=True)
        self._backlog = backlog
        self._processor = processor
        self._on_outage = on_outage
        self._slot = slot

    def run(self) -> None:
        """Take, process, settle."""
        _current.slot = self._slot
        while (job := self._backlog.take()) is not None:
            try:
                self._work(job)
            except MemoryError:
                end_without_memory()
            except BaseException:
                logger.exception("The consumer failed on a message; it is tried again in %g s.", AFTER_ERROR)
                self._backlog.put_back(job.items, AFTER_ERROR)
            finally:
                self._backlog.done(job)
        connections.close_all()

    def _work(self, job: Job) -> None:
        kill_point("consumer.received")
        close_old()
        reset_queries()
        try:
            settlements = self._process(job)
        except DatabaseUnavailable as trouble:
            self._on_outage(trouble)
            self._backlog.put_back(job.items)
            return
        for item, settlement in zip(job.items, settlements, strict=True):
            self._settle(item, settlement)

    def _process(self, job: Job) -> list[Settlement]:
        """Once more where only the connection in use was lost: what was not recorded has not happened."""
        try:
            return self._process_once(job)
        except Exception as error:
            database = job.head.handler.database if job.head.handler else self._processor.settings.databases[0]
            if not is_lost(error, database):
                raise
            reconnect(database)
            return self._process_once(job)

    def _process_once(self, job: Job) -> list[Settlement]:
        head = job.head
        if head.is_dead:
            return [self._processor.record_dead(head.delivery)]
        if head.batch is not None and head.handler is not None:
            return self._processor.process_batch(head.handler, [item.delivery for item in job.items])
        return [self._processor.process(head.delivery, head.ack)]

    def _settle(self, item: Item, settlement: Settlement) -> None:
        if settlement.action == "ack":
            item.ack()
        elif settlement.action == "set_aside":
            self._backlog.put_back([item], settlement.after, held=settlement.held)
