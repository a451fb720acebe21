"""Two deliveries in one transaction, or each alone."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import (
    Model,
    Step,
    action,
    number_of,
    with_consumer,
    with_row,
)  # fmt: skip
from tests.model.recording import (
    effect,
)  # fmt: skip
from tests.model.states import (
    BATCH,
    FRESH,
    GOT,
    PROCESSED,
    RECORDED,
    Consumer,
    Row,
    State,
)  # fmt: skip

RUN_BATCH = action("run a batch", "progress", "processing.batching.run_batch", "processing.batching._run")
COMMIT_BATCH = action("commit a batch", "progress", "processing.batching._insert_all", at=("processor.committed",))
COMMIT_BATCH_UNTOLD = action("commit a batch, the answer lost", "trouble", "processing.batching.run_batch")
FAIL_BATCH = action(
    "a batch fails", "progress", "processing.processor.Processor.process_batch", "processing.batching._take_back"
)


def begin_batch(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Two first deliveries run together; anything else, each alone."""
    keys = [copy.key for copy in one.copies if copy.key]
    plain = all(not copy.redelivered and copy.round == 1 for copy in one.copies) and len(set(keys)) == len(keys)
    known = any(number_of(state, one.home, copy.queue, copy.key) for copy in one.copies if copy.key)
    if plain and not known:
        if not any(model.is_locked(state, one.home, copy.queue, copy.key) for copy in one.copies if copy.key):
            for copy in one.copies:
                state = model.owe(state, copy.message, copy.queue, 1)
            yield Step(RUN_BATCH, with_consumer(state, index, one._replace(phase=BATCH, database=one.home)))
        return
    yield Step(FAIL_BATCH, with_consumer(state, index, one._replace(alone=True)))


def batch(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    forgiven = state
    for copy in one.copies:
        forgiven = model.owe(forgiven, copy.message, copy.queue, -1)
    alone = with_consumer(forgiven, index, one._replace(phase=GOT, alone=True))
    yield Step(FAIL_BATCH, alone)
    if any(number_of(state, one.database, copy.queue, copy.key) for copy in one.copies if copy.key):
        return
    after = forgiven
    for number, copy in enumerate(one.copies):
        done = Row(copy.message, copy.key or FRESH + number, copy.queue, PROCESSED, attempts=1)
        after = with_row(after, one.database, 0, done)
        after = effect(model, after, one.database, copy.message, copy.queue)
    yield Step(COMMIT_BATCH, with_consumer(after, index, one._replace(phase=RECORDED, alone=False)))
    if model.may(state, COMMIT_BATCH_UNTOLD.name):  # each is looked at alone, as if for the first time
        untold = with_consumer(after, index, one._replace(phase=GOT, alone=True))
        yield Step(COMMIT_BATCH_UNTOLD, model.spent(untold, COMMIT_BATCH_UNTOLD.name))
