"""Where a received message is recorded, and whether it is to run at all.

`find()` looks up its row, `gate()` decides from it, and a `Place` is the row that the outcome will be written to:
inserted where there is none, changed by compare-and-set where there is one.
"""

from __future__ import annotations

import base64
import enum
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BooleanField, Case, F, Q, QuerySet, Value, When

from messaging.db.clock import Now
from messaging.db.connections import Local, brief_locks, is_lock_wait, is_refusal
from messaging.db.insert_one import ask, exists, insert
from messaging.db.session import part, state_of
from messaging.handlers import Handler
from messaging.models import ProcessedMessage
from messaging.models.light import light
from messaging.models.processed import DERIVATION
from messaging.supervising.ledger import run_of
from messaging.wire import nonces
from messaging.wire.envelope import MAX_ROUND, Envelope

TWIN_WAIT = 2.0  # seconds that a record waits for another transaction with the same message

State = ProcessedMessage.State


class AlreadyRecorded(Exception):
    """Another transaction recorded this message first: look again."""


class SetAside(Exception):
    """Nobody can tell yet, or a twin holds the record: try again later, without spending an attempt."""


class Held(SetAside):
    """A twin holds the record in an open transaction."""


class Unrecognised(Exception):
    """What a delivery says in headers of ours was not said by us."""


class NeedsToBeAlone(Exception):
    """It may kill its process: nothing innocent is to run beside it."""


class Verdict(enum.Enum):
    """What the recorded row says about a delivery."""

    RUN = "run"
    DONE = "done"  # recorded already, or an old copy whose successor is durable: acknowledge it unrun
    CRASHED = "crashed"  # an unfinished claim of a dead worker
    COUNTED = "counted"  # a crash that its supervisor reported; this delivery brings the content
    REUSED = "reused"  # another message with the same id


