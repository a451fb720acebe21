"""What this process's predecessors died of, recorded by their successor."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connections

from messaging.exceptions import DatabaseUnavailable, HandlerTimeout, MessagingError, ProcessDied
from messaging.processing.processor import Processor
from messaging.supervising.ledger import Entry
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.consumer")

PAUSE = 1.0  # seconds between two tries
# As the supervisor calls them, which imports nothing of Django and none of these.
ERRORS: dict[str, type[MessagingError]] = {"HandlerTimeout": HandlerTimeout, "ProcessDied": ProcessDied}


@dataclass(slots=True)
class _Death:
    """One attempt that a process did not survive.

    Attributes:
        entry: what ran.
        error: what is to blame; None if it is not to be counted.
        since: CLOCK_MONOTONIC of its beginning; None where an older supervisor reports it.
        waits: whether it could not be recorded at once.
        is_recorded: whether nothing is left to do.
    """

    entry: Entry
    error: MessagingError | None
    since: float | None
    waits: bool = False
    is_recorded: bool = False

    @classmethod
    def reported(cls, report: Mapping[str, Any]) -> _Death:
        """As the supervisor tells it."""
        error = ERRORS[report["error"]](report["text"]) if report["error"] else None
        return cls(Entry.from_json(report["entry"]), error, report.get("since"))


class Deaths(threading.Thread):
    """Records deaths: before anything can be consumed again, but for what another run of the message keeps locked.

    That is tried again while this process consumes: a run may take hours. Until it is recorded the supervisor keeps it.

    Args:
        reports: from the supervisor.
        processor: records them.
        recorded: called for each, in their order, once it is recorded.
        stopping: ends it.
    """

    def __init__(
        self,
        reports: Sequence[Mapping[str, Any]],
        processor: Processor,
        recorded: Callable[[], object],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="messaging-deaths", daemon=True)
        self._open = [_Death.reported(report) for report in reports]
        self._processor = processor
        self._recorded = recorded
        self._stopping = stopping

    def record(self) -> None:
        """Record what can be; wait for the database where it is away, and leave to the thread what is locked."""
        self._try_each()
        if self._open:
            self.start()

    def run(self) -> None:
        """Record the rest."""
        while self._open and not self._stopping.wait(PAUSE):
            self._try_each()
        connections.close_all()

    def finish(self) -> None:
        """Wait until nothing is left to record, or this process is to stop."""
        if self.is_alive():
            self.join()

    def _try_each(self) -> None:
        for death in list(self._open):
            death.is_recorded = death.is_recorded or self._record(death)
            # The supervisor forgets the oldest. Told of the others again, the next process finds them recorded.
            while self._open and self._open[0].is_recorded:
                del self._open[0]
                self._recorded()

    def _record(self, death: _Death) -> bool:
        while not self._stopping.is_set():
            try:
                is_recorded = self._processor.record_crash(death.entry, death.error, death.since)
            except DatabaseUnavailable as trouble:
                self._note(death, str(trouble))
                if trouble.database != death.entry.database:  # whose own can be consumed from meanwhile
                    return False
                self._stopping.wait(PAUSE)
            except Exception:
                facts = about(death.entry)
                logger.exception("The crash of %s could not be recorded.", death.entry.handler, extra=facts)
                return True
            else:
                if not is_recorded:
                    self._note(death, "another run of its message is under way.")
                elif death.waits:
                    facts = about(death.entry)
                    logger.warning("The crash of %s is recorded now.", death.entry.handler, extra=facts)
                return is_recorded
        return False

    @staticmethod
    def _note(death: _Death, why: str) -> None:
        if not death.waits:
            text = "A crash of %s waits to be recorded: %s"
            logger.warning(text, death.entry.handler, why, extra=about(death.entry))
        death.waits = True
