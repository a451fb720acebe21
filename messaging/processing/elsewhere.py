"""What the other databases know of a message: its handler may have had another one before, or none.

A message has one living row, wherever that is. A row in another database than its handler's is answered for there, or
moved: the row in the handler's database is made durable first, then the old one is superseded, then the handler runs.
Killed in between, both rows wait; whichever copy comes next retires the one that is left over.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import connections, transaction

from messaging import conf
from messaging.db.clock import Now
from messaging.db.connections import Outages
from messaging.exceptions import DatabaseUnavailable
from messaging.handlers import Registry
from messaging.models import ProcessedMessage
from messaging.models.processed import UNCLAIMED
from messaging.processing import inbox
from messaging.processing.inbox import AlreadyRecorded, Place, Verdict
from messaging.wire.envelope import Envelope

State = ProcessedMessage.State

GAINED = 5.0  # seconds for which a database is believed to hold nothing of a queue
LOST = 60.0  # seconds for which it is believed to hold something: only retention makes that untrue


class Elsewhere:
    """The databases of an alias beside a handler's own; safe to share between threads.

    Args:
        alias: alias of `MESSAGING`.
        handlers: whose databases may know a message.
        outages: what is known of the databases.
        databases: those that may know a message; None for the settings' and the handlers'.
    """

    def __init__(
        self, alias: str, handlers: Registry, outages: Outages, databases: Collection[str] | None = None
    ) -> None:
        self._alias, self._outages = alias, outages
        self._databases, self._handlers = databases, handlers
        self._others: dict[str, tuple[str, ...]] = {}
        self._held: dict[tuple[str, str], tuple[bool, float]] = {}  # by database and queue: whether, and until when

    def others(self, database: str) -> tuple[str, ...]:
        """The databases that may know a message whose handler's is this one; none on a site that has one."""
        found = self._others.get(database)
        if found is None:
            found = self._others[database] = tuple(sorted(self._known() - {database}))
        return found

    def _known(self) -> set[str]:
        if self._databases is not None:
            return set(self._databases)
        handlers = self._handlers.all(self._alias)
        return {*conf.get(self._alias).databases, *(handler.database for handler in handlers)}

    def find(self, database: str, queue: str, envelope: Envelope, *, redelivered: bool) -> list[ProcessedMessage]:
        """The rows of a delivery in the other databases, annotated with `lease_lives`.

        On its first way a message is looked for only where there is anything of its queue. Raises DatabaseUnavailable;
        where a transaction that is open there is about to record it, SetAside or AlreadyRecorded.
        """
        others = self.others(database)
        if not others or envelope.key is None:
            return []
        comes_back = redelivered or envelope.row_key is not None
        rows = []
        for name in others:
            if not comes_back and not self._holds(name, queue):
                continue
            row = self._row(name, queue, envelope)
            if row is not None:
                rows.append(row)
            elif comes_back and self._holds(name, queue):
                self._outages.steadily(name, partial(self._refuse_unseen, name, queue, envelope))
        return rows

    def knows_any(self, database: str, queue: str, keys: Collection[uuid.UUID]) -> bool:
        """Whether another database has a row of one of these messages. Raises DatabaseUnavailable."""
        for name in self.others(database):
            if self._holds(name, queue):
                rows = ProcessedMessage.objects.using(name).filter(alias=self._alias, queue=queue, key__in=keys)
                if self._outages.steadily(name, rows.exists):
                    return True
        return False

    def retire(self, rows: Iterable[ProcessedMessage], database: str) -> None:
        """Commit that `database` answers for a message from now on, and these rows of it no longer do.

        It has to have a durable row by then. Raises AlreadyRecorded when one changed meanwhile, SetAside when someone
        is about to change it, and DatabaseUnavailable.
        """
        for row in rows:
            name = database_of(row)

            def write(row: ProcessedMessage = row, name: str = name) -> None:
                with transaction.atomic(using=name):
                    inbox.existing(row).write(
                        name,
                        state=State.SUPERSEDED,
                        discarded_at=Now(),
                        retry_at=None,
                        error=f'It goes on in the database "{database}", where its handler is now.',
                        **UNCLAIMED,
                    )

            self._outages.steadily(name, write)

    def move(self, home: ProcessedMessage | None, there: ProcessedMessage, queue: str, envelope: Envelope) -> Place:
        """The place in the handler's database for a message that waits in another one, with the attempts so far.

        A row that is there already takes up the round, so that it is behind nobody. Raises AlreadyRecorded.
        """
        if home is None:
            place = inbox.fresh(self._alias, queue, envelope)
            place.row.attempts, place.derivation, place.row.nonce = there.attempts, there.derivation, there.nonce
            return place
        changes: dict[str, Any] = {
            "state": State.RETRYING,
            "attempts": there.attempts,
            "discarded_at": None,
            "failed_at": None,
            **UNCLAIMED,
        }
        round_ = max(home.round, envelope.round)
        moved = home.move(home.state, round=home.round, token=home.lease_token, next_round=round_, **changes)
        if not moved:
            raise AlreadyRecorded
        return inbox.existing(home)

    def _row(self, name: str, queue: str, envelope: Envelope) -> ProcessedMessage | None:
        find = partial(inbox.find, name, self._alias, queue, envelope, redelivered=False)
        return self._outages.steadily(name, find)

    def _refuse_unseen(self, name: str, queue: str, envelope: Envelope) -> None:
        """Wait briefly for a transaction that has written the row of a delivery and has not ended.

        Its consumer lost the broker, or its host, while the handler goes on. Raises SetAside, AlreadyRecorded.
        """
        if connections[name].vendor == "sqlite":
            return  # which writes the row last
        own = {"alias": self._alias, "queue": queue, "key": envelope.key, "digest": envelope.digest}
        with transaction.atomic(using=name):
            Place(ProcessedMessage(**own)).write(name, state=State.PROCESSING)
            transaction.set_rollback(True, using=name)

    def _holds(self, name: str, queue: str) -> bool:
        """Whether a database has rows of a queue. One that is away has gained none since it was asked last."""
        known = self._held.get((name, queue))
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        # Ordered as its index is, which alone makes it cheap whatever the statistics say.
        rows = ProcessedMessage.objects.using(name).filter(alias=self._alias, queue=queue).order_by("key")
        try:
            answer = self._outages.steadily(name, lambda: bool(rows.values_list("pk", flat=True)[:1]))
        except DatabaseUnavailable:
            if known is None or known[0]:
                raise
            answer = False
        self._held[name, queue] = answer, time.monotonic() + (LOST if answer else GAINED)
        return answer


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is recorded of a delivery.

    Attributes:
        home: the row in its handler's database.
        decides: the row whose state says what to do; None where nothing is recorded.
        left_over: the other rows that still wait for it, though this one answers for it.
        claimed: the other rows under which it is being run.
    """

    home: ProcessedMessage | None
    decides: ProcessedMessage | None
    left_over: Sequence[ProcessedMessage] = ()
    claimed: Sequence[ProcessedMessage] = ()

    @property
    def replaceable(self) -> list[ProcessedMessage]:
        """Those of what is left over that can be retired on account of a row that was only read.

        A claim that lapsed can be renewed meanwhile: two such rows could retire each other.
        """
        if self.decides is None or self.decides.state == State.SUPERSEDED:
            return []
        is_final = self.decides.state == State.PROCESSED
        return [row for row in self.left_over if is_final or row.state != State.PROCESSING]


def weigh(home: ProcessedMessage | None, others: Sequence[ProcessedMessage], envelope: Envelope) -> Standing:
    """Which row decides about a delivery. Pure."""
    alike = [row for row in others if row.is_of(envelope)]
    decides = _deciding(home, alike, others, envelope)
    rows = [row for row in (home, *alike) if row is not None and row is not decides and row.state != State.SUPERSEDED]
    left_over = [row for row in rows if inbox.gate(row, envelope) in _OPEN]
    return Standing(home, decides, left_over, [row for row in rows if _is_claimed(row)])


_OPEN = (Verdict.RUN, Verdict.COUNTED, Verdict.CRASHED)


def _deciding(
    home: ProcessedMessage | None,
    alike: Sequence[ProcessedMessage],
    others: Sequence[ProcessedMessage],
    envelope: Envelope,
) -> ProcessedMessage | None:
    """What is processed, else the latest round; of one round what was laid aside, else what is at home.

    A row that went on elsewhere stands behind the one that took its round over. All processes agree on this order, but
    for who is at home: no two rows are retired on account of each other.
    """

    def rank(row: ProcessedMessage) -> tuple[bool, int, bool, bool, bool]:
        state = row.state
        return state == State.PROCESSED, row.round, state != State.SUPERSEDED, state == State.DISCARDED, row is home

    if home is None:
        return max(alike or others, key=rank, default=None)
    if not home.is_of(envelope):  # another message's, which took its id
        return next((row for row in alike if row.state == State.PROCESSED), home)
    return max([home, *alike], key=rank)


def _is_claimed(row: ProcessedMessage) -> bool:
    return row.state == State.PROCESSING and not inbox.is_unfinished(row)


def database_of(row: ProcessedMessage) -> str:
    """Where a row was read."""
    return row._state.db or "default"