@dataclass(slots=True)
class Place:
    """The row that the outcome of a delivery is written to.

    Attributes:
        row: unsaved for a message that was never recorded.
        sources: the states that it may be in when it is changed.
        token: the claim that must still be there; None without a claim.
        is_abandoned: whether that claim must have run out, by the database's clock.
        escaped: whether the row was rewritten because the database refused a value.
        derivation: of a new row that may run again.
        inserted: the number of the row that the last run inserted and, as far as we know, rolled back.
        began: when the last run began that changed a row which was there before, as it says itself; the same holds.
        is_unfinished: whether the last run that wrote its record failed before its commit.
    """

    row: ProcessedMessage
    sources: tuple[str, ...] = ()
    token: uuid.UUID | None = None
    is_abandoned: bool = False
    escaped: bool = False
    derivation: int | None = DERIVATION
    inserted: int | None = None
    began: datetime | None = None
    is_unfinished: bool = False

    @property
    def is_new(self) -> bool:
        """Whether there is no row yet."""
        return self.row.id is None  # `pk` takes three times as long to say it

    def write(
        self,
        database: str,
        *,
        next_round: int | None = None,
        counted: int | None = None,
        local: Local = (),
        **changes: Any,
    ) -> None:
        """Record it, within the caller's transaction, for which `local` is set as well.

        Where `counted` is given, only if so many attempts are.

        Raises AlreadyRecorded when someone else did, SetAside when someone else is about to.
        """
        connection = connections[database]
        try:
            if self.is_new:
                self._insert(database, next_round=next_round, local=local, **changes)
            else:
                self._move(connection, next_round=next_round, counted=counted, local=local, **changes)
        except OperationalError as error:
            # A busy SQLite says nothing about twins.
            if is_lock_wait(error) and connection.vendor != "sqlite":
                raise Held from error
            raise

    def _insert(self, database: str, *, next_round: int | None, local: Local, **changes: Any) -> None:
        row = self.row
        for name, value in changes.items():
            setattr(row, name, value)
        if changes.get("state") != State.PROCESSED:  # it may run again
            row.derivation = self.derivation
        if next_round is not None:
            row.round, row.nonce = next_round, row.nonce or nonces.of_row(row.queue, row.key)
        try:
            insert(row, database, lock_wait=TWIN_WAIT, local=local)
        except IntegrityError as error:
            if is_refusal(error):
                raise
            raise AlreadyRecorded from error

    def _move(
        self,
        connection: BaseDatabaseWrapper,
        *,
        next_round: int | None,
        counted: int | None,
        local: Local,
        **changes: Any,
    ) -> None:
        row, is_free = self.row, self.token is None and State.PROCESSING in self.sources
        with brief_locks(connection, TWIN_WAIT, local):
            if not row.move(
                *self.sources,
                round=row.round,
                token=self.token,
                next_round=next_round,
                counted=counted,
                unclaimed=is_free or self.is_abandoned,
                **changes,
            ):
                raise AlreadyRecorded

    @contextmanager
    def tentative(self) -> Iterator[None]:
        """Around a transaction: what is rolled back there is taken back in the row as well."""
        before, adding = dict(self.row.__dict__), self.row._state.adding
        try:
            yield
        except BaseException:
            if before["id"] is None:
                self.inserted = self.row.pk or self.inserted
            self.row.__dict__.clear()
            self.row.__dict__.update(before)
            self.row._state.adding = adding
            raise

    def take_back(self, database: str, worker: str) -> bool:
        """Undo the record of a run that failed after its handler had committed it. Whether there was one.

        Args:
            database: where it is.
            worker: who ran it: SQLite may give another copy's record the number of one that was rolled back.
        """
        if not self.is_unfinished:  # what failed later may be recorded rightly
            return False
        row = self.row
        rows = ProcessedMessage.objects.using(database).filter(key=row.key, state=State.PROCESSED, worker=worker)
        if self.is_new:
            return self.inserted is not None and rows.filter(pk=self.inserted).delete()[0] > 0
        if self.began is None:
            return False
        before = {"state": row.state, "lease_token": self.token, "attempts": F("attempts") - 1, "processed_at": None}
        return rows.filter(pk=row.pk, round=row.round, started_at=self.began).update(**before) > 0

    def rows(self) -> QuerySet[ProcessedMessage]:
        """Its row as it is recorded, and no other's: after a failover its number may be."""
        return ProcessedMessage.objects.using(self.row._state.db).filter(pk=self.row.pk, key=self.row.key)

    def escape(self, error: BaseException) -> bool:
        """If the database refused a value, rewrite the row so that any database takes it; once.

        Refused are characters that a narrow character set lacks, or JSON nested too deeply. Nothing is lost: `wire`
        and the encoded body keep every byte. Returns whether it is worth another try.
        """
        if self.escaped or not is_refusal(error):
            return False
        self.escaped = True
        _escape(self.row)
        return True

    @property
    def run(self) -> uuid.UUID:
        """Identifies the attempt that is made at it."""
        return run_of(self.row.key, self.row.round, self.token)

    def claim(
        self,
        database: str,
        worker: str,
        seconds: float,
        *,
        at_broker: bool | None = None,
        token: uuid.UUID | None = None,
    ) -> None:
        """Commit that a worker runs it, under a lease. Raises AlreadyRecorded when someone else did.

        Args:
            database: where its row is.
            worker: who runs it.
            seconds: for which the claim holds without being renewed.
            at_broker: whether the delivery stays unacknowledged until the outcome is recorded.
            token: of the claim; a new one unless given.
        """
        token = token or uuid.uuid4()
        try:
            self._claim(database, worker, seconds, at_broker, token)
        except DatabaseError as error:
            if not self.escape(error):
                raise
            self._claim(database, worker, seconds, at_broker, token)

    def _claim(self, database: str, worker: str, seconds: float, at_broker: bool | None, token: uuid.UUID) -> None:
        with self.tentative(), transaction.atomic(using=database):
            self.write(
                database,
                state=State.PROCESSING,
                worker=worker,
                lease_token=token,
                leased_until=Now() + timedelta(seconds=seconds),
                at_broker=at_broker,
                started_at=None,
                interrupted=None,
            )
        self.sources, self.token = (State.PROCESSING,), token


def find(
    database: str, alias: str, queue: str, envelope: Envelope, *, redelivered: bool, handler: Handler | None = None
) -> ProcessedMessage | None:
    """The row of a delivery, annotated with `lease_lives`; None when it was never recorded.

    A redelivered message without an id adopts an unfinished row of the same content, if the broker still has that.
    Raises SetAside where it cannot be told yet whose such a row is.
    """
    key = envelope.key
    if key is None:
        return adopted(alike(database, alias, queue, envelope), handler) if redelivered else None
    if exists(ProcessedMessage, database, alias=alias, queue=queue, key=key):
        return next(iter(light(_with_lease(database).filter(alias=alias, queue=queue, key=key))), None)
    former = envelope.former_key
    if former is None:
        return None
    rows = light(_with_lease(database).filter(alias=alias, queue=queue, key=former))
    return next((row for row in rows if row.is_of(envelope)), None)


def alike(database: str, alias: str, queue: str, envelope: Envelope) -> list[ProcessedMessage]:
    """What is being processed without an id and with the same content, as of one moment.

    Of the first round only: a later one has its row's key with it.
    """
    rows = _with_lease(database).filter(message_id="", state=State.PROCESSING, round=1)
    said = Q(headers_digest=None) | Q(headers_digest=envelope.headers_digest)
    return light(rows.filter(said, alias=alias, queue=queue, digest=envelope.digest).order_by("id"))


