"""A worker thread: takes a job, has it processed, settles its deliveries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from django.db import connections, reset_queries

from messaging import signals
from messaging.consuming.backlog import Backlog, Item, Job
from messaging.db.connections import close_old, is_unfit, reconnect
from messaging.exceptions import DatabaseUnavailable
from messaging.killpoints import kill_point
from messaging.processing.processor import Processor
from messaging.processing.station import Settlement
from messaging.supervising.ledger import Entry, Slot, end_without_memory
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.consumer")

AFTER_ERROR = 5.0  # seconds until a delivery is tried again on which the consumer itself failed
TRIES = 3  # after which it is recorded as failed
LARGE = 2 * 1024 * 1024  # bytes of messages after which the worker's connections are new
LONGEST = 120.0  # seconds between two tries, where it cannot be recorded either

_current = threading.local()


def enter_ledger(entry: Entry) -> AbstractContextManager[Callable[[], None]]:
    """Enter an attempt into the ledger slot of this worker thread; for `Processor`."""
    slot: Slot | None = getattr(_current, "slot", None)
    return slot.running(entry) if slot is not None else nullcontext(lambda: None)


class WorkerThread(threading.Thread):
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
            except BaseException as error:  # noqa: BLE001  whatever it is, the thread survives
                self._after_error(job.items, error)
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
        if job.size > LARGE:
            connections.close_all()  # a driver keeps twice as much as it has ever sent at once

    def _after_error(self, items: list[Item], error: BaseException) -> None:
        """Try again, each alone: what the consumer cannot do with one of them must keep none waiting for ever."""
        for item in items:
            item.batch, item.troubles = None, item.troubles + 1
        tries = max(item.troubles for item in items)
        if len(items) == 1 and tries >= TRIES and self._record(items[0], error):
            return
        pause = min(LONGEST, AFTER_ERROR * 2.0 ** max(0, tries - TRIES))
        text, extra = "The consumer failed on a message; it is tried again in %g s.", self._about(items)
        logger.error(text, pause, exc_info=error, extra=extra)
        self._backlog.put_back(items, pause)

    def _record(self, item: Item, error: BaseException) -> bool:
        """Record as failed what cannot be processed. False where even that fails."""
        try:
            close_old()
            self._settle(item, self._processor.record_failed(item.delivery, error, is_dead=item.is_dead))
        except DatabaseUnavailable as trouble:
            self._on_outage(trouble)
            self._backlog.put_back([item])
        except Exception:
            logger.exception(
                "The message cannot be recorded as failed either: it stays at the broker.", extra=self._about([item])
            )
            return False
        else:
            text = "The consumer failed on a message %d times: it is recorded as failed."
            logger.error(text, TRIES, exc_info=error, extra=self._about([item]))
        return True

    def _about(self, items: list[Item]) -> dict[str, Any]:
        """What a log record says of a message; of a batch, what its messages have in common."""
        delivery, handler = items[0].delivery, items[0].handler
        common = {"alias": self._processor.alias, "queue": delivery.queue, "handler": handler.name if handler else None}
        if len(items) > 1:
            return about(**common)
        return about(delivery, **common)

    def _process(self, job: Job) -> list[Settlement]:
        """Once more where only the connection in use was lost or unfit: what was not recorded has not happened."""
        try:
            return self._process_once(job)
        except Exception as error:
            if not any(is_unfit(error, database) for database in self._processor.databases):
                raise
            for database in self._processor.databases:
                reconnect(database)
            return self._process_once(job)

    def _process_once(self, job: Job) -> list[Settlement]:
        head = job.head
        if head.delivery.spool is not None:
            return [self._processor.record_too_large(head.delivery, head.delivery.spool, is_dead=head.is_dead)]
        if head.is_dead:
            return [self._processor.record_dead(head.delivery)]
        if head.batch is not None and head.handler is not None:
            return self._processor.process_batch(head.handler, [item.delivery for item in job.items])
        # A handler without a transaction makes no room, and needs none.
        return [self._processor.process(head.delivery, partial(self._ack, head), alone=job.is_alone or head.is_urgent)]

    def _settle(self, item: Item, settlement: Settlement) -> None:
        if settlement.action == "ack":
            self._ack(item)
        elif settlement.action == "set_aside":
            self._backlog.put_back([item], settlement.after, held=settlement.held, alone=settlement.alone)

    def _ack(self, item: Item) -> None:
        if signals.tracing is None:
            item.ack()
        else:
            signals.tracing.settle(item, self._processor.settings)
