"""The later rounds of incoming messages in the outbox: cancelled, or sent again where the broker lost them."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import F, QuerySet

from messaging import conf
from messaging.clock import Now
from messaging.envelope import key_of
from messaging.exceptions import ConfigurationError
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.states import in_state
from messaging.sealing import compose_round

In = ProcessedMessage.State
Out = PublishedMessage.State


def cancel_rounds(row: ProcessedMessage) -> int:
    """Lay aside the outbox rows of a message's rounds that were not sent: not yet, or never. Returns how many."""
    return _rounds(row, Out.PENDING, Out.FAILED).update(
        state=Out.DISCARDED, discarded_at=Now(), due_at=None, lease_owner="", lease_token=None
    )


def unsent_rounds(row: ProcessedMessage) -> QuerySet[PublishedMessage]:
    """The outbox rows of a message's rounds that are still to be sent."""
    return _rounds(row, Out.PENDING)


def is_awaited(row: ProcessedMessage) -> bool:
    """Whether a message waits for its present round, which the outbox sent: should the broker lose it, for ever."""
    if row.state == In.PROCESSING:
        return row.lease_token is None and row.round > 1
    return row.state in ProcessedMessage.AWAITING


def send_round_again(row: ProcessedMessage) -> PublishedMessage | None:
    """Send a message's present round once more, if it waits for that and the outbox has none of it to send.

    Whatever becomes of the message meanwhile: it is at worst a copy of a round that is over. What a relay holds may
    have been sent already, and lost: it is sent anew, and the confirm of before says nothing of that. Raises WireError
    where its content is damaged.
    """
    if not is_awaited(row) or row.wire is None:
        return None
    unsent = unsent_rounds(row).filter(round=row.round)  # an earlier one would not run
    if unsent.exists():
        held = unsent.filter(lease_token__isnull=False)
        held.update(epoch=F("epoch") + 1, due_at=Now(), lease_owner="", lease_token=None)
        return None
    again = compose_round(row, Now())
    again.save(using=row._state.db, force_insert=True)
    return again


def incoming_of(row: PublishedMessage, database: str) -> Iterator[ProcessedMessage]:
    """What a message became in the queues that it reached, as far as that has not ended."""
    unfinished = in_state(In.PROCESSING, *ProcessedMessage.AWAITING)
    found = ProcessedMessage.objects.using(database).filter(unfinished, message_id=row.message_id, alias=row.alias)
    return iter(found.filter(key=key_of(row.message_id)).order_by("pk"))


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
