"""What the steps of the model are made of: actions, the size of the world, and changes of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.model.states import (
    ANONYMOUS,
    AWAITING,
    BATCH,
    PENDING,
    RUNNING,
    Consumer,
    Database,
    Outgoing,
    Relay,
    Row,
    State,
)  # fmt: skip

# What the release before does otherwise. The same words name mutants, which everybody follows.
OLD = frozenset(
    {
        "mark by number alone",
        "compare by number alone",
        "adopt anything",
        "count every abandoned claim",
        "success overwrites the count",
        "replay of round 1 only",
        "reports without identity",
        "reports end at a lock",
        "no way out of processing",
        "failed round stays failed",
        "a claim's lost answer is forgotten",
        "phantoms stay",
        "handler's database alone",
        "stop releases nothing",
        "content is not brought",
        "claims do not say that they began",
        "claims do not say who has the message",
        "last attempts run unclaimed",
    }
)
FIELDS = ("at_broker", "started", "interrupted")


class Action(NamedTuple):
    """A step of the model.

    Attributes:
        name: what is done.
        kind: "progress", what the system does by itself; "trouble", what may befall it; "operator".
        by: the functions of `messaging` that do it.
        at: the kill points that lie at its end.
    """

    name: str
    kind: str
    by: tuple[str, ...] = ()
    at: tuple[str, ...] = ()


ACTIONS: dict[str, Action] = {}


def action(name: str, kind: str, *by: str, at: tuple[str, ...] = ()) -> Action:
    """Declare an action; `by` names functions below `messaging`."""
    made = ACTIONS[name] = Action(name, kind, tuple(f"messaging.{one}" for one in by), at)
    return made


class Step(NamedTuple):
    """An action and the state that it leads to; `about` says whose."""

    action: Action
    state: State
    about: str = ""


@dataclass(frozen=True)
class Configuration:
    """How large the world is, and what may happen in it.

    Attributes:
        name: what it is called.
        says: what it is about.
        messages: how many are published; without ids they have the same content.
        identified: whether they carry an id.
        atomic: whether the handler shares its transaction with the record.
        batch: whether the handler takes two at once.
        queues, databases: how many.
        relays, consumers: of which release each is, "new" or "old".
        attempts: `max_attempts`.
        copies: of one round in a queue at most, before relays send no more.
        locks: whether the record is written before the handler runs, and locked meanwhile; not so on SQLite.
        unroutable: whether the broker may return what is sent.
        trouble: what may go wrong, `troubles` times in all; again and again where that is None.
        rarely: what operators do, and other rare events, with how often at most.
        rounds: no more trouble from this round on, so that the world stays finite.
        relaxed: invariants that do not hold here, with the reason.
        begun: steps that were taken before, so that what lies deep is near.
        mutant: the rule that is broken.
    """

    name: str
    says: str = ""
    messages: int = 1
    identified: bool = True
    atomic: bool = True
    batch: bool = False
    queues: int = 1
    databases: int = 1
    relays: tuple[str, ...] = ("new",)
    consumers: tuple[str, ...] = ("new",)
    attempts: int = 2
    copies: int = 1
    locks: bool = True
    unroutable: bool = False
    trouble: frozenset[str] = frozenset()
    troubles: int | None = 2
    rarely: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 3
    relaxed: Mapping[str, str] = field(default_factory=dict)
    begun: tuple[str, ...] = ()
    mutant: str = ""


class Model:
    """A configuration, and the rules that hold in it."""

    def __init__(self, configuration: Configuration) -> None:
        self.of = configuration
        self.mutants = frozenset({configuration.mutant}) - {""}
        self.places = {name: index for index, name in enumerate(configuration.rarely, 1)}

    def deviates(self, old: bool, rule: str) -> bool:
        """Whether somebody breaks a rule: everybody in a mutant, and the release before some of them."""
        return rule in self.mutants or (old and rule in OLD)

    def start(self) -> State:
        """Nothing is published yet."""
        of = self.of
        pairs = of.messages * of.queues
        return State(
            databases=tuple(Database(effects=(0,) * pairs) for _ in range(of.databases)),
            broker=(),
            relays=tuple(Relay(old=release == "old") for release in of.relays),
            consumers=tuple(Consumer(old=release == "old") for release in of.consumers),
            reports=(),
            left=(of.troubles or 0, *of.rarely.values()),
            unpublished=of.messages,
            owed=(0,) * ((of.messages if of.identified else 1) * of.queues),
            lost=(False,) * pairs,
            gone=(False,) * pairs,
        )

    def may(self, state: State, name: str) -> bool:
        """Whether trouble or an operator's act may still happen."""
        if name in self.of.trouble:
            return self.is_calm(state) if self.of.troubles is None else state.left[0] > 0
        place = self.places.get(name)
        return place is not None and state.left[place] > 0

    def spent(self, state: State, name: str) -> State:
        """The state in which it may happen once less."""
        place = 0 if name in self.of.trouble else self.places[name]
        if place == 0 and self.of.troubles is None:
            return state
        left = state.left
        return state._replace(left=(*left[:place], left[place] - 1, *left[place + 1 :]))

    def is_calm(self, state: State) -> bool:
        """Whether more trouble still leaves a finite world: few rounds, few rows without ids."""
        for database in state.databases:
            if not self.of.identified and len(database.inbox) > self.of.messages + 1:
                return False
            if any(row and row.round > self.of.rounds for row in database.inbox):
                return False
        return True

    def has_lost(self, state: State) -> bool:
        """Whether the broker ever lost what it had."""
        place = self.places.get("the broker loses what is ready")
        return place is not None and state.left[place] < self.of.rarely["the broker loses what is ready"]

    def pair(self, message: int, queue: int) -> int:
        """The place of a message in a queue among the ghosts."""
        return message * self.of.queues + queue - 1

    def owe(self, state: State, message: int, queue: int, change: int) -> State:
        """Note that an attempt began, or that one was counted or forgiven. Below zero one was made up."""
        place = self.pair(message if self.of.identified else 0, queue)
        owed = _with_change(state.owed, place, change)
        there = _with_change(state.owed_there, place, change) if state.owed_there and change > 0 else state.owed_there
        return state._replace(owed=owed, owed_there=there)

    def is_locked(self, state: State, database: int, queue: int, key: int, but: int = -1) -> bool:
        """Whether a handler's open transaction holds a message's row."""
        if not self.of.locks:
            return False
        for index, one in enumerate(state.consumers):
            if index == but or one.database != database:
                continue
            if one.phase == BATCH and any(copy.key == key and copy.queue == queue for copy in one.copies):
                return True
            if one.phase == RUNNING and self.of.atomic and one.row and one.row.key == key and one.row.queue == queue:
                return True
        return False

    def comes_again(self, row: Row, old: bool) -> bool:
        """Whether the broker still has a claimed message, and only its content tells which row it belongs to."""
        if row.key < ANONYMOUS or row.round != 1:
            return False
        if old or row.at_broker is None:
            return self.of.atomic
        return row.at_broker