def is_unfinished(row: ProcessedMessage) -> bool:
    """Whether nobody runs a row that is being processed: its crash was counted, or its lease has run out."""
    return row.lease_token is None or not getattr(row, "lease_lives", False)


def adopted(alike: Sequence[ProcessedMessage], handler: Handler | None) -> ProcessedMessage | None:
    """Which of the rows that are `alike()` a redelivered message without an id may be the one of: it would end with it.

    Raises SetAside where a run that goes on may be its own last one, whose crash is about to be recorded.
    """
    for row in alike:
        if row.lease_token is None or (is_unfinished(row) and comes_again(row, handler)):
            return row
    if any(comes_again(row, handler) for row in alike):
        raise SetAside
    return None


def was_acknowledged(row: ProcessedMessage) -> bool:
    """Whether the broker has forgotten the delivery of a claim, so that only what is left of it here may go on."""
    return row.at_broker is False and row.started_at is not None


def _with_lease(database: str) -> QuerySet[ProcessedMessage]:
    lives = Case(When(leased_until__gt=Now(), then=Value(True)), default=Value(False), output_field=BooleanField())
    return ProcessedMessage.objects.using(database).annotate(lease_lives=lives)


def comes_again(row: ProcessedMessage, handler: Handler | None) -> bool:
    """Whether the broker still has a claimed message, and nothing but its content tells which row it belongs to.

    Such a row has to wait for it: sent round by itself, it would leave the original to run as another message.
    """
    if row.message_id or row.round != 1:
        return False
    if row.at_broker is None:  # the release before claimed it
        return handler is not None and handler.atomic
    return row.at_broker


def stands(row: ProcessedMessage, database: str) -> bool:
    """Whether a record that this transaction wrote before its handler ran is still there; `Proof` knows when to ask."""
    own = {"id": row.pk, "key": row.key} if row.pk else {"alias": row.alias, "queue": row.queue, "key": row.key}
    connection = connections[database]
    found = ask(ProcessedMessage, database, state_of(connection), **own, state=row.state, worker=row.worker)
    if found is not None:
        part(connection, found)
    return found is not None


def gate(row: ProcessedMessage, envelope: Envelope, *, is_dead: bool = False) -> Verdict:
    """What a recorded row says about a delivery of the same key, which `is_dead` where it is a dead letter. Pure."""
    if not row.is_of(envelope):
        return Verdict.REUSED
    if envelope.round < row.round:
        return Verdict.DONE
    if row.state in ProcessedMessage.AWAITING:
        return Verdict.RUN
    if row.state == State.PROCESSING:
        if row.lease_token is None:
            return Verdict.COUNTED
        return Verdict.DONE if getattr(row, "lease_lives", False) else Verdict.CRASHED
    # A higher round than recorded: the inbox was set back to an older state, and the retry is newer than the failure;
    # or the message went on in another database, and has come back from there.
    if row.state in (State.FAILED, State.SUPERSEDED) and envelope.round > row.round:
        return Verdict.RUN
    # Anyone may write to a dead-letter queue: what is still in its own queue is not dead.
    if row.state == State.FAILED and row.is_dead_letter and envelope.round == row.round and not is_dead:
        return Verdict.RUN
    return Verdict.DONE


def existing(row: ProcessedMessage) -> Place:
    """The place of a recorded row, as it was read."""
    return Place(row, (row.state,), row.lease_token if row.state == State.PROCESSING else None)


def abandoned(row: ProcessedMessage) -> Place:
    """The place of a row whose claim ran out, unless that is renewed meanwhile."""
    place = existing(row)
    place.is_abandoned = True
    return place


def fresh(alias: str, queue: str, envelope: Envelope, *, key: uuid.UUID | None = None) -> Place:
    """The place of a message that was never recorded."""
    round_ = min(envelope.round, MAX_ROUND)
    own = {"alias": alias, "queue": queue, "key": key or envelope.key or uuid.uuid4(), "round": round_}
    return Place(ProcessedMessage.of({**ProcessedMessage.blank_values(), **envelope.columns, **own}))


def fill(row: ProcessedMessage, envelope: Envelope) -> None:
    """Put the content of a message into its row."""
    for name, value in envelope.columns.items():
        setattr(row, name, value)


def _escape(row: ProcessedMessage) -> None:
    for name in ("message_id", "exchange", "routing_key", "type", "content_type", "correlation_id", "causation_id"):
        setattr(row, name, _ascii(getattr(row, name)))
    row.reply_to = _ascii(row.reply_to)
    row.headers = {}
    if row.body_encoding == "":
        row.body, row.body_encoding = base64.b64encode(row.body.encode()).decode("ascii"), "base64"


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")[:255]
