"""What the parts of one process's processor share, and one delivery on its way through them.

They share the claims that the process holds, which are kept alive while their handlers run.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Literal, Protocol

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import conf
from messaging.db.clock import Now
from messaging.db.connections import Outages
from messaging.db.patience import note_line
from messaging.db.session import number_of
from messaging.handlers import Handler, Registry
from messaging.message import HandlerContext, ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.models.spools import Spool
from messaging.processing.elsewhere import Elsewhere
from messaging.processing.execution import call
from messaging.processing.inbox import TWIN_WAIT, AlreadyRecorded, Held, Place, SetAside
from messaging.supervising import log_records
from messaging.supervising.ledger import Entry
from messaging.wire.bodies import one_line, storable
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

LATE = 2 / 3  # of a lease without a renewal, which is due each third


@dataclass(eq=False, slots=True)
class Claim:
    """One claim of this process.

    Attributes:
        token, database: which row it is.
        name: what the log calls its message.
        about: what a log record says of it.
        at_broker: whether its handler's transaction is recorded in the row, which it locks while it runs.
        connection: of the thread that runs it.
        renewed_at: when it was last made or renewed, CLOCK_MONOTONIC.
        is_idle: whether it runs nothing, because its database went away or a twin was in the way.
    """

    token: uuid.UUID
    database: str
    name: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    at_broker: bool = False
    connection: BaseDatabaseWrapper | None = None
    renewed_at: float = field(default_factory=time.monotonic)
    is_idle: bool = False


class Claims:
    """The inbox rows that this process has claimed; safe to share between threads.

    Args:
        lease: seconds for which a claim holds without being renewed.
        outages: what is known of the databases.
    """

    def __init__(self, lease: float, outages: Outages) -> None:
        self._lease = lease
        self._outages = outages
        self._claims: dict[uuid.UUID, Claim] = {}
        self._lock = threading.Lock()
        self.are_interrupted = False  # set once this process is asked to stop
        self.are_over = False  # set once it gives up what it runs
        self.told: set[str] = set()  # databases in which this worker says that it is stopping

    @contextmanager
    def held(
        self, token: uuid.UUID | None, database: str, *, work: Work | None = None, at_broker: bool = False
    ) -> Iterator[None]:
        """Have a claim renewed while its handler runs, of `work`; it stays ours whatever goes wrong in between."""
        if token is None:
            yield
            return
        name, about = (work.name, work.about()) if work is not None else ("", {})
        claim = Claim(token, database, name, about, at_broker, connections[database])
        note_line(connections[database])
        with self._lock:
            self._claims[token] = claim
        try:
            yield
        except AlreadyRecorded:
            self.drop(claim)
            raise
        except BaseException:  # it may well stand: the database went away, or its answer was lost
            claim.is_idle = True
            raise
        self.drop(claim)

    def is_idle(self, token: uuid.UUID | None) -> bool:
        """Whether a claim is ours and runs nothing, so that its delivery may go on under it."""
        claim = self._claims.get(token) if token is not None else None
        return claim is not None and claim.is_idle

    def take(self, token: uuid.UUID | None) -> bool:
        """Go on under a claim that is ours and runs nothing. One delivery may, so that each of two twins has a row."""
        with self._lock:
            claim = self._claims.get(token) if token is not None else None
            if claim is None or not claim.is_idle:
                return False
            del self._claims[claim.token]
            return True

    def of(self, database: str) -> list[Claim]:
        """All of a database, idle ones too."""
        with self._lock:
            return [claim for claim in self._claims.values() if claim.database == database]

    def drop(self, claim: Claim) -> None:
        """Forget one that ended."""
        with self._lock:
            if self._claims.get(claim.token) is claim:
                del self._claims[claim.token]

    def renew(self, database: str) -> None:
        """Extend every running claim of a database. Raises DatabaseUnavailable."""
        # An idle claim may run out: its delivery may have gone to another process, which must not wait for us.
        claims = [claim for claim in self.of(database) if not claim.is_idle]
        if not claims:
            return
        now = time.monotonic()
        rows = ProcessedMessage.objects.using(database).filter(
            lease_token__in=[claim.token for claim in claims], state=ProcessedMessage.State.PROCESSING
        )
        with self._outages.watch(database), transaction.atomic(using=database):
            if connections[database].features.has_select_for_update_skip_locked:
                # A handler's own transaction locks its row while it runs: waiting for it, the others would lapse.
                free = rows.select_for_update(skip_locked=True).values_list("pk", flat=True)
                rows = ProcessedMessage.objects.using(database).filter(pk__in=list(free))
            rows.update(leased_until=Now() + timedelta(seconds=self._lease))
        for claim in claims:
            claim.renewed_at = now

    def end_here(self) -> None:
        """Never return, once this process gives up what it runs: it is about to end, and has cut the connection."""
        if self.are_over:
            connections.close_all()
            threading.Event().wait()

    def late(self) -> list[Claim]:
        """The running ones that could not be renewed for so long that they are about to lapse."""
        before = time.monotonic() - LATE * self._lease
        with self._lock:
            return [claim for claim in self._claims.values() if not claim.is_idle and claim.renewed_at < before]


class Incoming(Protocol):
    """What the processor needs of a backend's delivery; its envelope is made once, and kept."""

    queue: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    redelivered: bool
    spool: Spool | None

    @property
    def envelope(self) -> Envelope:
        """The message as it was first published."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do with a delivery.

    Attributes:
        action: "ack" it now; "done": it was acknowledged on the way; "set_aside": nothing was spent, process it again.
        after: seconds until then.
        held: whether it was set aside because an open transaction has its record.
        alone: whether it was set aside because nothing else is to run beside it.
    """

    action: Literal["ack", "done", "set_aside"]
    after: float = 0.0
    held: bool = False
    alone: bool = False


