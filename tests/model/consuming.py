"""What a consumer does with a delivery: look, claim, run, record, acknowledge."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import (
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
    COUNTED,
    CRASHED,
    DONE,
    abandoned,
    again,
    consequence,
    effect,
    gate,
    look,
    stands,
    succeed,
    unclaimed,
)  # fmt: skip
from tests.model.states import (
    ANONYMOUS,
    AWAITING,
    BATCH,
    CLAIMED,
    FAILED,
    FAILING,
    FRESH,
    GOT,
    IDLE,
    MOVING,
    OWING,
    PROCESSED,
    PROCESSING,
    RAN,
    RECORDED,
    RUNNING,
    SUPERSEDED,
    UNCLAIMED_RUN,
    Consumer,
    Copy,
    Row,
    State,
)  # fmt: skip

DELIVER = action(
    "deliver", "progress", "models.embedded.EmbeddedMessageQuerySet.take", at=("embedded.taken", "consumer.received")
)
CLAIM = action(
    "claim",
    "progress",
    "inbox.Place.claim",
    "inbox.Place._claim",
    "elsewhere.Elsewhere.move",
    "processor.Processor._move",
    at=("processor.claimed",),
)
CLAIM_UNTOLD = action("claim, its answer lost", "trouble", "inbox.Place.claim")
GO_ON = action("go on under its claim", "progress", "models.processed.ProcessedMessage.renewed")
RUN = action("run", "progress", "attempting.Attempts._run_atomic")
BEGIN = action("begin the claimed run", "progress", "attempting.Attempts._begin")
RUN_BATCH = action("run a batch", "progress", "batching.run_batch", "batching._run")
ACK_UNRUN = action("acknowledge it unrun", "progress", "processor.Processor._admit_recorded", "unrun.bring_content")
COUNT_ON = action("go on from a counted crash", "progress", "unrun.record_counted")
COUNT_ABANDONED = action(
    "count its own abandoned claim", "progress", "unrun.end_abandoned", "unrun.record_abandoned", "failures.send_round"
)
RECORD_DEAD = action("record a dead letter", "progress", "unrun.record_unrun")
COMMIT = action(
    "commit the handler", "progress", "execution.proven_commit", "attempting.Attempts._write_processed",
    at=("processor.handled", "processor.committed"),
)  # fmt: skip
COMMIT_UNTOLD = action("commit the handler, the answer lost", "trouble", "execution.proven_commit")
COMMIT_BATCH = action("commit a batch", "progress", "batching._insert_all", at=("processor.committed",))
FAIL = action("the handler fails", "progress", "attempting.Attempts._try", at=("processor.rolled_back",))
DOOMED = action(
    "the handler rolls back and returns", "trouble", "proof.Proof.refuse_other", "inbox.stands", "inbox.Place.take_back",
    "batching._take_back",
)  # fmt: skip
FAIL_BATCH = action("a batch fails", "progress", "processor.Processor.process_batch")
AWAY = action("the database goes away", "trouble", "outages.Outages.raise_if_away", "claims.Claims.held")
RECORD_FAILURE = action(
    "record the failure",
    "progress",
    "failures.record",
    "failures._record_once",
    "attempting.Attempts._record",
    at=("processor.recorded",),
)
WRITE_RETRY = action("write the retry", "progress")  # a mutant's
HANDLE = action("the handler ends", "progress", "attempting.Attempts._call")
RECORD_RUN = action(
    "record a run without a transaction", "progress", "attempting.Attempts._finish_claimed", at=("processor.handled",)
)
LOOK_AGAIN = action("look again", "progress", "processor.Processor._settle")
SUPERSEDE = action("retire its row elsewhere", "progress", "elsewhere.Elsewhere.retire", at=("processor.moved",))
ABSORB = action("take over a crash that was counted", "progress", "unrun.absorb_crash")
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


# The gate


def _got(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Look at what is recorded, and act on it."""
    copy = one.copies[0]
    if len(one.copies) > 1 and not one.alone:
        yield from _begin_batch(model, state, index, one)
        return
    if copy.dead:
        yield from _dead(model, state, index, one)
        return
    if one.again or copy.round > 1 or not model.of.locks:
        found = look(model, state, one)
        if found.blocked:
            return
        if found.row:
            yield from _known(model, state, index, one, found)
            return
    elif copy.key and number_of(state, one.home, copy.queue, copy.key):
        if not model.is_locked(state, one.home, copy.queue, copy.key):
            yield Step(LOOK_AGAIN, with_consumer(state, index, one._replace(again=True)))
        return
    elif len(state.databases) > 1 and (found := look(model, state, one)).row:
        yield from _known(model, state, index, one, found)
        return
    key = copy.key or FRESH
    if not model.is_locked(state, one.home, copy.queue, key):
        fresh = Row(copy.message, key, copy.queue, round=copy.round)
        yield from _enter(model, state, index, one._replace(database=one.home, number=0, row=fresh))


