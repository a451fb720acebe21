"""The rows that one relay holds in one database, and what it still has to write there about them.

What the broker has confirmed is marked beside the leasing of what comes next, in a thread of its own.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import Error, InterfaceError, OperationalError, connections

from messaging.db.clock import Now
from messaging.killpoints import kill_point
from messaging.models import ProcessedMessage, PublishedMessage, Worker
from messaging.models.outbox import PublishedMessageQuerySet
from messaging.monitoring import counters, failure_groups
from messaging.monitoring.failure_groups import Cause
from messaging.relaying.connection import Trouble
from messaging.signals import message_failed, message_published, message_unpublishable
from messaging.supervising.log_records import about
from messaging.wire.bodies import one_line

IDLE = 30.0  # seconds after which an unused connection is replaced: a firewall may have dropped it without a word
logger = logging.getLogger("messaging.relay")

DATABASE_PAUSE = 1.0  # seconds between tries while a database does not answer
NEWEST = 4  # while more is due than is leased at once, now and then one in so many of the leased rows is of the newest
NEWEST_EVERY = 0.5  # seconds between two such leases: each is a statement more
MARK_BATCH = 1000  # confirmed rows that are marked without waiting for more
MARK_DELAY = 0.05  # seconds that a confirmed row waits for others, to be marked with them


class Marker:
    """Marks rows published, one batch at a time, in a thread that has a database connection of its own.

    Where two that write at once would wait for each other, which is everywhere but on PostgreSQL, it has no thread:
    `end()` does it. So it does after the thread failed, which may have got no connection.

    Args:
        database: alias of `DATABASES`.
        on_done: called in the thread after each batch.
    """

    def __init__(self, database: str, on_done: Callable[[], None]) -> None:
        self._database, self._on_done = database, on_done
        self._thread: ThreadPoolExecutor | None = None
        self._batch: Future[None] | None = None
        self._rows: list[PublishedMessage] = []
        self._used_at = 0.0
        self._has_failed = False

    @property
    def rows(self) -> list[PublishedMessage]:
        """Those of the batch that was begun and not ended."""
        return self._rows

    @property
    def is_done(self) -> bool:
        """Whether `end()` would not wait for the thread."""
        return self._batch is None or self._batch.done()

    def begin(self, rows: list[PublishedMessage]) -> None:
        """Take these; the batch before has ended."""
        self._rows = rows
        if connections[self._database].vendor == "postgresql" and not self._has_failed:
            self._thread = self._thread or ThreadPoolExecutor(1, f"messaging-mark-{self._database}")
            self._batch = self._thread.submit(self._mark_beside)
            self._batch.add_done_callback(lambda _: self._on_done())

    def end(self) -> None:
        """Wait until they are marked. Raises the database's error; then nobody knows whether they are."""
        batch, self._batch = self._batch, None
        try:
            if batch is None:
                self._mark()
            else:
                batch.result()
            self._has_failed = False
        except Error:
            self._has_failed = batch is not None
            raise
        finally:
            self._rows = []

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.submit(partial(_disconnect, self._database))
            self._thread.shutdown()
            self._thread = None

    def _mark_beside(self) -> None:
        """Mark in the thread, whose connection nothing else keeps busy."""
        if time.monotonic() - self._used_at > IDLE:
            _disconnect(self._database)
        self._mark()
        self._used_at = time.monotonic()

    def _mark(self) -> None:
        kill_point("relay.confirmed")
        try:
            PublishedMessage.objects.using(self._database).mark_published(self._rows)
        except Error:
            _disconnect(self._database)  # it may have gone stale
            raise
        kill_point("relay.marked")


def _disconnect(database: str) -> None:
    connections[database].close()


