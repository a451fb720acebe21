"""What operators do, for the admin and for scripts: one verb each.

Every verb acts only on rows in the right state, says what it skipped and why, and leaves an audit record for each row
in the same transaction; of a stored operation, one for all of them. None of them talks to the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, router, transaction
from django.db.models import F, QuerySet
from django.utils.translation import gettext as _

from messaging import conf
from messaging.db.clock import Now
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage, QueueControl
from messaging.models.base import in_state
from messaging.models.light import has_body, light
from messaging.models.processed import UNCLAIMED
from messaging.operations.acting import Operator, Outcome, act_on_each, changed_meanwhile
from messaging.operations.editing import Edit, copied
from messaging.publishing.rounds import (
    add_round,
    add_rounds_together,
    cancel_rounds,
    cancel_rounds_together,
    databases_of,
    incoming_of,
    is_awaited,
    is_under_way,
    send_round_again,
)
from messaging.wire import nonces
from messaging.wire.envelope import Envelope

__all__ = [
    "Operator",
    "Outcome",
    "discard",
    "discard_published",
    "edit",
    "publish_copy",
    "release",
    "replay",
    "requeue",
    "restore",
    "restore_published",
    "set_paused",
]

In = ProcessedMessage.State
Out = PublishedMessage.State


def requeue(rows: QuerySet[ProcessedMessage], by: Operator) -> Outcome:
    """Send failed (or retrying) messages round again at once, with fresh attempts.

    What is being processed is left alone unless no claim holds: its worker died, and the message may be gone. So is
    what was requeued before, until it has been away for ten minutes: the broker may have lost it.
    """

    def act(row: ProcessedMessage, outcome: Outcome) -> bool:
        if row.state not in (In.FAILED, In.RETRYING, In.PROCESSING, In.REQUEUED):
            return _wrong_state(row, outcome)
        if row.state == In.REQUEUED and is_under_way(row):
            outcome.skip(row.pk, _("it is requeued, and was not sent yet or less than ten minutes ago"))
            return False
        if row.wire is None:
            outcome.skip(row.pk, _("its content was never received"))
            return False
        if not _is_readable(row, outcome):
            return False
        if not _leave(row, state=In.REQUEUED, attempts=0):
            return _still_there(row, outcome)
        cancel_rounds(row)
        add_round(row, Now())
        return True

    def together(locked: Sequence[ProcessedMessage]) -> Sequence[ProcessedMessage]:
        plain = [row for row in locked if _is_plain(row)]
        if plain:
            _leave_together(plain, rows.db, state=In.REQUEUED, attempts=0)
            add_rounds_together(plain, Now(), rows.db)
        return plain

    return act_on_each(rows, "requeue", act, by, wake=True, together=together)


def edit(rows: QuerySet[ProcessedMessage], change: Edit, by: Operator) -> Outcome:
    """Send a copy of a failed message with another content round in its place; the message itself is superseded.

    Both in one transaction, and the copy is a message of its own: earlier copies of the other one do not run any more.
    """

    def act(row: ProcessedMessage, outcome: Outcome) -> bool:
        if row.state != In.FAILED:
            return _wrong_state(row, outcome)
        if row.round != change.seen:
            return changed_meanwhile(row, outcome)
        copy = copied(row, change)
        if not _leave(row, state=In.SUPERSEDED, discarded_at=Now()):
            return changed_meanwhile(row, outcome)
        cancel_rounds(row)
        copy.save(using=rows.db, force_insert=True)
        add_round(copy, Now())
        outcome.created.append(copy.pk)
        return True

    return act_on_each(rows, "edit", act, by, wake=True)


def discard(rows: QuerySet[ProcessedMessage], by: Operator) -> Outcome:
    """Lay failed or retrying messages aside, those in processing that no claim holds, and requeued ones that were sent.

    A copy still under way will not run.
    """

    def act(row: ProcessedMessage, outcome: Outcome) -> bool:
        if row.state not in (In.FAILED, In.RETRYING, In.PROCESSING, In.REQUEUED):
            return _wrong_state(row, outcome)
        if row.state == In.REQUEUED and is_under_way(row, 0):
            outcome.skip(row.pk, _("it is requeued, and was not sent yet"))
            return False
        if not _leave(row, state=In.DISCARDED, discarded_at=Now()):
            return _still_there(row, outcome)
        cancel_rounds(row)
        return True

    def together(locked: Sequence[ProcessedMessage]) -> Sequence[ProcessedMessage]:
        plain = [row for row in locked if row.state in (In.FAILED, In.RETRYING) and row.lease_token is None]
        if plain:
            _leave_together(plain, rows.db, state=In.DISCARDED, discarded_at=Now())
        return plain

    return act_on_each(rows, "discard", act, by, together=together)


def restore(rows: QuerySet[ProcessedMessage], by: Operator) -> Outcome:
    """Bring discarded messages back as failed."""

    def act(row: ProcessedMessage, outcome: Outcome) -> bool:
        if row.state != In.DISCARDED:
            return _wrong_state(row, outcome)
        return row.move(row.state, round=row.round, state=In.FAILED) or changed_meanwhile(row, outcome)

    return act_on_each(rows, "restore", act, by)


def release(rows: QuerySet[PublishedMessage], by: Operator) -> Outcome:
    """Publish drafts, failed messages once more, and at once those that wait for a queue, with fresh tries."""
    send = _to_pending(Out.DRAFT, Out.FAILED)

    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        return _hasten(row, outcome) if row.waits_for_queue else send(row, outcome)

    return act_on_each(rows, "publish", act, by, wake=True)


def replay(rows: QuerySet[PublishedMessage], by: Operator) -> Outcome:
    """Send published messages again under their own ids, to repair a loss at the broker; consumers dedupe.

    Where one waits for a later round, that is what the broker may have lost: it is sent again as well. The round itself
    may be replayed too.
    """
    away: set[str] = set()
    send = _to_pending(Out.PUBLISHED)

    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        if row.state != Out.PUBLISHED:
            return _wrong_state(row, outcome)
        if row.inbox_id is not None:
            return _replay_round(row, outcome)
        return _replay_later_rounds(row, outcome, away) and send(row, outcome)

    return act_on_each(rows, "replay", act, by, wake=True)


def publish_copy(rows: QuerySet[PublishedMessage], by: Operator) -> Outcome:
    """Publish each message's content as a new message with a new id."""

    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        if row.inbox_id is not None:
            return _belongs_to_inbox(row, outcome)
        if not _is_readable(row, outcome):
            return False
        copy = row.copied()
        copy.save(using=rows.db, force_insert=True)
        outcome.created.append(copy.pk)
        return True

    return act_on_each(rows, "copy", act, by, wake=True)