def _known(model: Model, state: State, index: int, one: Consumer, found) -> Iterator[Step]:  # type: ignore[no-untyped-def]
    copy, row, database = one.copies[0], found.row, found.database
    if copy.key == 0:
        state = _adopted(state, found, copy)
        row = row_of(state, database, found.number)
    locked = model.is_locked(state, database, copy.queue, row.key)
    if row.token and row.token == one.waiting and row.state == PROCESSING:
        if not locked:
            renewed = row._replace(lapsed=0)
            after = with_row(state, database, found.number, renewed)
            mine = one._replace(phase=CLAIMED, database=database, number=found.number, row=renewed, token=row.token)
            mine = mine._replace(run=row.token, waiting=0, elsewhere=_left_over(state, database, row))
            yield Step(GO_ON, with_consumer(after, index, mine))
        return
    verdict = gate(model, row, copy)
    if verdict == DONE:
        yield from _done(model, state, index, one, found._replace(row=row))
    elif locked:
        return
    elif verdict == COUNTED:
        after = _gone_on(model, state, database, found.number, row._replace(message=copy.message), one.old)
        yield Step(COUNT_ON, with_consumer(after, index, _ended(state, one, database, row)))
    elif verdict == CRASHED:
        after = abandoned(model, state, database, found.number, one.old, copy)
        yield Step(COUNT_ABANDONED, with_consumer(after, index, _ended(state, one, database, row)))
    elif database == one.home:
        left = _left_over(state, database, row)
        mine = one._replace(database=database, number=found.number, row=row, elsewhere=left)
        yield from _enter(model, state, index, mine)
    else:
        new = Row(row.message, row.key, row.queue, round=row.round, attempts=row.attempts)
        elsewhere = (database, found.number, row)
        yield from _enter(model, state, index, one._replace(database=one.home, number=0, row=new, elsewhere=elsewhere))


def _gone_on(model: Model, state: State, database: int, number: int, row: Row, old: bool) -> State:
    """From a crash that is counted, or a run that we cut short: another round, or rest."""
    row = row._replace(content=True)
    if row.interrupted:
        return again(model, state, database, number, row, old)
    return consequence(model, state, database, number, row, old)


def _adopted(state: State, found, copy: Copy) -> State:  # type: ignore[no-untyped-def]
    """A row without an id is now about the message that was delivered: nothing but the content tells them apart."""
    return with_row(state, found.database, found.number, found.row._replace(message=copy.message))


def _done(model: Model, state: State, index: int, one: Consumer, found) -> Iterator[Step]:  # type: ignore[no-untyped-def]
    row = found.row
    if not row.content and not model.deviates(one.old, "content is not brought"):
        if model.is_locked(state, found.database, row.queue, row.key):
            return
        state = with_row(state, found.database, found.number, row._replace(content=True))
    yield Step(ACK_UNRUN, with_consumer(state, index, _ended(state, one, found.database, row)))


def _ended(state: State, one: Consumer, database: int, row: Row) -> Consumer:
    """A consumer whose delivery was answered for by a row; others that wait for it are retired first."""
    left = _left_over(state, database, row)
    return one._replace(phase=MOVING, elsewhere=left) if left else one._replace(phase=RECORDED)


def _left_over(state: State, but: int, row: Row) -> tuple[int, int, Row] | tuple[()]:
    """A row of the same message that still waits in another database."""
    for database in range(len(state.databases)):
        number = number_of(state, database, row.queue, row.key) if database != but else 0
        if number and (other := row_of(state, database, number)) and other.state in AWAITING:
            return (database, number, other)
    return ()


