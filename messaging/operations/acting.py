"""How a verb acts on many rows: in batches, each locked, and recorded for the audit in the same transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from django.db import OperationalError, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from messaging import conf
from messaging.db.connections import is_conflict
from messaging.exceptions import ConfigurationError
from messaging.killpoints import kill_point
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage
from messaging.models.light import forget_body, light
from messaging.publishing.publisher import wake_relays

BATCH = 500
TRIES = 3  # at a batch that the database gave up in favour of another transaction
Together: TypeAlias = "Callable[[Sequence[Any]], Sequence[Any]]"

LOCK_WAIT = 2.0  # seconds that a row may stay locked: a web request must not wait for a handler


class Operator(NamedTuple):
    """Who acts, and why.

    Attributes:
        user: a user of the site; None for a script.
        name: shown where the user is gone; the user's own name unless given.
        reason: free text for the audit.
        has_items: whether a stored operation notes what becomes of each row, so that the audit need not.
        details: what else the audit is to say: how the content of an edited message was changed.
    """

    user: Any = None
    name: str = ""
    reason: str = ""
    has_items: bool = False
    details: str | None = None

    @property
    def user_id(self) -> Any:
        """Their number, which may be that of a row in another database."""
        return None if self.user is None else self.user.pk

    @property
    def username(self) -> str:
        """The name to record."""
        return self.name or (self.user.get_username() if self.user is not None else "")

    @property
    def recorded(self) -> dict[str, Any]:
        """Who, and why, as columns of an audit record."""
        return {"user_id": self.user_id, "username": self.username, "reason": self.reason}


@dataclass(slots=True)
class Outcome:
    """What an operation did.

    Attributes:
        done: primary keys of the rows acted upon.
        created: primary keys of rows that it made.
        skipped: reason, for people, to the primary keys left as they were.
    """

    done: list[int] = field(default_factory=list)
    created: list[int] = field(default_factory=list)
    skipped: dict[str, list[int]] = field(default_factory=dict)

    def skip(self, row_id: int, reason: str) -> None:
        """Note that a row was left as it was."""
        self.skipped.setdefault(reason, []).append(row_id)

    def add(self, other: Outcome) -> None:
        """Take over what was done to other rows."""
        self.done += other.done
        self.created += other.created
        for reason, ids in other.skipped.items():
            self.skipped.setdefault(reason, []).extend(ids)

    @property
    def skipped_count(self) -> int:
        """How many rows were left as they were."""
        return sum(len(ids) for ids in self.skipped.values())


def changed_meanwhile(row: ProcessedMessage | PublishedMessage, outcome: Outcome) -> bool:
    """Skip a row that somebody else has changed since it was read; returns False."""
    outcome.skip(row.pk, _("it changed meanwhile"))
    return False


def act_on_each(
    rows: QuerySet[Any],
    action: str,
    act: Callable[[Any, Outcome], bool],
    by: Operator,
    *,
    wake: bool = False,
    together: Together | None = None,
) -> Outcome:
    """Act on each row, locked, in transactions of `BATCH` rows; a row that changed meanwhile is judged as it is now.

    Args:
        rows: which; read again once they are locked.
        action: the verb, for the audit.
        act: changes one row, or says in the outcome why it was skipped; returns whether it was changed.
        by: who acts.
        wake: whether relays are to look at once.
        together: changes those of the rows, all locked, that it can change with few statements; returns them.

    Returns what was done to all of them.
    """
    outcome = Outcome()
    for ids in _batches(list(rows.values_list("pk", flat=True).order_by("pk"))):
        for tries_left in reversed(range(TRIES)):
            try:
                outcome.add(_act_on(rows, ids, action, act, by, wake=wake, together=together))
                break
            except OperationalError as error:  # a relay that fails a round locks the two rows in the other order
                in_transaction = transaction.get_connection(rows.db).in_atomic_block
                if not tries_left or in_transaction or not is_conflict(error):
                    raise
    return outcome


def _act_on(
    rows: QuerySet[Any],
    ids: list[int],
    action: str,
    act: Callable[[Any, Outcome], bool],
    by: Operator,
    *,
    wake: bool,
    together: Together | None,
) -> Outcome:
    outcome, database = Outcome(), rows.db
    with transaction.atomic(using=database):
        audit = []
        locked = _locked(rows.model._base_manager.using(database), ids, outcome)
        before = {row.pk: row.state for row in locked}
        done = {row.pk for row in together(locked)} if together is not None else set()
        for row in locked:
            if row.pk in done or act(row, outcome):
                outcome.done.append(row.pk)
                audit.append(_record(action, row, before[row.pk], by))
            forget_body(row)  # or all of them would be held together
        if not by.has_items:
            AuditRecord.objects.using(database).bulk_create(audit)
        kill_point("operations.requeued")
        if wake and audit:
            # An alias that has left the settings has no relay to wake.
            for alias in {record.alias for record in audit} & set(conf.aliases()):
                with suppress(ConfigurationError):  # nor has one whose settings are broken
                    wake_relays(database, conf.get(alias))
    return outcome


def _locked(rows: QuerySet[Any], ids: list[int], outcome: Outcome) -> list[Any]:
    """The rows, locked, without large bodies.

    One that another transaction keeps locked, such as a running handler's, is left out.
    """
    wanted = rows.filter(pk__in=ids).order_by("pk")
    if not transaction.get_connection(rows.db).features.has_select_for_update_skip_locked:
        return light(wanted.select_for_update())
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        found = light(wanted.select_for_update(skip_locked=True))
        if len(found) == len(ids) or time.monotonic() >= deadline:
            break
        time.sleep(LOCK_WAIT / 40)
    for row in rows.only("pk").filter(pk__in=set(ids) - {row.pk for row in found}):
        changed_meanwhile(row, outcome)
    return found


def _record(action: str, row: Any, before: str, by: Operator) -> AuditRecord:
    return AuditRecord.of(row, action, before, **by.recorded, details=by.details)


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, BATCH)):
        yield batch
