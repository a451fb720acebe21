"""What operators do to a group of failures: have all of it requeued or discarded, silence it, write a note."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from messaging.db.clock import Now
from messaging.models import AuditRecord, FailureGroup, Operation
from messaging.monitoring.failure_groups import RESUMED
from messaging.operations import Operator, stored

SILENCE, NOTE = "silence", "note"  # in the audit
LONGEST_NOTE = 10_000  # characters


def act_on(group: FailureGroup, rows: QuerySet[Any], verb: str, by: Operator, **how: Any) -> Operation:
    """Store an operation on messages of a group, and note when.

    Args:
        group: whose messages.
        rows: which of them.
        verb: one of `stored.VERBS` of incoming messages.
        by: who wants it, and why.
        how: what `stored.store()` takes beside.
    """
    with transaction.atomic(using=rows.db):
        operation = stored.store(rows, verb, by, group=group, **how)
        _rows(group).update(acted_at=Now())
    return operation


def silence(
    group: FailureGroup, by: Operator, *, seconds: float | None = None, releases: Iterable[str] | None = None
) -> None:
    """Have a group alarm nobody. It is counted and shown all the same.

    Args:
        group: which.
        by: who wants it, and why.
        seconds: for which; None for ever.
        releases: in which; seen in another one, it alarms again. None for all.
    """
    until = None if seconds is None else Now() + timedelta(seconds=seconds)
    named = None if releases is None else sorted({name for name in releases if name})
    values = {"silenced_at": Now(), "silenced_until": until, "silenced_in": named, "silenced_by": by.username}
    _change(group, SILENCE, by, **values)


def end_silence(group: FailureGroup, by: Operator) -> None:
    """Have a silenced group alarm again."""
    _change(group, RESUMED, by, silenced_at=None, silenced_until=None, silenced_in=None, silenced_by="")


def annotate(group: FailureGroup, note: str, by: Operator) -> None:
    """Replace what the operators have written about a group."""
    _change(group, NOTE, by, note=note[:LONGEST_NOTE], noted_by=by.username)


def _change(group: FailureGroup, action: str, by: Operator, **changes: Any) -> None:
    """Change it, recorded in the same transaction."""
    rows = _rows(group)
    with transaction.atomic(using=rows.db):
        rows.update(**changes)
        AuditRecord.objects.using(rows.db).create(
            action=action,
            kind="group",
            message_pk=group.pk,
            **by.recorded,
        )


def _rows(group: FailureGroup) -> QuerySet[FailureGroup]:
    return FailureGroup.objects.using(group._state.db).filter(pk=group.pk)
