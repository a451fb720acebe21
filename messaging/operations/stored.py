"""Stored operations, for what would take longer than a request: which messages, then one batch of them after another.

Whoever carries one out holds a claim on it. A batch, what became of its messages and the counts are one transaction:
who dies leaves a whole number of batches behind, and another goes on after the last one. Nothing is acted on twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import Error, connections, transaction
from django.db.models import F, Q, QuerySet
from django.utils import translation
from django.utils.translation import gettext as _

from messaging import operations
from messaging.db.clock import Now
from messaging.db.connections import close_old, is_conflict, is_up
from messaging.killpoints import kill_point
from messaging.models import AuditRecord, FailureGroup, Operation, OperationItem, ProcessedMessage, PublishedMessage
from messaging.operations.acting import BATCH, TRIES, Operator, Outcome
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.operations")

Act = Callable[[QuerySet[Any], Operator], Outcome]
Work = Callable[[str, str, threading.Event], int]
State = Operation.State
Result = OperationItem.Result

VERBS: Mapping[str, Mapping[str, Act]] = {
    "processed": {
        "requeue": operations.requeue,
        "discard": operations.discard,
        "restore": operations.restore,
    },
    "published": {
        "publish": operations.release,
        "replay": operations.replay,
        "copy": operations.publish_copy,
        "discard": operations.discard_published,
        "restore": operations.restore_published,
    },
}
MODELS: Mapping[str, Any] = {"processed": ProcessedMessage, "published": PublishedMessage}

MOST = 1_000_000  # messages of one operation; the oldest, where there are more
SLOWEST = 0.1  # messages per second: the claim has to outlast a pause
LEASE = 60.0  # seconds that a claim holds after a batch
LOOK = 5.0  # seconds between two looks for something to do
REASONS = 20  # different ones that are counted apart
NOTE = 255  # characters


def kind_of(model: Any) -> str:
    """The kind of operation that acts on rows of this model."""
    return next(kind for kind, one in MODELS.items() if one is model)


def store(
    rows: QuerySet[Any],
    verb: str,
    by: Operator,
    *,
    scope: str = "",
    rate: float | None = None,
    try_one: bool = False,
    group: FailureGroup | None = None,
) -> Operation:
    """Store an operation on these rows, and on none that come to match later.

    Args:
        rows: of one of `MODELS`; the `MOST` oldest of them are taken.
        verb: one of `VERBS` of their kind.
        by: who wants it, and why.
        scope: which rows these are, in words.
        rate: messages per second at most, not below `SLOWEST`; None for as many as can be.
        try_one: whether to act on one of them, and then to wait for `go_on()`.
        group: whose failures they are, where they are one group's.

    Returns the operation, which waits for somebody to carry it out: a `Runner`, or `run_waiting()`.
    """
    kind, database = kind_of(rows.model), rows.db
    operation = Operation(
        verb=verb,
        kind=kind,
        scope=scope,
        rate=None if rate is None else max(SLOWEST, rate),
        is_trial=try_one,
        group=group,
        language=translation.get_language() or "",
        username=by.username,
        reason=by.reason,
    )
    with transaction.atomic(using=database):
        operation.save(using=database, force_insert=True)
        operation.total = _add_items(operation, rows.order_by("id").values("id")[:MOST])
        operation.save(using=database, update_fields=["total"])
        AuditRecord.objects.using(database).create(
            action=verb,
            kind="operation",
            message_pk=operation.pk,
            **by.recorded,
        )
    return operation


def go_on(operation: Operation) -> bool:
    """Have the rest of it done, after one was tried. False where it does not wait for that."""
    return bool(_rows(operation).filter(state=State.HELD).update(state=State.WAITING, is_trial=False))


def cancel(operation: Operation) -> bool:
    """Have nothing more of it done. What was done stays done. False where it has ended."""
    unfinished = _rows(operation).filter(state__in=(*Operation.UNFINISHED, State.HELD))
    values = {"state": State.CANCELLED, "ended_at": Now(), **Operation.UNCLAIMED}
    return bool(unfinished.update(**values))


def is_waiting(database: str) -> bool:
    """Whether there is an operation that nobody carries out."""
    return _free(database).exists()


def run_waiting(database: str, worker: str, stop: threading.Event | None = None) -> int:
    """Carry out what waits, one operation after the other.

    Args:
        database: alias of `DATABASES`.
        worker: who does it, for operators.
        stop: ends it after the present batch; the rest is left to whoever comes next.

    Returns how many operations it has worked on. Raises what the database raises when it is away.
    """
    stop, count = stop or threading.Event(), 0
    while not stop.is_set() and (run := _Run.begin(database, worker)) is not None:
        count += 1
        try:
            while not stop.is_set() and run.batch():
                kill_point("operations.acted")
                stop.wait(run.pause)
        finally:
            run.leave()
    return count


class Runner(threading.Thread):
    """Does what operators have stored beside what a process does otherwise; it has a connection only while it looks.

    Args:
        databases: aliases of `DATABASES`.
        worker: the process's name, for operators.
        stop: ends it after the present batch.
        work: what does all that waits in a database, such as `run_waiting()`.
    """

    def __init__(
        self, databases: tuple[str, ...], worker: str, stop: threading.Event, work: Work | None = None
    ) -> None:
        super().__init__(name="messaging-operations", daemon=True)
        self._work = work or run_waiting
        self._databases = databases
        self._worker = worker
        self._stop_asked = stop

    def run(self) -> None:
        """Look, act, until asked to stop."""
        while not self._stop_asked.wait(LOOK):
            for database in self._databases:
                self._look(database)
            connections.close_all()

    def _look(self, database: str) -> None:
        try:
            close_old()
            self._work(database, self._worker, self._stop_asked)
        except Error as error:  # who consumes, or relays, says so already
            logger.debug("What operators have stored waits for a database: %s", one_line(error))
        except Exception:
            logger.exception("What an operator has stored could not be carried out; it is tried again.")


class _Run:
    """One process's work on one operation, under its claim."""

    def __init__(self, operation: Operation, database: str) -> None:
        self._operation, self._database = operation, database
        self._act = VERBS[operation.kind][operation.verb]
        self._rows = MODELS[operation.kind]._base_manager.using(database)
        self._items = OperationItem.objects.using(database).filter(operation=operation.pk)
        self._by = Operator(name=operation.username, reason=operation.reason, has_items=True)
        self.pause = 0.0  # seconds until the next batch
        self._singly = 0  # messages that are acted on one by one: one of them could not be

    @classmethod
    def begin(cls, database: str, worker: str) -> _Run | None:
        """Claim the oldest operation that nobody carries out; None where there is none."""
        found = Operation.claim(_free(database), worker, LEASE)
        return None if found is None else cls(found, database)

    def batch(self) -> bool:
        """Act on the next messages. Returns whether there may be more to do under this claim."""
        size = self._size()
        began = time.monotonic()
        with translation.override(self._operation.language or None):
            count = self._steadily(size)
        if self._operation.rate:
            self.pause = max(0.0, count / self._operation.rate - (time.monotonic() - began))
        return count > 0 and not self._operation.is_trial

    def leave(self) -> None:
        """Give the claim up, if it is still held."""
        with suppress(Error):  # it lapses
            self._operation.claimed().update(**Operation.UNCLAIMED)

    def _size(self) -> int:
        if self._operation.is_trial:
            return 1
        return min(BATCH, max(1, int(self._operation.rate or BATCH)))

    def _steadily(self, size: int) -> int:
        """A batch, again where another transaction was in its way; one by one where one of them cannot be acted on."""
        if self._singly > 0:
            self._singly -= 1
            return self._step(1, is_last_try=True)
        for tries_left in reversed(range(TRIES)):
            try:
                return self._step(size)
            except Error as error:
                if not is_up(self._database):
                    raise
                if is_conflict(error) and tries_left:
                    continue
                break
            except Exception as error:  # noqa: BLE001  of one message, which is found below
                logger.debug("A batch failed: %s", one_line(error))
                break
        self._singly = size
        return self._step(1, is_last_try=True)

    def _step(self, size: int, *, is_last_try: bool = False) -> int:
        """One transaction: the claim renewed, messages acted on, what became of them noted. Returns how many."""
        with transaction.atomic(using=self._database):
            if not self._operation.claimed().update(leased_until=_until()):
                return 0  # cancelled, or lost to another
            ids = list(self._items.filter(result=None).order_by("row").values_list("row", flat=True)[:size])
            if not ids:
                self._operation.claimed().update(state=State.DONE, ended_at=Now(), **Operation.UNCLAIMED)
                return 0
            results = self._acted(ids) if not is_last_try else self._tried(ids)
            self._note(results)
            return len(ids)

    def _acted(self, ids: list[int]) -> dict[tuple[int, str], list[int]]:
        """What became of these rows, by result and reason."""
        outcome = self._act(self._rows.filter(pk__in=ids), self._by)
        results = {(Result.SKIPPED.value, reason): pks for reason, pks in outcome.skipped.items()}
        if outcome.done:
            results[Result.DONE.value, ""] = outcome.done
        gone = set(ids).difference(*results.values())
        if gone:
            results[Result.SKIPPED.value, _("it is gone")] = sorted(gone)
        return results

    def _tried(self, ids: list[int]) -> dict[tuple[int, str], list[int]]:
        try:
            with transaction.atomic(using=self._database):
                return self._acted(ids)
        except Exception as error:
            if isinstance(error, Error) and (is_conflict(error) or not is_up(self._database)):
                raise
            logger.warning("%s cannot be acted on: %s", f"{self._operation}, row {ids[0]}", one_line(error))
            return {(Result.FAILED.value, one_line(error)[:NOTE]): ids}

    def _note(self, results: dict[tuple[int, str], list[int]]) -> None:
        counts: Counter[int] = Counter()
        reasons = Counter[str](self._operation.claimed().values_list("reasons", flat=True).get())
        for (result, reason), ids in results.items():
            counts[result] += len(ids)
            note = reason[:NOTE] or None
            self._items.filter(row__in=ids).update(result=result, note=note, settled_at=Now())
            if note is not None:
                reasons[note if note in reasons or len(reasons) < REASONS else _("other reasons")] += len(ids)
        values: dict[str, Any] = {
            "done": F("done") + counts[Result.DONE],
            "skipped": F("skipped") + counts[Result.SKIPPED],
            "failed": F("failed") + counts[Result.FAILED],
            "reasons": dict(reasons),
        }
        if self._operation.is_trial:
            values |= {"state": State.HELD, **Operation.UNCLAIMED}
        self._operation.claimed().update(**values)


