"""Retention: what ended well, or what an operator discarded, is deleted after a while. Nothing unresolved ever is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from messaging import conf
from messaging.clock import Now
from messaging.models import ProcessedMessage, PublishedMessage

BATCH = 1000
AGES: dict[Any, str] = {PublishedMessage: "created_at", ProcessedMessage: "received_at"}  # indexed: how old a row is

In = ProcessedMessage.State
Out = PublishedMessage.State
OPEN = (Out.PENDING, Out.DRAFT, Out.FAILED)


def expired(alias: str, database: str = "default") -> Iterator[tuple[str, QuerySet[Any]]]:
    """What may be deleted by the alias's `RETENTION`, as pairs of what it is and the rows, by the database's clock."""
    days = conf.get(alias).retention
    sent = PublishedMessage.objects.using(database).filter(alias=alias)
    received = ProcessedMessage.objects.using(database).filter(alias=alias)
    if days.published is not None:
        yield "published", _before(sent.filter(state=Out.PUBLISHED), "published_at", days.published)
    if days.discarded is not None:
        yield "discarded, outgoing", _before(sent.filter(state=Out.DISCARDED), "discarded_at", days.discarded)
    if days.processed is not None:
        done = _before(received.filter(state=In.PROCESSED), "processed_at", days.processed)
        yield "processed", _closed(done, database)
    if days.discarded is not None:
        laid_aside = received.filter(state__in=(In.DISCARDED, In.SUPERSEDED))
        yield "discarded, incoming", _closed(_before(laid_aside, "discarded_at", days.discarded), database)


def prune(rows: QuerySet[Any], batch: int = BATCH) -> int:
    """Delete rows of `expired()` in transactions of at most `batch`, oldest first. Returns how many went.

    Attempts, which go with them, do not count.
    """
    deleted = 0
    model, database, age = rows.model, rows.db, AGES[rows.model]
    ahead = rows.order_by(age, "pk")
    while found := list(ahead.values_list("pk", age)[:batch]):
        ids = [pk for pk, _ in found]
        pk, moment = found[-1]
        ahead = rows.filter(Q(**{f"{age}__gt": moment}) | Q(pk__gt=pk), **{f"{age}__gte": moment}).order_by(age, "pk")
        with transaction.atomic(using=database):
            # The conditions hold once more inside the transaction: an operator may have replayed a row meanwhile.
            locked = rows.filter(pk__in=ids)
            if transaction.get_connection(database).features.has_select_for_update:
                locked = locked.select_for_update(of=("self",)) if _locks_of(database) else locked.select_for_update()
            doomed = list(locked.values_list("pk", flat=True))
            _, by_model = model._base_manager.using(database).filter(pk__in=doomed).delete()
        deleted += by_model.get(model._meta.label, 0)
    return deleted


def _before(rows: QuerySet[Any], moment: str, days: float) -> QuerySet[Any]:
    """Rows whose moment lies so many days back. So does their beginning, by whose index they are found."""
    return rows.filter(**{f"{name}__lt": _ago(days) for name in (moment, AGES[rows.model])})


def _closed(rows: QuerySet[ProcessedMessage], database: str) -> QuerySet[ProcessedMessage]:
    """Without the memory that a message still on its way would need in order not to run twice."""
    outbox = PublishedMessage.objects.using(database).filter(alias=OuterRef("alias"), state__in=OPEN)
    return rows.exclude(Exists(outbox.filter(Q(inbox=OuterRef("pk"))))).exclude(
        ~Q(message_id="") & Exists(outbox.filter(message_id=OuterRef("message_id")))
    )


def _ago(days: float) -> models.expressions.Combinable:
    return Now() - timedelta(days=days)


def _locks_of(database: str) -> bool:
    return bool(transaction.get_connection(database).features.has_select_for_update_of)
