"""What a consumer does with a delivery: look, claim, run, record, acknowledge."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.admitting import ACK_UNRUN, dead, enter, gone_on, known, running
from tests.model.batches import batch, begin_batch
from tests.model.protocol import (
    Action,
    Model,
    Step,
    action,
    next_round,
    number_of,
    row_of,
    with_consumer,
    with_row,
)  # fmt: skip
from tests.model.recording import (
    consequence,
    effect,
    look,
    stands,
    succeed,
    unclaimed,
)  # fmt: skip
from tests.model.states import (
    ANONYMOUS,
    BATCH,
    CLAIMED,
    FAILING,
    FRESH,
    GOT,
    IDLE,
    LOOKED,
    MOVING,
    OWING,
    PROCESSING,
    RAN,
    RECORDED,
    RUNNING,
    SUPERSEDED,
    Consumer,
    Copy,
    Row,
    State,
)  # fmt: skip

DELIVER = action(
    "deliver", "progress", "models.embedded.EmbeddedMessageQuerySet.take", at=("embedded.taken", "consumer.received")
)
BEGIN = action("begin the claimed run", "progress", "processing.attempting.Attempts._begin", at=("processor.begun",))
COMMIT = action(
    "commit the handler",
    "progress",
    "processing.execution.proven_commit",
    "processing.attempting.Attempts._write_processed",
    at=("processor.handled", "processor.committed"),
)
COMMIT_UNTOLD = action("commit the handler, the answer lost", "trouble", "processing.execution.proven_commit")
FAIL = action("the handler fails", "progress", "processing.attempting.Attempts._try", at=("processor.rolled_back",))
DOOMED = action(
    "the handler rolls back and returns",
    "trouble",
    "processing.execution.Proof.refuse_other",
    "processing.inbox.stands",
    "processing.inbox.Place.take_back",
    "processing.batching._take_back",
)
AWAY = action(
    "the database goes away", "trouble", "db.connections.Outages.raise_if_away", "processing.station.Claims.held"
)
RECORD_FAILURE = action(
    "record the failure",
    "progress",
    "processing.failures.record",
    "processing.failures._record_once",
    "processing.attempting.Attempts._record",
    at=("processor.recorded",),
)
RECORD_FAILURE_UNTOLD = action(
    "record the failure, the answer lost", "trouble", "processing.attempting.Attempts._record"
)
WRITE_RETRY = action("write the retry", "progress")  # a mutant's
HANDLE = action("the handler ends", "progress", "processing.attempting.Attempts._call")
RECORD_RUN = action(
    "record a run without a transaction",
    "progress",
    "processing.attempting.Attempts._finish_claimed",
    at=("processor.handled",),
)
LOOK = action("look, and claim later", "trouble", "processing.processor.Processor._find_alike")
LOOK_AGAIN = action("look again", "progress", "processing.processor.Processor._settle")
SUPERSEDE = action(
    "retire its row elsewhere", "progress", "processing.elsewhere.Elsewhere.retire", at=("processor.moved",)
)
SUPERSEDE_UNTOLD = action(
    "retire its row elsewhere, the answer lost",
    "trouble",
    "processing.elsewhere.Elsewhere.retire",
    "processing.attempting.Attempts._retire_others",
)
ABSORB = action("take over a crash that was counted", "progress", "processing.without_handler.absorb_crash")
ACK = action(
    "acknowledge",
    "progress",
    "models.embedded.EmbeddedMessageQuerySet.remove",
    at=("consumer.acked", "embedded.removed"),
)


def consuming(model: Model, state: State) -> Iterator[Step]:
    """What each consumer may do next by itself."""
    for index, one in enumerate(state.consumers):
        about = _about(one.copies[0]) if one.copies else ""
        for step in PHASES[one.phase](model, state, index, one):
            yield step if step.about else step._replace(about=about)


def _about(copy: Copy) -> str:
    return f"message {copy.message}, round {copy.round}{', redelivered' if copy.redelivered else ''}"


def _idle(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    if one.stopping:
        return
    last = None
    for place, copy in enumerate(state.broker):
        if copy == last:
            continue
        last, rest = copy, (*state.broker[:place], *state.broker[place + 1 :])
        got = Consumer(GOT, (copy,), again=copy.redelivered, home=one.home, old=one.old)
        yield Step(DELIVER, with_consumer(state._replace(broker=rest), index, got), _about(copy))
        if model.of.batch and not copy.dead:
            for further, other in enumerate(rest[place:]):
                if not other.dead:
                    left = (*rest[: place + further], *rest[place + further + 1 :])
                    both = got._replace(copies=(copy, other))
                    yield Step(DELIVER, with_consumer(state._replace(broker=left), index, both), _about(copy))


def _got(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    if one.acked and not one.waiting:  # whoever took its claim answers for it
        yield Step(ACK_UNRUN, with_consumer(state, index, one._replace(phase=RECORDED)))
    elif len(one.copies) > 1 and not one.alone:
        yield from begin_batch(model, state, index, one)
    elif one.copies[0].dead:
        yield from dead(model, state, index, one)
    else:
        yield from _admit(model, state, index, one)


def _admit(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Look at what is recorded, and act on it."""
    copy = one.copies[0]
    if one.again or copy.round > 1 or not model.of.locks:
        found = look(model, state, one)
        if found.blocked:
            return
        if found.row:
            yield from known(model, state, index, one, found)
            return
    elif copy.key and number_of(state, one.home, copy.queue, copy.key):
        if not model.is_locked(state, one.home, copy.queue, copy.key):
            yield Step(LOOK_AGAIN, with_consumer(state, index, one._replace(again=True)))
        return
    elif len(state.databases) > 1 and (found := look(model, state, one)).row:
        yield from known(model, state, index, one, found)
        return
    key = copy.key or FRESH
    if not model.is_locked(state, one.home, copy.queue, key):
        fresh = Row(copy.message, key, copy.queue, round=copy.round)
        mine = one._replace(database=one.home, number=0, row=fresh)
        yield from enter(model, state, index, mine)
        # With an id, one of two who make a row of it fails; without, a crash may be counted in another row meanwhile.
        if copy.key == 0 and one.again and model.may(state, LOOK.name):
            later = mine._replace(phase=LOOKED, row=fresh._replace(key=0))
            yield Step(LOOK, model.spent(with_consumer(state, index, later), LOOK.name))


