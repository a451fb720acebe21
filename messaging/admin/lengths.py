"""How long an incoming message waited, ran, and took from its publishing to its end, by its row and the outbox."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.utils.translation import gettext as _

from messaging.admin.display import UNKNOWN, exactly
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.processed import BRIEF


class Lengths(NamedTuple):
    """The parts of a message's way, as texts; `UNKNOWN` for each that is not known.

    Attributes:
        wait: from the publishing of its last round, else from its arrival, until its handler began.
        run: the last run of its handler.
        total: from its first publishing, else from its arrival, to the end of that run.
    """

    wait: str = UNKNOWN
    run: str = UNKNOWN
    total: str = UNKNOWN


def lengths_of(row: ProcessedMessage, outgoing: Sequence[PublishedMessage]) -> Lengths:
    """Those of an incoming message.

    Args:
        row: the message.
        outgoing: rows of the outbox among which those of it are, where they are known here.
    """
    began, ended = row.began_at, row.ended_at
    if began is None:
        return Lengths(run=run_of(row))
    first = [out for out in outgoing if out.inbox_id is None and row.message_id and out.message_id == row.message_id]
    rounds = [out for out in outgoing if out.inbox_id == row.pk and out.round == row.round]
    wait = exactly(_since(row, rounds or first, began))
    if ended is None:
        return Lengths(wait)  # it runs
    return Lengths(wait, run_of(row), exactly(_since(row, first, began) + (ended - began).total_seconds()))


def run_of(row: ProcessedMessage) -> str:
    """How long its last run took."""
    if row.duration is None:
        return UNKNOWN
    if row.duration == 0:
        return _("under %(span)s") % {"span": exactly(BRIEF / 1_000_000)}
    return exactly(row.duration / 1_000_000)


def _since(row: ProcessedMessage, sent: Iterable[PublishedMessage], began: datetime) -> float:
    """Seconds from the last publishing before then, else from the arrival; 0 where clocks of databases differ.

    A relay may note that a message is published when its handler has begun: it was when it became due.
    """
    times = [out.published_at for out in sent if out.published_at is not None and out.published_at <= began]
    times = times or [out.publish_at for out in sent if out.publish_at <= began]
    return max(0.0, (began - max(times, default=row.received_at)).total_seconds())
