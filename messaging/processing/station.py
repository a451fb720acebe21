"""What the parts of one process's processor share, and one delivery on its way through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from django.db import connections

from messaging import conf
from messaging.db.outages import Outages
from messaging.db.session import number_of
from messaging.handlers import Handler, Registry
from messaging.message import ReceivedMessage, Running
from messaging.models import ProcessedMessage
from messaging.models.spools import Spool
from messaging.processing.claims import Claims
from messaging.processing.elsewhere import Elsewhere
from messaging.processing.execution import call
from messaging.processing.inbox import TWIN_WAIT, Held, Place, SetAside
from messaging.supervising.ledger import Entry
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from messaging.wire.text import one_line, storable


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
RunningNow = Callable[[Entry], AbstractContextManager[Callable[[], None]]]
Call = Callable[[Handler, "ReceivedMessage | list[ReceivedMessage]", Running], None]


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
    running: RunningNow
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

    def entry(self, station: Station, place: Place, started: float, *, batch: int = 1) -> Entry:
        """What the ledger shows while it runs; for a batch its first message stands for all."""
        return Entry(
            alias=station.alias,
            queue=self.queue,
            key=str(place.row.key),
            digest=str(self.envelope.digest),
            headers_digest=str(self.envelope.headers_digest),
            round=place.row.round,
            message_id=storable(self.envelope.message_id, 255),
            database=self.database,
            handler=self.handler.name,
            started=started,
            timeout=self.handler.timeout,
            token=str(place.token or ""),
            session=number_of(connections[self.database]),
            batch=batch,
        )


def inserts_first(database: str) -> bool:
    """Whether a record inserted before the handler runs blocks only its twin, not every other writer (SQLite)."""
    return connections[database].vendor != "sqlite"
