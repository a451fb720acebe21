"""What a state of the model is: rows, copies at the broker, and who is doing what. All of it is small tuples.

States of rows have the names that `messaging.models` gives them. Where a field is a *ghost*, no program knows it: it
is there for the invariants alone.
"""

from __future__ import annotations

from typing import NamedTuple

PENDING, PUBLISHED, FAILED, DISCARDED = "pending", "published", "failed", "discarded"
PROCESSING, PROCESSED, RETRYING, REQUEUED, SUPERSEDED = "processing", "processed", "retrying", "requeued", "superseded"
AWAITING = (RETRYING, REQUEUED)

# Phases of a relay with its row, and of a consumer with its delivery.
IDLE = "idle"
LEASED, SENT, RETURNED = "leased", "sent", "returned"
GOT, LOOKED, CLAIMED, RUNNING, RAN, FAILING, OWING, MOVING, RECORDED = (
    "got", "looked", "claimed", "running", "ran", "failing", "owing", "moving", "recorded",
)  # fmt: skip
BATCH = "batch"

ANONYMOUS = 10  # keys from here on were drawn, for messages without an id
FRESH = 900  # a new token or key in this step; `canonical()` gives it a small number
UNCLAIMED_RUN = 500  # and its round: the run of a round without a claim
OUTAGE = 2  # how a claim lapsed: in an outage of the database that the sweeper knows of


class Outgoing(NamedTuple):
    """A row of the outbox. `inbox` is the number of the inbox row whose round it is, `key` that row's key."""

    message: int
    key: int
    queue: int = 0  # 0: all that are bound
    round: int = 1
    inbox: int = 0
    state: str = PENDING
    token: int = 0
    lapsed: bool = False
    epoch: int = 0


class Row(NamedTuple):
    """A row of the inbox. `runs` are those that are recorded as attempts and may be reported again.

    `buried` says that it failed for a dead letter, `edited` that a copy with another content took its place.
    """

    message: int  # ghost: which message it is about
    key: int
    queue: int
    state: str = PROCESSING
    round: int = 1
    attempts: int = 0
    token: int = 0
    lapsed: int = 0
    content: bool = True
    at_broker: bool | None = None
    started: bool = False
    interrupted: bool = False
    runs: tuple[int, ...] = ()
    buried: bool = False
    edited: bool = False


class Copy(NamedTuple):
    """A message in a queue. `key` is 0 where it has no id and is no later round."""

    queue: int
    message: int
    key: int
    round: int = 1
    redelivered: bool = False
    dead: bool = False


class Relay(NamedTuple):
    """A relay and the row it holds, as it was when it was leased."""

    phase: str = IDLE
    database: int = 0
    number: int = 0
    row: Outgoing | tuple[()] = ()
    old: bool = False


class Consumer(NamedTuple):
    """A worker of a consumer and its deliveries: the first is being processed, others were delivered with it.

    `row` is the place of its outcome as it was read, `number` its number, 0 where it is to be inserted. `elsewhere` is
    an unfinished row of the message in another database, which ends once the outcome is recorded here.
    """

    phase: str = IDLE
    copies: tuple[Copy, ...] = ()
    live: bool = True  # the channel that it was delivered on
    acked: bool = False
    again: bool = False  # redelivered, or looked at once more
    alone: bool = False  # its batch did not work out
    database: int = 0
    number: int = 0
    row: Row | tuple[()] = ()
    token: int = 0
    run: int = 0
    waiting: int = 0  # a claim of ours that runs nothing
    elsewhere: tuple[int, int, Row] | tuple[()] = ()
    before: tuple[int, ...] = ()  # rows of the same content that were there when it began
    void: bool = False  # an operator has requeued the message since
    stopping: bool = False
    home: int = 0  # the handler's database
    old: bool = False


class Report(NamedTuple):
    """A death that a successor has to record.

    `row` is its row's number once it made one that may be a phantom; -1 while it is about to make one.
    """

    database: int
    queue: int
    message: int  # ghost
    key: int
    round: int
    token: int
    run: int
    before: tuple[int, ...]
    void: bool = False
    row: int = 0
    last: bool = False  # ghost: the run was the last that the attempts allow


class Database(NamedTuple):
    """One database. A row's number is its place; a deleted row leaves an empty one. `effects` are ghosts."""

    outbox: tuple[Outgoing | tuple[()], ...] = ()
    inbox: tuple[Row | tuple[()], ...] = ()
    effects: tuple[int, ...] = ()


class State(NamedTuple):
    """Everything. `left` says how often each rare event may still happen."""

    databases: tuple[Database, ...]
    broker: tuple[Copy, ...]
    relays: tuple[Relay, ...]
    consumers: tuple[Consumer, ...]
    reports: tuple[Report, ...]
    left: tuple[int, ...]
    unpublished: int
    home: int = 0
    replica: tuple[Database, ...] = ()  # a lagging copy of the first database
    owed: tuple[int, ...] = ()  # ghost: attempts that began and are not counted, by content and queue
    owed_there: tuple[int, ...] = ()  # ghost: the same where the lagging copy takes over, which knows no count since
    lost: tuple[bool, ...] = ()  # ghost: lost by the broker or a failover, by message and queue
    gone: tuple[bool, ...] = ()  # ghost: ended, and deleted since
    early: bool = False  # ghost: something ran on a delivery of an earlier round
    forgotten: bool = False  # ghost: a death, or a count of one, went by without being counted
    beyond: bool = False  # ghost: something ran in the round of a last attempt whose death is still to be told


def held_back(copies: tuple[Copy, ...], *more: Copy) -> tuple[Copy, ...]:
    """The broker's copies with others."""
    return tuple(sorted((*copies, *more)))