ACK = Settlement("ack")
DONE = Settlement("done")
ASIDE = Settlement("set_aside", after=TWIN_WAIT)
HELD = Settlement("set_aside", after=TWIN_WAIT, held=True)
ALONE = Settlement("set_aside", alone=True)


def set_aside(reason: SetAside) -> Settlement:
    """What follows from it."""
    return HELD if isinstance(reason, Held) else ASIDE


# Enters an attempt into the process's ledger while it runs; yields what lifts its time limit.
EnterLedger = Callable[[Entry], AbstractContextManager[Callable[[], None]]]
Call = Callable[[Handler, "ReceivedMessage | list[ReceivedMessage]", HandlerContext], None]


@dataclass(frozen=True)
class Station:
    """Where one worker process stands; safe to share between its threads.

    Attributes:
        alias: alias of `MESSAGING`, with its `settings`.
        worker: the name under which claims and attempts are recorded.
        outages, claims: what is known of the databases, and of what runs here under a lease.
        handlers: the registry to find handlers in.
        elsewhere: what the other databases know.
        running: enters an attempt into the process's ledger.
        call: calls a handler.
    """

    alias: str
    worker: str
    settings: conf.AliasSettings
    outages: Outages
    claims: Claims
    handlers: Registry
    elsewhere: Elsewhere
    running: EnterLedger
    call: Call = call

    @property
    def databases(self) -> list[str]:
        """Where rows of this alias may be: its `DATABASES`, and those of its handlers."""
        own = {handler.database for handler in self.handlers.all(self.alias)}
        return list(dict.fromkeys([*(self.settings.databases or (self.database,)), *sorted(own)]))

    @property
    def database(self) -> str:
        """Where that is recorded which no handler takes."""
        return self.settings.databases[0] if self.settings.databases else "default"


@dataclass
class Work:
    """One delivery on its way through the processor; `lift` ends its handler's time limit, `has_begun` is its run.

    `attempt` is the number of the one that is made, 1 as long as nobody has looked.

    `left_over` are the rows in other databases that wait for it, and no longer do once its own is durable. `alone` says
    that no other atomic handler runs in this process meanwhile.
    """

    envelope: Envelope
    queue: str
    handler: Handler
    redelivered: bool
    ack: Callable[[], object]
    acked: bool = False
    lift: Callable[[], None] = lambda: None
    has_begun: bool = False
    attempt: int = 1
    left_over: Sequence[ProcessedMessage] = ()
    alone: bool = True

    @property
    def database(self) -> str:
        """Where its handler's transaction runs."""
        return self.handler.database

    @property
    def name(self) -> str:
        """What the log calls it."""
        return one_line(f"Message {self.envelope.message_id or 'without id'} of the queue {self.queue}")

    def about(self) -> dict[str, Any]:
        """What a log record says of it."""
        own = {"alias": self.handler.using, "queue": self.queue, "handler": self.handler.name, "attempt": self.attempt}
        return log_records.about(self.envelope, **own)

    def entry(self, station: Station, place: Place, started: float, *, batch: int = 1) -> Entry:
        """What the ledger shows while it runs; for a batch its first message stands for all."""
        return Entry(
            alias=station.alias,
            queue=self.queue,
            key=place.row.key.hex,
            digest=self.envelope.digest.hex,
            headers_digest=self.envelope.headers_digest.hex,
            round=place.row.round,
            message_id=storable(self.envelope.message_id, 255),
            database=self.database,
            handler=self.handler.name,
            started=started,
            timeout=self.handler.timeout,
            token=str(place.token or ""),
            session=number_of(connections[self.database]),
            batch=batch,
            row=place.row.id or 0,
        )


@cache
def inserts_first(database: str) -> bool:
    """Whether a record inserted before the handler runs blocks only its twin, not every other writer (SQLite)."""
    return connections[database].vendor != "sqlite"