def discard_published(rows: QuerySet[PublishedMessage], by: Operator) -> Outcome:
    """Lay drafts, pending and failed messages aside; of rounds those that failed and that nobody waits for any more."""

    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        if row.inbox_id is not None and (row.state != Out.FAILED or any(map(is_awaited, light(row.incoming())))):
            return _belongs_to_inbox(row, outcome)
        if row.state not in (Out.DRAFT, Out.PENDING, Out.FAILED):
            return _wrong_state(row, outcome)
        return _change(
            row, outcome, state=Out.DISCARDED, discarded_at=Now(), due_at=None, lease_owner="", lease_token=None
        )

    return act_on_each(rows, "discard", act, by)


def restore_published(rows: QuerySet[PublishedMessage], by: Operator) -> Outcome:
    """Bring discarded messages back: as failed where sending had failed, else as drafts."""

    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        if row.inbox_id is not None:
            return _belongs_to_inbox(row, outcome)
        if row.state != Out.DISCARDED:
            return _wrong_state(row, outcome)
        return _change(row, outcome, state=Out.FAILED if row.error else Out.DRAFT)

    return act_on_each(rows, "restore", act, by)


def set_paused(
    queue: str, paused: bool, by: Operator, *, using: str = conf.DEFAULT_ALIAS, database: str | None = None
) -> QueueControl:
    """Stop our consumers from taking from a queue, or let them go on. They notice within seconds."""
    database = database or router.db_for_write(QueueControl)
    with transaction.atomic(using=database):
        control, _created = QueueControl.objects.using(database).update_or_create(
            alias=using,
            queue=queue,
            defaults={"paused": paused, "changed_at": Now(), "changed_by": by.username, "reason": by.reason},
        )
        AuditRecord.objects.using(database).create(
            action="pause" if paused else "resume",
            **by.recorded,
            kind="queue",
            alias=using,
            queue=queue,
        )
    control.refresh_from_db(using=database)
    return control


def _leave(row: ProcessedMessage, **changes: Any) -> bool:
    """Begin a round in which no earlier copy runs, unless a claim holds. Returns whether that was done."""
    values = {"retry_at": None, **UNCLAIMED, **changes}
    return row.move(row.state, round=row.round, next_round=row.round + 1, unclaimed=True, **values)


def _is_plain(row: ProcessedMessage) -> bool:
    """Whether it can go round together with others: it rests, and all of it was read."""
    is_at_rest = row.state in (In.FAILED, In.RETRYING) and row.lease_token is None
    return is_at_rest and row.wire is not None and has_body(row) and _is_readable(row, Outcome())


