"""Retention: what ended well, or what an operator discarded, is deleted after a while. Nothing unresolved ever is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from messaging import conf
from messaging.db.clock import Now
from messaging.models import Operation, OperationItem, ProcessedMessage, PublishedMessage, Rehearsal, TaskValue
from messaging.models.base import in_state

BATCH = 1000

In = ProcessedMessage.State
Out = PublishedMessage.State
OPEN = (Out.PENDING, Out.DRAFT, Out.FAILED)
# Indexed, and in the order of the primary keys, but for rows that were written at the same time.
BEGAN: dict[type[models.Model], str] = {
    PublishedMessage: "created_at",
    ProcessedMessage: "received_at",
    TaskValue: "created_at",
}


def expired(alias: str, database: str = "default") -> Iterator[tuple[str, QuerySet[Any]]]:
    """What is older than the alias's `RETENTION`, by the database's clock, as pairs of what it is and the rows."""
    days = conf.get(alias).retention
    sent = PublishedMessage.objects.using(database).filter(alias=alias)
    received = ProcessedMessage.objects.using(database).filter(alias=alias)
    if days.published is not None:
        yield "published", _ended(sent.filter(state=Out.PUBLISHED), "published_at", days.published)
    if days.discarded is not None:
        yield "discarded, outgoing", _ended(sent.filter(state=Out.DISCARDED), "discarded_at", days.discarded)
    if days.processed is not None:
        yield "processed", _ended(received.filter(state=In.PROCESSED), "processed_at", days.processed)
    if days.discarded is not None:
        laid_aside = received.filter(state__in=(In.DISCARDED, In.SUPERSEDED))
        yield "discarded, incoming", _ended(laid_aside, "discarded_at", days.discarded)
    if days.processed is not None:  # behind the messages, which keep them
        yield "return values of tasks", _unneeded_values(alias, database, days.processed)


def deletable(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Those of the expired rows that no message still on its way needs in order not to run twice."""
    if rows.model is not ProcessedMessage:
        return rows
    outbox = PublishedMessage.objects.using(rows.db).filter(in_state(*OPEN), alias=OuterRef("alias"))
    return rows.exclude(Exists(outbox.filter(Q(inbox=OuterRef("pk"))))).exclude(
        ~Q(message_id="") & Exists(outbox.filter(message_id=OuterRef("message_id")))
    )


def prune(rows: QuerySet[Any], batch: int = BATCH) -> int:
    """Delete those of the expired rows that are `deletable()`, in transactions of at most `batch`, by primary key.

    It waits for nobody: what another transaction has locked is left for the next time. Returns how many went, their
    attempts aside.
    """
    deleted, last = 0, 0
    while ids := list(rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:batch]):
        last = ids[-1]
        deleted += _delete(rows, ids)
    return deleted


def ended_operations(database: str) -> QuerySet[Operation]:
    """The stored operations that ended longer ago than every alias keeps what was discarded; they have no alias."""
    operations, days = Operation.objects.using(database), _longest_kept()
    return operations.none() if days is None else operations.filter(ended_at__lt=Now() - timedelta(days=days))


def ended_rehearsals(database: str) -> QuerySet[Rehearsal]:
    """The rehearsals that were asked for as long ago, and that nobody waits for any more."""
    rehearsals, days = Rehearsal.objects.using(database), _longest_kept()
    return rehearsals.none() if days is None else rehearsals.filter(created_at__lt=Now() - timedelta(days=days))


def prune_operations(operations: QuerySet[Operation], batch: int = BATCH) -> int:
    """Delete operations and what became of their messages, in transactions of at most `batch`. Returns how many."""
    deleted = 0
    for pk in list(operations.values_list("pk", flat=True)):
        items = OperationItem.objects.using(operations.db).filter(operation=pk)
        while ids := list(items.values_list("pk", flat=True)[:batch]):
            items.filter(pk__in=ids).delete()
        deleted += Operation.objects.using(operations.db).filter(pk=pk).delete()[0]
    return deleted


def _unneeded_values(alias: str, database: str, days: float) -> QuerySet[TaskValue]:
    """What tasks returned whose messages are gone."""
    own = {"alias": alias, "queue": OuterRef("queue"), "key": OuterRef("key")}
    values = _ended(TaskValue.objects.using(database).filter(alias=alias), "created_at", days)
    return values.exclude(Exists(ProcessedMessage.objects.using(database).filter(**own)))


def _longest_kept() -> float | None:
    """Days for which any alias keeps what was discarded; None where one keeps it for ever."""
    kept = [conf.get(alias).retention.discarded for alias in conf.aliases()]
    days = [each for each in kept if each is not None]
    return max(days) if days and len(days) == len(kept) else None


def _delete(rows: QuerySet[Any], ids: list[int]) -> int:
    model, database = rows.model, rows.db
    features = transaction.get_connection(database).features
    with transaction.atomic(using=database):
        # Asked again inside the transaction: an operator may have replayed a row meanwhile.
        locked = deletable(rows.filter(pk__in=ids))
        if features.has_select_for_update:
            of = ("self",) if features.has_select_for_update_of else ()
            locked = locked.select_for_update(of=of, skip_locked=features.has_select_for_update_skip_locked)
        doomed = list(locked.values_list("pk", flat=True))
        _, by_model = model._base_manager.using(database).filter(pk__in=doomed).delete()
    return int(by_model.get(model._meta.label, 0))


def _ended(rows: QuerySet[Any], column: str, days: float) -> QuerySet[Any]:
    """Rows that ended, by that column, so long ago.

    They stand before the last row that began before then: what is behind it, most of the table, is not looked at.
    """
    ago, began = Now() - timedelta(days=days), BEGAN[rows.model]
    older = rows.model._base_manager.using(rows.db).filter(**{f"{began}__lt": ago})
    last = older.order_by(f"-{began}", "-pk").values_list("pk", flat=True).first() or 0
    return rows.filter(**{f"{column}__lt": ago}, pk__lte=last)
