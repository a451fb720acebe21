"""The inbox: which row a delivery belongs to, what that says, and what follows from an attempt."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.protocol import Model, next_round, number_of, row_of, with_row
from tests.model.states import (
    ANONYMOUS,
    AWAITING,
    DISCARDED,
    FAILED,
    OUTAGE,
    PROCESSED,
    PROCESSING,
    RETRYING,
    SUPERSEDED,
    Consumer,
    Copy,
    Row,
    State,
)  # fmt: skip

RUNS, DONE, CRASHED, COUNTED = "run", "done", "crashed", "counted"


class Found(NamedTuple):
    """Where a delivery is recorded. `blocked`: its own last run may still be recorded, so it waits."""

    database: int = 0
    number: int = 0
    row: Row | tuple[()] = ()
    blocked: bool = False


def look(model: Model, state: State, consumer: Consumer) -> Found:
    """The row that decides about the delivery in hand, of those in all databases; none for a new message."""
    others = [] if model.deviates(consumer.old, "handler's database alone") else list(range(len(state.databases)))
    found = []
    for database in (consumer.home, *(one for one in others if one != consumer.home)):
        one = _find(model, state, database, consumer)
        if one.blocked or (one.row and not consumer.copies[0].key):
            return one
        if one.row:
            found.append(one)
    return max(found, key=_rank, default=Found(consumer.home))  # of equals the first, which is at home


def _rank(found: Found) -> tuple[bool, int, bool, bool]:
    """What is processed, else the latest round; of one round what was laid aside, and last what went on elsewhere."""
    row = found.row
    assert row
    return row.state == PROCESSED, row.round, row.state != SUPERSEDED, row.state == DISCARDED


def _find(model: Model, state: State, database: int, consumer: Consumer) -> Found:
    copy = consumer.copies[0]
    if copy.key:
        number = number_of(state, database, copy.queue, copy.key)
        return Found(database, number, row_of(state, database, number))
    if not consumer.again:
        return Found(database)
    alike = [
        Found(database, number, row)
        for number, row in enumerate(state.databases[database].inbox, 1)
        if row and row.key >= ANONYMOUS and row.queue == copy.queue and row.state == PROCESSING
    ]
    ours = next((one for one in alike if one.row and one.row.token and one.row.token == consumer.waiting), None)
    found = ours or next((one for one in alike if one.row and _may_adopt(model, one.row, consumer)), None)
    if found:
        return found
    if any(one.row and model.comes_again(one.row, consumer.old) for one in alike):
        return Found(blocked=True)  # perhaps its own last run, whose crash is about to be recorded
    return Found(database)


def _may_adopt(model: Model, row: Row, consumer: Consumer) -> bool:
    """Whether nobody runs a row and the broker still has its message, so that this delivery may be it."""
    if row.token and not row.lapsed:
        return False
    if model.deviates(consumer.old, "adopt anything"):
        return True
    return row.round == 1 and (not row.token or model.comes_again(row, consumer.old))


def gate(model: Model, row: Row, copy: Copy) -> str:
    """What a row says about a delivery of its key."""
    if copy.round < row.round and "no round fence" not in model.mutants:
        return DONE
    if row.state in AWAITING:
        return RUNS
    if row.state == PROCESSING:
        if not row.token:
            return COUNTED
        return CRASHED if row.lapsed else DONE
    if row.state not in (FAILED, SUPERSEDED):
        return DONE
    is_alive = row.state == FAILED and row.buried and copy.round == row.round and not copy.dead
    return RUNS if copy.round > row.round or is_alive else DONE


def unclaimed(model: Model, row: Row, old: bool) -> Row:
    """A row without its claim."""
    if old or "claims leave their marks" in model.mutants:
        return row._replace(token=0, lapsed=0)
    return row._replace(token=0, lapsed=0, at_broker=None, started=False, interrupted=False)


def stands(model: Model, state: State, consumer: Consumer) -> bool:
    """Whether the place of an outcome is as it was read: the compare-and-set."""
    seen, row = consumer.row, row_of(state, consumer.database, consumer.number)
    if not row or not seen:
        return False
    if row.key != seen.key and not model.deviates(consumer.old, "compare by number alone"):
        return False
    if consumer.token:
        if "no claim check" in model.mutants:
            return True
        return row.state == PROCESSING and row.token == consumer.token and row.round == seen.round
    return row.state == seen.state and (row.round == seen.round or "failures without the round" in model.mutants)


def consequence(model: Model, state: State, database: int, number: int, row: Row, old: bool) -> State:
    """A failed attempt, `row` with its count: another round with its outbox row, or rest as failed."""
    if row.attempts >= model.of.attempts:
        return with_row(state, database, number, unclaimed(model, row._replace(state=FAILED, buried=False), old))
    return again(model, state, database, number, row, old)


def again(model: Model, state: State, database: int, number: int, row: Row, old: bool) -> State:
    """A message goes round again, whatever it counts."""
    row = unclaimed(model, row._replace(state=RETRYING, round=row.round + 1, buried=False), old)
    state = with_row(state, database, number, row)
    number = number or len(state.databases[database].inbox)
    return state if "failure without its retry" in model.mutants else next_round(state, database, number)


def abandoned(model: Model, state: State, database: int, number: int, old: bool, content: Copy | None = None) -> State:
    """An unfinished claim of a dead worker: an attempt if it began and nobody interrupted it."""
    row = row_of(state, database, number)
    assert row
    if content is not None:
        row = row._replace(content=True, message=content.message)
    counts = row.at_broker is None or (row.started and not row.interrupted and row.lapsed != OUTAGE)
    if counts or model.deviates(old, "count every abandoned claim"):
        state = model.owe(state, row.message, row.queue, -1)
        counted = row._replace(attempts=row.attempts + 1, runs=(*row.runs, row.token))
        return consequence(model, state, database, number, counted, old)
    return again(model, state, database, number, row, old)


def succeed(model: Model, state: State, consumer: Consumer) -> State:
    """The record of a handler that ended well, beside its effect if both are of one transaction."""
    seen, old = consumer.row, consumer.old
    assert seen
    row = row_of(state, consumer.database, consumer.number) or seen
    before = seen.attempts if model.deviates(old, "success overwrites the count") else row.attempts
    if before < row.attempts:
        state = state._replace(forgotten=True)
    # Who has the message is left standing: it tells later that it came again.
    done = row._replace(state=PROCESSED, attempts=before + 1, token=0, lapsed=0, started=False, interrupted=False)
    done = done._replace(buried=False)
    state = model.owe(state, row.message, seen.queue, -1)
    return with_row(state, consumer.database, consumer.number, done)


def effect(model: Model, state: State, database: int, message: int, queue: int) -> State:
    """What the handler does."""
    place, one = model.pair(message, queue), state.databases[database]
    effects = (*one.effects[:place], min(2, one.effects[place] + 1), *one.effects[place + 1 :])
    databases = (*state.databases[:database], one._replace(effects=effects), *state.databases[database + 1 :])
    return state._replace(databases=databases)