@dataclass(frozen=True, slots=True)
class Unsent:
    """What is to be written about rows: failed when `retry_in` is None, else another try in so many seconds."""

    reason: str
    retry_in: float | None = None
    spend: bool = True
    unrouted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A leased row, and where its lease is kept."""

    leases: Leases
    row: PublishedMessage

    @property
    def key(self) -> tuple[str, int, str]:
        """Tells it from all other rows, whoever holds it next."""
        return self.leases.database, self.row.id, self.row.message_id

    def fail(self, reason: str) -> None:
        """It can never be sent."""
        self.leases.judged(self.row, Unsent(reason))

    def hand_back(self, lost: str = "") -> None:
        """Any relay may take it; `lost` says why nobody knows whether the broker has it, where it was sent."""
        self.leases.returned(self.row, lost)


class Leases:
    """One outbox as a relay works on it.

    No method raises for a database that does not answer: what could not be written is written later, and a lease that
    could not be renewed lapses.

    Args:
        database: alias of `DATABASES`.
        alias: alias of `MESSAGING` whose rows are served.
        owner: the relay's name, for operators.
        seconds: for which a lease holds unless renewed.
        on_marked: called from any thread when `write()` has something to note.

    Attributes:
        expects_more: whether rows that are due are likely to be found.
    """

    def __init__(
        self, database: str, alias: str, owner: str, seconds: float, on_marked: Callable[[], None] = lambda: None
    ) -> None:
        self.database = database
        self._alias, self._owner, self._seconds = alias, owner, seconds
        self._held: dict[int, PublishedMessage] = {}
        self._confirmed: list[PublishedMessage] = []
        self._marker = Marker(database, on_marked)
        self._verdicts: dict[Unsent, list[PublishedMessage]] = {}
        self._releases: dict[str, list[PublishedMessage]] = {}
        self._mark_at = self._renew_at = self._not_before = self._newest_at = 0.0
        self.expects_more = True
        self._failures = 0
        self._trouble = Trouble()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_available(self) -> bool:
        """Whether the database may be asked now: False for a moment after it did not answer."""
        return time.monotonic() >= self._not_before

    @property
    def trouble(self) -> str:
        """Why the database cannot be used; "" while it can."""
        return self._trouble.reason

    @property
    def has_unmarked(self) -> bool:
        """Whether confirmed rows wait for more, to be marked with them."""
        return bool(self._confirmed) and not self._marker.rows

    def wait(self) -> float | None:
        """Seconds until a row can be taken; None when none is pending, or the database does not answer."""
        seconds = None
        with self._guard():
            seconds = self._rows().wait(self._alias)
        return 0.0 if self._failures == 1 else seconds  # perhaps the connection was stale: on a new one, at once

    def take(self, limit: int) -> list[PublishedMessage]:
        """Lease up to `limit` due rows: the oldest, and of more than there is room for also some of the newest.

        What is published while thousands fall due does not wait for all of them.
        """
        now = time.monotonic()
        share = limit // NEWEST if now >= self._newest_at else 0
        oldest = self._lease(limit - share)
        self.expects_more = len(oldest) == limit - share
        if not share or not self.expects_more:
            return oldest
        self._newest_at = now + NEWEST_EVERY
        return [*self._lease(share, newest=True), *oldest]

    def _lease(self, limit: int, *, newest: bool = False) -> list[PublishedMessage]:
        rows: list[PublishedMessage] = []
        with self._guard():
            rows = self._rows().lease(self._alias, self._owner, self._seconds, limit, newest=newest)
            if rows and not self._held:
                self._renew_at = time.monotonic() + self._seconds / 3
            self._held.update((row.id, row) for row in rows)
        return rows

    def read(self, row: PublishedMessage) -> bool:
        """Read the body of a large row, which was not leased with it. False where that cannot be done now."""
        body = None
        with self._guard():
            body = self._rows().filter(pk=row.pk).values_list("body", flat=True).first()
            connections[self.database].close()  # a driver keeps twice as much as it has ever read at once
        if body is not None:
            row.body = body
        return body is not None

    def confirmed(self, row: PublishedMessage) -> None:
        """Note that the broker has it; `write()` marks it."""
        if not self._confirmed:
            self._mark_at = time.monotonic() + MARK_DELAY
        self._confirmed.append(row)

    def judged(self, row: PublishedMessage, verdict: Unsent) -> None:
        """Note a verdict for `write()`, which writes equal ones together."""
        self._verdicts.setdefault(verdict, []).append(row)

    def returned(self, row: PublishedMessage, lost: str = "") -> None:
        """Note that it was not sent, or `lost`, why nobody knows; `write()` hands it back."""
        self._releases.setdefault(lost, []).append(row)

    def write(self, *, at_once: bool = False) -> None:
        """Write what was noted, confirmed rows together once enough have gathered, and renew the other leases."""
        if not self.is_available:
            return
        with self._guard():
            self._end_marking()
            if self._confirmed and not self._marker.rows and (at_once or self._is_time_to_mark()):
                self._marker.begin(self._confirmed)
                self._confirmed = []
                self._end_marking()
            while self._verdicts:
                verdict, rows = next(iter(self._verdicts.items()))
                self._pass(verdict, rows)
                del self._verdicts[verdict]
                self._forget(rows)
            while self._releases:
                lost, rows = next(iter(self._releases.items()))
                self._rows().release(rows, lost, self._owner)
                del self._releases[lost]
                self._forget(rows)
            if self._held and time.monotonic() >= self._renew_at:
                marking = {row.id for row in self._marker.rows}
                held = [row for pk, row in self._held.items() if pk not in marking]  # two must not lock the same rows
                self._rows().renew(held, self._seconds)
                self._renew_at = time.monotonic() + self._seconds / 3

    def release_all(self) -> None:
        """Write what was noted and hand back everything else."""
        self._not_before = 0.0
        with self._guard():
            self._end_marking(wait=True)
        returned = [row for lost, rows in self._releases.items() if lost for row in rows]
        noted = {row.id for rows in (self._confirmed, returned, *self._verdicts.values()) for row in rows}
        self._releases[""] = [row for pk, row in self._held.items() if pk not in noted]
        self.write(at_once=True)
        with self._guard():
            self._end_marking(wait=True)
        self._marker.close()

    def report(self, *, host: str, pid: int, status: str) -> None:
        """Say in the relay's `Worker` row that it lives; write what this process has counted."""
        values = {"kind": "relay", "alias": self._alias, "host": host, "pid": pid, "status": status, "seen_at": Now()}
        with self._guard():
            Worker.objects.using(self.database).update_or_create(name=self._owner[:200], defaults=values)
            counters.write_when_due(self.database)
            failure_groups.write(self.database)
            counters.join_when_due(self.database)

    def sign_off(self) -> None:
        """Say that this relay has ended."""
        with self._guard():
            counters.write(self.database)
            failure_groups.write(self.database)
            Worker.objects.using(self.database).filter(name=self._owner[:200]).delete()

    def _rows(self) -> PublishedMessageQuerySet:
        return PublishedMessage.objects.using(self.database)

    def _forget(self, rows: Iterable[PublishedMessage]) -> None:
        for row in rows:
            if self._held.get(row.id) is row:  # it may be held again under a newer lease
                del self._held[row.id]

    def _is_time_to_mark(self) -> bool:
        return len(self._confirmed) >= MARK_BATCH or time.monotonic() >= self._mark_at

    def _end_marking(self, *, wait: bool = False) -> None:
        """Note which rows are marked, if a batch is done."""
        rows = self._marker.rows
        if not rows or not (wait or self._marker.is_done):
            return
        try:
            self._marker.end()
        except Error:
            self._confirmed[:0] = rows
            raise
        self._forget(rows)
        for row in rows:
            row.state = PublishedMessage.State.PUBLISHED
        for queue, number in Counter(row.queue for row in rows).items():
            counters.add("published", self._alias, queue, number)
        message_published.send_robust(sender=PublishedMessage, rows=rows)

    def _pass(self, verdict: Unsent, rows: list[PublishedMessage]) -> None:
        failed: list[PublishedMessage] = []
        try:
            if verdict.retry_in is not None:
                how = {"spend": verdict.spend, "unrouted": verdict.unrouted}
                self._rows().back_off(rows, verdict.retry_in, verdict.reason, by=self._owner, **how)
            else:
                failed = self._rows().fail(rows, verdict.reason, self._owner)
        except (OperationalError, InterfaceError):
            raise
        except Error:
            which = ", ".join(str(row.pk) for row in rows[:10]) + (", …" if len(rows) > 10 else "")
            text, extra = "Could not record what became of outgoing message %s; it will be sent again.", _about(rows)
            logger.exception(text, which, extra=extra)
        for row in failed:
            self._announce_failure(row)

    def _announce_failure(self, row: PublishedMessage) -> None:
        text = "Outgoing message %s (%s) failed: %s"
        logger.error(text, row.pk, one_line(str(row)), one_line(row.error), extra=about(row))
        counters.add("unpublished", row.alias, row.queue)
        message_unpublishable.send_robust(sender=PublishedMessage, row=row)
        if row.inbox_id is not None:
            for message in row.incoming().filter(state=ProcessedMessage.State.FAILED):
                counters.add("failed", message.alias, message.queue, handler=message.handler)
                failure_groups.add(self.database, message.alias, _cause(message), is_final=True)
                message_failed.send_robust(sender=ProcessedMessage, row=message)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn a database error into a pause. A first one may be a connection that went stale: it is not logged."""
        try:
            yield
        except Error as error:
            self._failures += 1
            connections[self.database].close()
            if self._failures > 1:
                self._not_before = time.monotonic() + DATABASE_PAUSE
                self._trouble.begin(f'Cannot use the database "{self.database}"; messages wait in the outbox', error)
        else:
            if self._failures:
                self._failures = 0
                self._trouble.end(f'The database "{self.database}" can be used again; messages are sent.')


def _about(rows: Sequence[PublishedMessage]) -> dict[str, Any]:
    """What a log record says of a message; of several, what they have in common."""
    return about(rows[0]) if len(rows) == 1 else about(alias=rows[0].alias)


def _cause(message: ProcessedMessage) -> Cause:
    """Of a message whose round could not be sent: it stays in the group of its last failure."""
    queue = "" if message.handler else message.queue
    return Cause(message.fingerprint, message.exception_type, handler=message.handler, queue=queue)
