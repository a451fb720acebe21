"""What happens outside the protocol: brokers and databases that forget, dead letters, a handler that moves."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.invariants import is_somewhere
from tests.model.protocol import Model, Step, action
from tests.model.states import (
    BATCH,
    FAILING,
    GOT,
    IDLE,
    RUNNING,
    Consumer,
    State,
    held_back,
)  # fmt: skip

PURGE = action("the broker loses what is ready", "operator")
DEAD_LETTER = action("the broker gives a message up", "trouble", "backends.database.sweeper.Sweeper._bury")
LAG = action("a copy of the database falls behind", "trouble")
FAIL_OVER = action("failover to the copy", "trouble")
MOVE = action("the handler moves to another database", "operator")


def happening(model: Model, state: State) -> Iterator[Step]:
    """Whatever may happen out there."""
    if state.broker and model.may(state, PURGE.name):
        lost = list(state.lost)
        for copy in state.broker:
            lost[model.pair(copy.message, copy.queue)] = True
        yield Step(PURGE, model.spent(state._replace(broker=(), lost=tuple(lost)), PURGE.name))
    if model.may(state, DEAD_LETTER.name):
        for place, copy in enumerate(state.broker):
            if not copy.dead:
                rest = (*state.broker[:place], *state.broker[place + 1 :])
                buried = copy._replace(dead=True, redelivered=False)
                after = state._replace(broker=held_back(rest, buried))
                yield Step(DEAD_LETTER, model.spent(after, DEAD_LETTER.name), f"message {copy.message}")
    if not state.replica and model.may(state, LAG.name):
        yield Step(LAG, model.spent(state._replace(replica=(state.databases[0],), owed_there=state.owed), LAG.name))
    if state.replica:
        yield Step(FAIL_OVER, _failed_over(model, state))
    if model.may(state, MOVE.name) and all(one.phase == IDLE for one in state.consumers):
        home = (state.home + 1) % len(state.databases)
        consumers = tuple(one._replace(home=home) for one in state.consumers)
        yield Step(MOVE, model.spent(state._replace(home=home, consumers=consumers), MOVE.name))


def _failed_over(model: Model, state: State) -> State:
    """The copy takes over, and knows nothing of what was committed since; open transactions are gone."""
    after = state._replace(
        databases=(*state.replica, *state.databases[1:]), replica=(), owed=state.owed_there, owed_there=()
    )
    consumers = []
    for one in state.consumers:
        if one.phase == BATCH:
            one = Consumer(GOT, one.copies, one.live, alone=True, home=one.home, old=one.old)  # noqa: PLW2901
        elif one.phase == RUNNING and model.of.atomic:  # its error is recorded where it began, if that still stands
            one = one._replace(phase=FAILING)  # noqa: PLW2901
        consumers.append(one)
    after = after._replace(consumers=tuple(consumers))
    published = range(model.of.messages - state.unpublished)
    lost = list(state.lost)
    for message in published:
        for queue in range(1, model.of.queues + 1):
            if not is_somewhere(model, after, message, queue, surely=True):
                lost[model.pair(message, queue)] = True
    return after._replace(lost=tuple(lost))