def _looked(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    assert one.row
    yield from enter(model, state, index, one._replace(row=one.row._replace(key=FRESH)))


# What was claimed


def _claimed(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Retire what is elsewhere, acknowledge where the handler has no transaction, and begin under the claim."""
    row = one.row
    assert row
    if one.elsewhere:
        yield from _taken_over(model, state, index, one)
        return
    if not model.of.atomic and not one.acked and one.live:
        yield Step(ACK, with_consumer(state, index, one._replace(acked=True)))
        return
    if model.is_locked(state, one.database, row.queue, row.key):
        return
    if one.copies[0].key == 0:
        absorbed = _absorbed(model, state, index, one)
        if absorbed is not None:
            yield Step(ABSORB, absorbed)
            return
    if not stands(model, state, one):
        yield Step(LOOK_AGAIN, _look_again(state, index, one))
        return
    if not model.deviates(one.old, "claims do not say that they began"):
        begun = row_of(state, one.database, one.number)
        assert begun
        begun = begun._replace(started=True, interrupted=one.stopping)
        state = with_row(state, one.database, one.number, begun)
    yield Step(BEGIN, running(model, state, index, one))


def _taken_over(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """The claim is durable here: the row elsewhere ends, and then it runs; unless that row has changed since."""
    assert one.elsewhere
    database, number, seen = one.elsewhere
    row = row_of(state, database, number)
    if row and model.is_locked(state, database, row.queue, row.key):
        return
    after = one._replace(elsewhere=())
    if "old row is not retired" in model.mutants:
        yield Step(SUPERSEDE, with_consumer(state, index, after))
    elif _is_as_seen(row, seen):
        superseded = _superseded(model, state, one)
        yield Step(SUPERSEDE, with_consumer(superseded, index, after))
        yield from _untold(model, SUPERSEDE_UNTOLD, _look_again(superseded, index, one, waiting=one.token))
    else:
        yield Step(LOOK_AGAIN, _look_again(state, index, one, waiting=one.token))


def _absorbed(model: Model, state: State, index: int, one: Consumer) -> State | None:
    """A crash of it that was counted before it was claimed is taken over into the claim, and it goes round."""
    mine = row_of(state, one.database, one.number)
    rules = ("phantoms stay", "a counted crash is not taken over")
    if not mine or not stands(model, state, one) or any(model.deviates(one.old, rule) for rule in rules):
        return None
    for number, row in enumerate(state.databases[one.database].inbox, 1):
        bare = row and not row.content and row.state == PROCESSING and not row.token and row.key >= ANONYMOUS
        if row and bare and not mine.attempts:
            mine = mine._replace(attempts=row.attempts, runs=(*mine.runs, *row.runs))
            state = with_row(with_row(state, one.database, number, ()), one.database, one.number, mine)
    if not mine.attempts:
        return None
    after = gone_on(model, state, one.database, one.number, mine, one.old)
    return with_consumer(after, index, one._replace(phase=RECORDED, run=0))


def _untold(model: Model, by: Action, after: State) -> Iterator[Step]:
    """What was committed and whose answer got lost."""
    if model.may(after, by.name):
        yield Step(by, model.spent(after, by.name))


def _look_again(state: State, index: int, one: Consumer, *, waiting: int = 0) -> State:
    again = Consumer(GOT, one.copies, one.live, one.acked, again=True, alone=one.alone, waiting=waiting)
    return with_consumer(state, index, again._replace(home=one.home, old=one.old, stopping=one.stopping))


# The run


def _running_phase(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    row = one.row
    assert row
    failing = with_consumer(state, index, one._replace(phase=FAILING))
    yield Step(FAIL, failing)
    if model.of.atomic:
        yield from _commit(model, state, index, one)
        if "no commit proof" in model.mutants:
            yield Step(DOOMED, with_consumer(state, index, one._replace(phase=RECORDED)))
    else:
        after = effect(model, state, one.database, row.message, row.queue)
        yield Step(HANDLE, with_consumer(after, index, one._replace(phase=RAN)))
    if model.may(state, AWAY.name):
        # What is rolled back because the database went away is held, and goes on under its claim.
        away = _look_again(
            state if one.token else model.owe(state, row.message, row.queue, -1), index, one, waiting=one.token
        )
        yield Step(AWAY, model.spent(away, AWAY.name))


def _commit(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    row = one.row
    assert row
    is_new = one.number == 0
    fits = not number_of(state, one.database, row.queue, row.key) if is_new else stands(model, state, one)
    if not fits:
        yield Step(LOOK_AGAIN, _look_again(state, index, one))
        return
    after = effect(model, succeed(model, state, one), one.database, row.message, row.queue)
    yield Step(COMMIT, with_consumer(after, index, one._replace(phase=RECORDED)))
    yield from _untold(model, COMMIT_UNTOLD, _look_again(after, index, one))


def _failing(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """The attempt, the row's new state and the retry in one transaction."""
    seen = one.row
    assert seen
    if model.is_locked(state, one.database, seen.queue, seen.key, index):
        return
    is_new = one.number == 0
    if number_of(state, one.database, seen.queue, seen.key) if is_new else not stands(model, state, one):
        yield Step(LOOK_AGAIN, _look_again(state, index, one))
        return
    row = row_of(state, one.database, one.number) or seen
    counted = row._replace(attempts=row.attempts + 1, runs=(*row.runs, one.run))
    after = model.owe(state, counted.message, seen.queue, -1)
    after = consequence(model, after, one.database, one.number, counted, one.old)
    number = one.number or len(after.databases[one.database].inbox)
    phase = RECORDED
    if "failure without its retry" in model.mutants and counted.attempts < model.of.attempts:
        phase = OWING
    yield Step(RECORD_FAILURE, with_consumer(after, index, one._replace(phase=phase, number=number)))
    if not one.acked:  # else it is tried until the row says that it is recorded
        yield from _untold(model, RECORD_FAILURE_UNTOLD, _look_again(after, index, one))


def _owing(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """A mutant's: the retry in a transaction of its own."""
    after = next_round(state, one.database, one.number)
    yield Step(WRITE_RETRY, with_consumer(after, index, one._replace(phase=RECORDED)))


def _ran(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Its work is done; the record follows."""
    row = one.row
    assert row
    if model.is_locked(state, one.database, row.queue, row.key):
        return
    if stands(model, state, one):
        after = succeed(model, state, one)
        yield Step(RECORD_RUN, with_consumer(after, index, one._replace(phase=RECORDED)))
    else:
        yield Step(LOOK_AGAIN, _look_again(state, index, one))


# The end


def _moving(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Another row answers for the message: this one ends, unless it has changed since."""
    assert one.elsewhere
    database, number, seen = one.elsewhere
    row = row_of(state, database, number)
    if row and model.is_locked(state, database, row.queue, row.key):
        return
    if not _is_as_seen(row, seen):
        yield Step(LOOK_AGAIN, _look_again(state, index, one, waiting=one.waiting))
        return
    after = _superseded(model, state, one)
    yield Step(SUPERSEDE, with_consumer(after, index, one._replace(phase=RECORDED, elsewhere=())))
    yield from _untold(model, SUPERSEDE_UNTOLD, _look_again(after, index, one))


def _is_as_seen(row: Row | tuple[()], seen: Row) -> bool:
    own = (seen.key, seen.state, seen.round, seen.token)
    return bool(row) and (row.key, row.state, row.round, row.token) == own  # type: ignore[union-attr]


def _superseded(model: Model, state: State, one: Consumer) -> State:
    assert one.elsewhere
    database, number, _ = one.elsewhere
    row = row_of(state, database, number)
    assert row
    return with_row(state, database, number, unclaimed(model, row, one.old)._replace(state=SUPERSEDED, buried=False))


def _recorded(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    rest = one.copies[1:] if one.alone else ()
    after = Consumer(home=one.home, old=one.old, stopping=one.stopping)
    if rest:
        after = after._replace(phase=GOT, copies=rest, live=one.live, alone=True, again=rest[0].redelivered)
    yield Step(ACK, with_consumer(state, index, after))


PHASES = {
    IDLE: _idle, GOT: _got, LOOKED: _looked, CLAIMED: _claimed, RUNNING: _running_phase, RAN: _ran, FAILING: _failing,
    OWING: _owing, BATCH: batch, MOVING: _moving, RECORDED: _recorded,
}  # fmt: skip