def _dead(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """A dead letter is recorded as failed, whatever was recorded before it ended."""
    copy, found = one.copies[0], look(model, state, one._replace(again=True))
    if found.blocked:
        return
    row = found.row
    key = row.key if row else copy.key or FRESH
    if model.is_locked(state, found.database, copy.queue, key):
        return
    recorded = one._replace(phase=RECORDED)
    if not row:
        failed = Row(copy.message, key, copy.queue, FAILED, copy.round)
        yield Step(RECORD_DEAD, with_consumer(with_row(state, found.database, 0, failed), index, recorded))
        return
    if copy.key == 0:
        state = _adopted(state, found, copy)
    if gate(model, row, copy) == DONE:
        yield from _done(model, state, index, one, found)
        return
    failed = unclaimed(model, row._replace(state=FAILED, content=True, message=copy.message), one.old)
    yield Step(RECORD_DEAD, with_consumer(with_row(state, found.database, found.number, failed), index, recorded))


def _enter(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Claim it first where it was delivered before, or its handler has no transaction; else run."""
    row, of = one.row, model.of
    assert row
    if model.is_locked(state, one.database, row.queue, row.key):
        return
    if not one.elsewhere and not _needs_claim(model, one, row):
        yield Step(RUN, _running(model, state, index, one._replace(run=UNCLAIMED_RUN + row.round)))
        return
    claimed = row._replace(state=PROCESSING, token=FRESH + 1, lapsed=0)
    if not model.deviates(one.old, "claims do not say who has the message"):
        claimed = claimed._replace(at_broker=of.atomic, started=False, interrupted=False)
    after = with_row(state, one.database, one.number, claimed)
    number = one.number or len(after.databases[one.database].inbox)
    mine = one._replace(phase=CLAIMED, number=number, row=claimed, token=FRESH + 1, run=FRESH + 1)
    yield Step(CLAIM, with_consumer(after, index, mine))
    if model.may(state, CLAIM_UNTOLD.name):
        waiting = 0 if model.deviates(one.old, "a claim's lost answer is forgotten") else FRESH + 1
        doubt = Consumer(GOT, one.copies, one.live, one.acked, again=True, waiting=waiting, home=one.home, old=one.old)
        yield Step(CLAIM_UNTOLD, model.spent(with_consumer(after, index, doubt), CLAIM_UNTOLD.name))


def _needs_claim(model: Model, one: Consumer, row: Row) -> bool:
    """Whether it is to be known of a message that it runs, before it runs: a last attempt, and one that was repeated."""
    if one.again or not model.of.atomic:
        return True
    if one.number == 0 or model.deviates(one.old, "last attempts run unclaimed"):
        return False
    return row.attempts + 1 >= model.of.attempts or row.state == FAILED


def _running(model: Model, state: State, index: int, one: Consumer) -> State:
    """The handler begins."""
    row, copy = one.row, one.copies[0]
    assert row
    before = ()
    if copy.key == 0 and not one.token:
        before = tuple(sorted(other.key for other in state.databases[one.database].inbox if other))
    if copy.round < row.round:
        state = state._replace(early=True)
    state = model.owe(state, row.message, row.queue, 1)
    acked = one.acked or not model.of.atomic or "acknowledge before the commit" in model.mutants
    return with_consumer(state, index, one._replace(phase=RUNNING, before=before, acked=acked))


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
    if one.copies[0].key == 0 and not model.deviates(one.old, "phantoms stay"):
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
    yield Step(BEGIN, _running(model, state, index, one))


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
    elif row and (row.key, row.state, row.round) == (seen.key, seen.state, seen.round):
        yield Step(SUPERSEDE, with_consumer(_superseded(state, one), index, after))
    else:
        yield Step(LOOK_AGAIN, _look_again(state, index, one, waiting=one.token))


def _absorbed(model: Model, state: State, index: int, one: Consumer) -> State | None:
    """A crash of it that was counted before it was claimed is taken over into the claim, and it goes round."""
    mine = row_of(state, one.database, one.number)
    if not mine or not stands(model, state, one):
        return None
    for number, row in enumerate(state.databases[one.database].inbox, 1):
        bare = row and not row.content and row.state == PROCESSING and not row.token and row.key >= ANONYMOUS
        if row and bare and not mine.attempts:
            mine = mine._replace(attempts=row.attempts, runs=(*mine.runs, *row.runs))
            state = with_row(with_row(state, one.database, number, ()), one.database, one.number, mine)
    if not mine.attempts:
        return None
    after = _gone_on(model, state, one.database, one.number, mine, one.old)
    return with_consumer(after, index, one._replace(phase=RECORDED, run=0))


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
    if model.may(state, COMMIT_UNTOLD.name):
        yield Step(COMMIT_UNTOLD, model.spent(_look_again(after, index, one), COMMIT_UNTOLD.name))


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
    after = model.owe(state, seen.message, seen.queue, -1)
    after = consequence(model, after, one.database, one.number, counted, one.old)
    number = one.number or len(after.databases[one.database].inbox)
    phase = RECORDED
    if "failure without its retry" in model.mutants and counted.attempts < model.of.attempts:
        phase = OWING
    yield Step(RECORD_FAILURE, with_consumer(after, index, one._replace(phase=phase, number=number)))


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


# Batches


def _begin_batch(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
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


def _batch(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
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


# The end


def _moving(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """The outcome is recorded in the handler's database: the row elsewhere ends."""
    yield Step(SUPERSEDE, with_consumer(_superseded(state, one), index, one._replace(phase=RECORDED, elsewhere=())))


def _superseded(state: State, one: Consumer) -> State:
    assert one.elsewhere
    database, number, seen = one.elsewhere
    row = row_of(state, database, number)
    if row and (row.key, row.state, row.round) == (seen.key, seen.state, seen.round):
        return with_row(state, database, number, row._replace(state=SUPERSEDED))
    return state


def _recorded(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    rest = one.copies[1:] if one.alone else ()
    after = Consumer(home=one.home, old=one.old, stopping=one.stopping)
    if rest:
        after = after._replace(phase=GOT, copies=rest, live=one.live, alone=True, again=rest[0].redelivered)
    yield Step(ACK, with_consumer(state, index, after))


PHASES = {
    IDLE: _idle, GOT: _got, CLAIMED: _claimed, RUNNING: _running_phase, RAN: _ran, FAILING: _failing, OWING: _owing,
    BATCH: _batch, MOVING: _moving, RECORDED: _recorded,
}  # fmt: skip
