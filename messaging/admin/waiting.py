"""For what a message waits that is neither done nor at rest: a paused queue, a consumer, the broker, its turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery, TextField, Value
from django.db.models.functions import Cast, Concat
from django.utils.translation import gettext as _

from messaging.admin.display import local, seconds_until
from messaging.db.clock import Now
from messaging.models import ProcessedMessage, PublishedMessage, QueueControl, Worker
from messaging.models.base import written
from messaging.monitoring.conditions import BROKER_TROUBLE, SILENT, WAITS_FOR_BROKER, WAITS_FOR_DATABASE
from messaging.publishing.rounds import under_way

In = ProcessedMessage.State
Out = PublishedMessage.State
WORKERS = 1000  # that are looked through for those of a queue
SEEN = timedelta(seconds=SILENT)  # a worker that says nothing for longer is taken to be gone
_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # a name that JSON writes as it is


def annotated(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Rows with what is known about those who would take them further, in the same query.

    In another database than that of the workers nothing is known of those: see `completed()`.
    """
    if rows.model is ProcessedMessage:
        rows = rows.annotate(is_under_way=under_way(), is_unsent=under_way(0))
    if written(Worker).db != rows.db:
        return rows
    workers = Worker.objects.filter(alias=OuterRef("alias"), seen_at__gt=Now() - SEEN).order_by("-seen_at")
    found: QuerySet[Any] = rows.annotate(relay_says=_first(workers.filter(kind="relay"), "status"))
    if rows.model is not ProcessedMessage:
        return found
    control = QueueControl.objects.filter(alias=OuterRef("alias"), queue=OuterRef("queue"), paused=True)
    consumers = workers.filter(kind="consume").annotate(listed=Cast("queues", TextField()))
    own = consumers.filter(listed__contains=Concat(Value('"'), OuterRef("queue"), Value('"'), output_field=TextField()))
    told: QuerySet[Any] = found.annotate(
        paused_at=_first(control, "changed_at"),
        paused_by=_first(control, "changed_by"),
        consumer_says=_first(own, "status"),
    )
    return told


def completed(row: Any) -> Any:
    """A row read by `annotated()`, with what had to be asked of another database."""
    if "relay_says" in vars(row):
        return row
    alive = written(Worker).filter(alias=row.alias, seen_at__gt=Now() - SEEN).order_by("-seen_at")
    told = list(alive.values_list("kind", "status", "queues")[:WORKERS])
    row.relay_says = next((status for kind, status, _queues in told if kind == "relay"), None)
    if isinstance(row, ProcessedMessage):
        control: Any = written(QueueControl).filter(alias=row.alias, queue=row.queue, paused=True).first()
        row.paused_at = control and control.changed_at  # type: ignore[attr-defined]
        row.paused_by = control and control.changed_by  # type: ignore[attr-defined]
        own = (status for kind, status, queues in told if kind == "consume" and row.queue in queues)
        row.consumer_says = next(own, None)  # type: ignore[attr-defined]
    return row


def of_incoming(row: ProcessedMessage, rounds: Iterable[PublishedMessage]) -> str:
    """For what an incoming message waits, in a sentence; "" where it does not, or its state says it already.

    Args:
        row: read by `annotated()`.
        rounds: its rows in the outbox.
    """
    known = vars(row)
    is_counted = row.state == In.PROCESSING and row.lease_token is None
    is_planned = row.retry_at is not None and seconds_until(row.retry_at) > 0
    if not (is_counted or row.state in ProcessedMessage.AWAITING) or is_planned or "consumer_says" not in known:
        return ""
    if known["paused_at"]:
        text = _("Its queue is paused since %(moment)s by %(user)s; resume it in “Queues”.")
        return text % {"moment": local(known["paused_at"]), "user": known["paused_by"] or _("unknown")}
    if any(out.state == Out.PENDING and out.round == row.round for out in rounds):
        return _of_relay(known["relay_says"])
    says = known["consumer_says"]
    if says is None:
        return _("No consumer takes from its queue. Start one with: manage.py consume") if _is_plain(row.queue) else ""
    if says == WAITS_FOR_BROKER:
        return _("Its consumer waits for the broker.")
    if says == WAITS_FOR_DATABASE:
        return _("Its consumer waits for the database.")
    return _("It waits for its turn in the queue.")


def of_outgoing(row: PublishedMessage) -> str:
    """For what an outgoing message waits, in a sentence; "" where it does not, or its state says it already."""
    is_due = row.state == Out.PENDING and row.lease_token is None and not row.waits_for_queue
    if not is_due or "relay_says" not in vars(row) or (row.due_at is not None and seconds_until(row.due_at) > 0):
        return ""
    return _of_relay(vars(row)["relay_says"])


def _of_relay(says: str | None) -> str:
    if says is None:
        return _("No relay runs. Start one with: manage.py relay, or manage.py consume, which has one inside")
    if says:
        return _("The relay cannot hand it to the broker: %(reason)s") % {"reason": says.removeprefix(BROKER_TROUBLE)}
    return _("It waits for its turn at the relay.")


def _is_plain(queue: str) -> bool:
    return _PLAIN.fullmatch(queue) is not None


def _first(rows: QuerySet[Any], column: str) -> Subquery:
    return Subquery(rows.values(column)[:1])