def _leave_together(rows: Sequence[ProcessedMessage], database: str, **changes: Any) -> None:
    """`_leave()` of rows that are locked, and at rest, with few statements; their unsent rounds are cancelled."""
    inbox = ProcessedMessage.objects.using(database)
    unknown = [row for row in rows if row.nonce is None]
    for row in unknown:
        row.nonce = nonces.of_row(row.queue, row.key)
    inbox.bulk_update(unknown, ["nonce"])
    values = {"retry_at": None, **UNCLAIMED, **changes, "round": F("round") + 1}
    at_rest = inbox.filter(in_state(In.FAILED, In.RETRYING), pk__in=[row.pk for row in rows])
    if at_rest.update(**values) != len(rows):
        raise DatabaseError("Rows have changed that this transaction has locked.")
    for row in rows:
        row.state, row.round = changes["state"], row.round + 1
    cancel_rounds_together(rows, database)


def _still_there(row: ProcessedMessage, outcome: Outcome) -> bool:
    return _wrong_state(row, outcome) if row.state == In.PROCESSING else changed_meanwhile(row, outcome)


def _replay_round(row: PublishedMessage, outcome: Outcome) -> bool:
    """Send a round again, as a row of its own, if its incoming message still waits for it."""
    waiting = next(filter(is_awaited, light(row.incoming())), None)
    if waiting is None:
        outcome.skip(row.pk, _("its incoming message does not wait for this round any more"))
        return False
    if waiting.wire is None:
        outcome.skip(row.pk, _("its content was never received"))
        return False
    if not _is_readable(waiting, outcome, row.pk):
        return False
    again = send_round_again(waiting)
    if again is None:
        outcome.skip(row.pk, _("its incoming message has a round that is still to be sent"))
        return False
    outcome.created.append(again.pk)
    return True


def _replay_later_rounds(row: PublishedMessage, outcome: Outcome, away: set[str]) -> bool:
    """Send the present round of each queue where a message waits for one. False where a database cannot be asked."""
    own = row._state.db
    for database in databases_of(row):
        if database not in away:
            try:
                for incoming in incoming_of(row, database):
                    again = send_round_again(incoming) if _is_readable(incoming, outcome, row.pk) else None
                    if again is not None and database == own:
                        outcome.created.append(again.pk)
            except (OperationalError, InterfaceError):
                if database == own:
                    raise
                away.add(database)
        if database in away:
            problem = _("the database “%(name)s”, which may have received it, cannot be used") % {"name": database}
            outcome.skip(row.pk, problem)
            return False
    return True


def _to_pending(*sources: str) -> Callable[[PublishedMessage, Outcome], bool]:
    def act(row: PublishedMessage, outcome: Outcome) -> bool:
        if row.inbox_id is not None:
            return _belongs_to_inbox(row, outcome)
        if row.state not in sources:
            return _wrong_state(row, outcome)
        # A draft keeps a moment that lies ahead.
        return _change(
            row, outcome, state=Out.PENDING, attempts=0, error="", due_at=row.next_due(), epoch=F("epoch") + 1
        )

    return act


def _hasten(row: PublishedMessage, outcome: Outcome) -> bool:
    """Have a pending row sent now. What a relay holds is on its way; an earlier confirm still counts."""
    if row.lease_token is not None:
        outcome.skip(row.pk, _("a relay is sending it"))
        return False
    return _change(row, outcome, state=Out.PENDING, attempts=0, error="", unrouted=None, due_at=Now())


def _change(row: PublishedMessage, outcome: Outcome, **changes: Any) -> bool:
    found = PublishedMessage.objects.using(row._state.db).filter(in_state(row.state), pk=row.pk)
    if found.update(**changes) != 1:
        return changed_meanwhile(row, outcome)
    row.state = changes["state"]
    return True


def _belongs_to_inbox(row: PublishedMessage, outcome: Outcome) -> bool:
    outcome.skip(row.pk, _("it is a round of an incoming message: act on that one"))
    return False


def _is_readable(row: ProcessedMessage | PublishedMessage, outcome: Outcome, for_row: int | None = None) -> bool:
    """Whether the stored envelope and body can be read; a damaged row is skipped, and does not stop the others.

    It is skipped itself, unless it is read `for_row`. A large body is not read for that: the relay judges it.
    """
    try:
        if row.wire is not None:
            Envelope.from_wire(bytes(row.wire), row.raw_body if has_body(row) else b"")
    except ValueError as error:
        problem = _("its stored content is damaged: %(error)s") % {"error": error}
        outcome.skip(row.pk if for_row is None else for_row, problem)
        return False
    return True


def _wrong_state(row: ProcessedMessage | PublishedMessage, outcome: Outcome) -> bool:
    outcome.skip(row.pk, _("it is %(state)s") % {"state": row.get_state_display()})
    return False
