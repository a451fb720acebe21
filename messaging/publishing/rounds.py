"""The later rounds of incoming messages: cancelled in the outbox, or sent again where they never came back.

So it is when a backup was restored, the broker lost its disk, or nobody consumes the queue any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from messaging import conf
from messaging.db.clock import Now
from messaging.db.insert_many import insert_many
from messaging.exceptions import ConfigurationError
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.base import in_state
from messaging.models.light import has_body, light
from messaging.publishing.rows import compose_round
from messaging.wire.envelope import key_of

In = ProcessedMessage.State
Out = PublishedMessage.State
CANCELLED = {"state": Out.DISCARDED, "discarded_at": Now(), "due_at": None, "lease_owner": "", "lease_token": None}
LONG = 600  # seconds after which a round that is not back is worth a look
LONG_AGO = Now() - timedelta(seconds=LONG)


def cancel_rounds(row: ProcessedMessage) -> int:
    """Lay aside the outbox rows of a message's rounds that were not sent: not yet, or never. Returns how many."""
    return _rounds(row, Out.PENDING, Out.FAILED).update(**CANCELLED)


def cancel_rounds_together(rows: Sequence[ProcessedMessage], database: str) -> None:
    """`cancel_rounds()` of many messages, with two statements at most."""
    own = {row.pk: (row.alias, row.queue, row.message_id) for row in rows}
    sent = PublishedMessage.objects.using(database).filter(in_state(Out.PENDING, Out.FAILED))
    found = sent.filter(inbox_id__in=list(own)).values_list("pk", "inbox_id", "alias", "queue", "message_id")
    mine = [pk for pk, inbox_id, *identity in found if tuple(identity) == own[inbox_id]]
    if mine:
        sent.filter(pk__in=mine).update(**CANCELLED)


def unsent_rounds(row: ProcessedMessage) -> QuerySet[PublishedMessage]:
    """The outbox rows of a message's rounds that are still to be sent."""
    return _rounds(row, Out.PENDING)


def add_round(row: ProcessedMessage, due: Combinable) -> PublishedMessage:
    """Write a message's present round into the outbox; a body that was not read with it is copied by the database.

    In the caller's transaction. Raises WireError where its content is damaged.
    """
    database = row._state.db
    added = compose_round(row, due, with_body=has_body(row))
    added.save(using=database, force_insert=True)
    if not has_body(row):
        body = ProcessedMessage.objects.using(database).filter(pk=row.pk).values("body")
        PublishedMessage.objects.using(database).filter(pk=added.pk).update(body=Subquery(body))
    return added


def add_rounds_together(rows: Sequence[ProcessedMessage], due: Combinable, database: str) -> None:
    """`add_round()` of many messages whose bodies were read, with one statement for a thousand of them."""
    insert_many([compose_round(row, due) for row in rows], database, lambda row: len(row.body))


def is_awaited(row: ProcessedMessage) -> bool:
    """Whether a message waits for its present round, which the outbox sent: should the broker lose it, for ever."""
    if row.state == In.PROCESSING:
        return row.lease_token is None and row.round > 1
    return row.state in ProcessedMessage.AWAITING


def send_round_again(row: ProcessedMessage) -> PublishedMessage | None:
    """Send a message's present round once more, if it waits for that and the outbox has none of it to send.

    Whatever becomes of the message meanwhile: it is at worst a copy of a round that is over. What a relay holds, or has
    held, may have been sent already, and lost: it is sent anew, and the confirm of before says nothing of that. Raises
    WireError where its content is damaged.
    """
    if not is_awaited(row) or row.wire is None:
        return None
    unsent = unsent_rounds(row).filter(round=row.round)  # an earlier one would not run
    if unsent.exists() and unsent.update(epoch=F("epoch") + 1):
        unsent.filter(lease_token__isnull=False).update(due_at=Now(), lease_owner="", lease_token=None)
        return None
    return add_round(row, Now())


def under_way(seconds: float = LONG) -> Exists:
    """The condition that a message's present round is still to be sent, or was sent less than `seconds` ago."""
    return _unsent_or_sent_after(Now() - timedelta(seconds=seconds))


def is_under_way(row: ProcessedMessage, seconds: float = LONG) -> bool:
    """Whether `under_way()` is true of a message."""
    return ProcessedMessage.objects.using(row._state.db).filter(under_way(seconds), pk=row.pk).exists()


def not_back(rows: QuerySet[Any], since: datetime | Combinable = LONG_AGO) -> QuerySet[Any]:
    """Those whose present round was sent by `since` and has not come back.

    Where retention has removed the row that was sent, it was sent long ago.
    """
    awaited = rows.filter(Q(retry_at=None) | Q(retry_at__lt=since), state__in=ProcessedMessage.AWAITING)
    return awaited.filter(~_unsent_or_sent_after(since))


def with_sent_at(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Those that are not back, each with `sent_at`. PostgreSQL plans for a high cost, whether there are any or not."""
    sent = _present_rounds().filter(state=Out.PUBLISHED).order_by("-published_at").values("published_at")[:1]
    found: QuerySet[Any] = rows.annotate(sent_at=Coalesce(Subquery(sent), "retry_at", "received_at"))
    return found


def incoming_of(row: PublishedMessage, database: str) -> list[ProcessedMessage]:
    """What a message became in the queues that it reached, as far as that has not ended."""
    unfinished = in_state(In.PROCESSING, *ProcessedMessage.AWAITING)
    found = ProcessedMessage.objects.using(database).filter(unfinished, message_id=row.message_id, alias=row.alias)
    ids = list(found.filter(key=key_of(row.message_id)).values_list("pk", flat=True))
    return light(found.filter(pk__in=ids).order_by("pk")) if ids else []  # there hardly ever are any


def databases_of(row: PublishedMessage) -> list[str]:
    """Where a message may have been received: its own database, and the others of its alias."""
    try:
        others = conf.get(row.alias).databases if row.alias in conf.aliases() else ()
    except ConfigurationError:
        others = ()
    return list(dict.fromkeys([row._state.db or "default", *others]))


def _rounds(row: ProcessedMessage, *states: str) -> QuerySet[PublishedMessage]:
    """By the message's own identity beside its number, which a database that was set back may have given away again."""
    rows = PublishedMessage.objects.using(row._state.db).filter(in_state(*states), inbox_id=row.pk)
    return rows.filter(alias=row.alias, queue=row.queue, message_id=row.message_id)


def _unsent_or_sent_after(moment: datetime | Combinable) -> Exists:
    """The condition that a message's present round is still to be sent, or was sent after that moment."""
    later = Q(in_state(Out.PUBLISHED), published_at__gt=moment)
    return Exists(_present_rounds().filter(Q(in_state(Out.PENDING)) | later))


def _present_rounds() -> QuerySet[PublishedMessage]:
    """Within a statement on incoming messages: the outbox rows of the present round of each."""
    own = {"alias": OuterRef("alias"), "queue": OuterRef("queue"), "message_id": OuterRef("message_id")}
    # There is no round after the present one. Said like this, PostgreSQL cannot plan to read the whole outbox for it.
    return PublishedMessage.objects.filter(inbox=OuterRef("pk"), round__gte=OuterRef("round"), **own)