def _with_change(owed: tuple[int, ...], place: int, change: int) -> tuple[int, ...]:
    return (*owed[:place], min(3, max(-1, owed[place] + change)), *owed[place + 1 :])


# Rows


def changed(state: State, database: int, **changes: object) -> State:
    """The state with other contents of a database."""
    databases = list(state.databases)
    databases[database] = databases[database]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(databases=tuple(databases))


def with_outgoing(state: State, database: int, number: int, row: Outgoing | tuple[()]) -> State:
    """With another outbox row under a number."""
    rows = state.databases[database].outbox
    return changed(state, database, outbox=(*rows[: number - 1], row, *rows[number:]))


def with_row(state: State, database: int, number: int, row: Row | tuple[()]) -> State:
    """With another inbox row under a number; 0 to insert it."""
    rows = state.databases[database].inbox
    if number == 0:
        return changed(state, database, inbox=(*rows, row))
    return changed(state, database, inbox=(*rows[: number - 1], row, *rows[number:]))


def outgoing_of(state: State, database: int, number: int) -> Outgoing | tuple[()]:
    """The outbox row with a number; empty where there is none."""
    rows = state.databases[database].outbox
    return rows[number - 1] if 0 < number <= len(rows) else ()


def row_of(state: State, database: int, number: int) -> Row | tuple[()]:
    """The inbox row with a number; empty where there is none."""
    rows = state.databases[database].inbox
    return rows[number - 1] if 0 < number <= len(rows) else ()


def number_of(state: State, database: int, queue: int, key: int) -> int:
    """The number of the inbox row of a key; 0 where there is none."""
    for index, row in enumerate(state.databases[database].inbox):
        if row and row.key == key and row.queue == queue:
            return index + 1
    return 0


def with_consumer(state: State, index: int, consumer: Consumer) -> State:
    """With another consumer in a place."""
    return state._replace(consumers=(*state.consumers[:index], consumer, *state.consumers[index + 1 :]))


def next_round(state: State, database: int, number: int) -> State:
    """With an outbox row for the round that the inbox row is in now."""
    row = row_of(state, database, number)
    assert row
    sent = Outgoing(row.message, row.key, row.queue, row.round, number)
    return changed(state, database, outbox=(*state.databases[database].outbox, sent))


def unsent(state: State, database: int, number: int, *states: str) -> list[int]:
    """The numbers of the outbox rows of an inbox row's rounds that are in one of these states (pending)."""
    row = row_of(state, database, number)
    wanted = states or (PENDING,)
    return [
        index + 1
        for index, one in enumerate(state.databases[database].outbox)
        if one and row and one.inbox == number and one.key == row.key and one.state in wanted
    ]


def waits_for(row: Row | tuple[()], sent: Outgoing) -> bool:
    """Whether an inbox row waits for exactly this round."""
    return bool(row) and row.key == sent.key and row.state in AWAITING and row.round == sent.round  # type: ignore[union-attr]