def _add_items(operation: Operation, keys: QuerySet[Any, Any]) -> int:
    """Name the operation's messages, with one statement however many there are. Returns how many."""
    connection = connections[operation._state.db or "default"]
    quote = connection.ops.quote_name
    try:
        sql, params = keys.query.get_compiler(connection.alias).as_sql()
    except EmptyResultSet:
        return 0
    own = OperationItem._meta
    names = [str(field.column) for field in own.concrete_fields if field.name in ("operation", "row")]
    columns = ", ".join(map(quote, names))
    with connection.cursor() as cursor:
        # Quoted names, and a query of Django's own with its parameters.
        cursor.execute(
            f"INSERT INTO {quote(own.db_table)} ({columns}) SELECT %s, found.{quote('id')} FROM ({sql}) found",  # noqa: S608
            [operation.pk, *params],
        )
        return int(cursor.rowcount)


def _free(database: str) -> QuerySet[Operation]:
    """What nobody carries out, and this release can: the next one may know more verbs."""
    known = reduce(or_, (Q(kind=kind, verb__in=list(acts)) for kind, acts in VERBS.items()))
    unfinished = Operation.objects.using(database).filter(known, state__in=Operation.UNFINISHED)
    return unfinished.filter(Q(lease_token=None) | Q(leased_until__lte=Now()))


def _rows(operation: Operation) -> QuerySet[Operation]:
    return Operation.objects.using(operation._state.db).filter(pk=operation.pk)


def _until() -> Any:
    return Now() + timedelta(seconds=LEASE)
