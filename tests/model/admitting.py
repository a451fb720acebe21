"""What a delivery finds recorded, and whether it runs: the gate, and the claim behind it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import (
    Model,
    Step,
    action,
    number_of,
    row_of,
    with_consumer,
    with_row,
)  # fmt: skip
from tests.model.recording import (
    COUNTED,
    CRASHED,
    DONE,
    RUNS,
    Found,
    abandoned,
    again,
    consequence,
    gate,
    look,
    unclaimed,
)  # fmt: skip
from tests.model.states import (
    AWAITING,
    CLAIMED,
    FAILED,
    FRESH,
    GOT,
    MOVING,
    PROCESSED,
    PROCESSING,
    RECORDED,
    RETRYING,
    RUNNING,
    SUPERSEDED,
    UNCLAIMED_RUN,
    Consumer,
    Copy,
    Report,
    Row,
    State,
)  # fmt: skip

CLAIM = action(
    "claim",
    "progress",
    "processing.inbox.Place.claim",
    "processing.inbox.Place._claim",
    at=("processor.claimed",),
)
CLAIM_UNTOLD = action("claim, its answer lost", "trouble", "processing.inbox.Place.claim")
GO_ON = action("go on under its claim", "progress", "models.processed.ProcessedMessage.renewed")
RUN = action("run", "progress", "processing.attempting.Attempts._run_atomic")
TAKE_UP = action(
    "take its round up at home",
    "progress",
    "processing.elsewhere.Elsewhere.move",
    "processing.processor.Processor._move",
)
ACK_UNRUN = action(
    "acknowledge it unrun",
    "progress",
    "processing.processor.Processor._admit_recorded",
    "processing.without_handler.bring_content",
)
COUNT_ON = action("go on from a counted crash", "progress", "processing.without_handler.record_counted")
COUNT_ABANDONED = action(
    "count its own abandoned claim",
    "progress",
    "processing.without_handler.end_abandoned",
    "processing.without_handler.record_abandoned",
    "processing.failures.send_round",
)
RECORD_DEAD = action("record a dead letter", "progress", "processing.without_handler.record_unrun")


def known(model: Model, state: State, index: int, one: Consumer, found: Found) -> Iterator[Step]:
    copy, row, database = one.copies[0], found.row, found.database
    if copy.key == 0:
        state = _adopted(state, found, copy)
        row = row_of(state, database, found.number)
    assert row
    locked = model.is_locked(state, database, copy.queue, row.key)
    is_ours = row.token > 0 and row.token == one.waiting and row.state == PROCESSING
    verdict = gate(model, row, copy)
    if (is_ours or verdict == RUNS) and _runs_elsewhere(state, database, one, row):
        return
    if is_ours:
        if not locked:
            renewed = row._replace(lapsed=0)
            after = with_row(state, database, found.number, renewed)
            mine = one._replace(phase=CLAIMED, database=database, number=found.number, row=renewed, token=row.token)
            mine = mine._replace(run=row.token, waiting=0, elsewhere=_left_over(model, state, database, row, copy))
            yield Step(GO_ON, with_consumer(after, index, mine))
        return
    if verdict == DONE:
        yield from _done(model, state, index, one, found._replace(row=row))
    elif locked:
        return
    elif verdict == COUNTED:
        after = gone_on(model, state, database, found.number, row._replace(message=copy.message), one.old)
        yield Step(COUNT_ON, with_consumer(after, index, one._replace(phase=RECORDED)))
    elif verdict == CRASHED:
        after = abandoned(model, state, database, found.number, one.old, copy)
        yield Step(COUNT_ABANDONED, with_consumer(after, index, one._replace(phase=RECORDED)))
    elif database == one.home:
        left = _left_over(model, state, database, row, copy)
        mine = one._replace(database=database, number=found.number, row=row, elsewhere=left)
        yield from enter(model, state, index, mine)
    else:
        yield from _moved(model, state, index, one, found)


def _moved(model: Model, state: State, index: int, one: Consumer, found: Found) -> Iterator[Step]:
    """What waits in another database runs in its handler's, where a row of it takes up the round or is made anew."""
    row, round_, number = found.row, one.copies[0].round, 0
    assert row
    if number := number_of(state, one.home, row.queue, row.key):
        home = row_of(state, one.home, number)
        if home and not model.is_locked(state, one.home, row.queue, row.key):
            here = home._replace(state=RETRYING, round=max(home.round, round_), attempts=row.attempts, buried=False)
            after = with_row(state, one.home, number, unclaimed(model, here, one.old))
            is_waiting = one.waiting != home.token
            yield Step(TAKE_UP, with_consumer(after, index, one._replace(waiting=one.waiting if is_waiting else 0)))
        return
    new = Row(row.message, row.key, row.queue, round=round_, attempts=row.attempts)
    elsewhere = (found.database, found.number, row)
    yield from enter(model, state, index, one._replace(database=one.home, number=0, row=new, elsewhere=elsewhere))


def gone_on(model: Model, state: State, database: int, number: int, row: Row, old: bool) -> State:
    """From a crash that is counted, or a run that we cut short: another round, or rest."""
    row = row._replace(content=True)
    if row.interrupted:
        return again(model, state, database, number, row, old)
    return consequence(model, state, database, number, row, old)


def _adopted(state: State, found: Found, copy: Copy) -> State:
    """A row without an id is now about the message that was delivered: nothing but the content tells them apart."""
    assert found.row
    return with_row(state, found.database, found.number, found.row._replace(message=copy.message))


def _done(model: Model, state: State, index: int, one: Consumer, found: Found) -> Iterator[Step]:
    row = found.row
    assert row
    if not row.content and not model.deviates(one.old, "content is not brought"):
        if model.is_locked(state, found.database, row.queue, row.key):
            return
        state = with_row(state, found.database, found.number, row._replace(content=True))
    yield Step(ACK_UNRUN, with_consumer(state, index, _ended(model, state, one, found.database, row)))


def _ended(model: Model, state: State, one: Consumer, database: int, row: Row) -> Consumer:
    """A consumer whose delivery was answered for by a row; others that wait for it are retired first.

    But not what may be renewed meanwhile, unless it is over: two such rows could retire each other.
    """
    left = _left_over(model, state, database, row, one.copies[0])
    if left and (row.state == SUPERSEDED or (left[2].state == PROCESSING and row.state != PROCESSED)):
        left = ()
    other = _other(state, database, row)
    if other and other[0] == one.home and other[2].token and other[2].token == one.waiting:
        left = other  # claimed to run here, it went on there meanwhile
    return one._replace(phase=MOVING, elsewhere=left) if left else one._replace(phase=RECORDED)


def _other(state: State, but: int, row: Row) -> tuple[int, int, Row] | tuple[()]:
    """The row of the same message in another database."""
    for database in range(len(state.databases)):
        number = number_of(state, database, row.queue, row.key) if database != but else 0
        if number and (other := row_of(state, database, number)):
            return (database, number, other)
    return ()


def _left_over(model: Model, state: State, but: int, row: Row, copy: Copy) -> tuple[int, int, Row] | tuple[()]:
    """A row of the same message in another database that still waits for it, or for somebody to end it."""
    other = _other(state, but, row)
    is_open = other and other[2].state != SUPERSEDED and gate(model, other[2], copy) != DONE
    return other if is_open else ()


def _runs_elsewhere(state: State, but: int, one: Consumer, row: Row) -> bool:
    """Whether a message is being run in another database, by somebody else."""
    other = _other(state, but, row)
    if not other or other[2].state != PROCESSING:
        return False
    return other[2].token > 0 and not other[2].lapsed and other[2].token != one.waiting


def dead(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """A dead letter is recorded as failed, whatever was recorded before it ended.

    It may be anyone's: a claim that the inbox answers for is left to the sweep.
    """
    copy, found = one.copies[0], look(model, state, one._replace(again=True))
    if found.blocked:
        return
    row = found.row
    key = row.key if row else copy.key or FRESH
    if model.is_locked(state, found.database, copy.queue, key):
        return
    if not row:
        recorded = one._replace(phase=RECORDED)
        failed = Row(copy.message, key, copy.queue, FAILED, copy.round, buried=True)
        yield Step(RECORD_DEAD, with_consumer(with_row(state, found.database, 0, failed), index, recorded))
        return
    if copy.key == 0:
        state = _adopted(state, found, copy)
    verdict = gate(model, row, copy)
    if verdict == DONE or (verdict == CRASHED and row.at_broker is False):
        yield from _done(model, state, index, one, found)
        return
    recorded = _ended(model, state, one, found.database, row)
    failed = unclaimed(model, row._replace(state=FAILED, content=True, message=copy.message, buried=True), one.old)
    after = with_row(state, found.database, found.number, failed)
    # What is alive runs all the same, whatever the attempts were: the broker has given the others up.
    reports = [report._replace(last=report.last and report.key != row.key) for report in state.reports]
    after = after._replace(reports=tuple(sorted(reports)))
    yield Step(RECORD_DEAD, with_consumer(after, index, recorded))


def enter(model: Model, state: State, index: int, one: Consumer) -> Iterator[Step]:
    """Claim it first where it was delivered before, or its handler has no transaction; else run."""
    row, of = one.row, model.of
    assert row
    if model.is_locked(state, one.database, row.queue, row.key):
        return
    if not one.elsewhere and not _needs_claim(model, one, row):
        yield Step(RUN, running(model, state, index, one._replace(run=UNCLAIMED_RUN + row.round)))
        return
    claimed = row._replace(state=PROCESSING, token=FRESH + 1, lapsed=0, buried=False)
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
    """Whether it is to be known of a message that it runs, before it runs: its last attempt, or a repeated one."""
    if one.again or not model.of.atomic:
        return True
    if one.number == 0 or model.deviates(one.old, "last attempts run unclaimed"):
        return False
    return row.attempts + 1 >= model.of.attempts or row.state not in AWAITING


def running(model: Model, state: State, index: int, one: Consumer) -> State:
    """The handler begins."""
    row, copy = one.row, one.copies[0]
    assert row
    before: tuple[int, ...] = ()
    if copy.key == 0 and not one.token:
        before = tuple(sorted(other.key for other in state.databases[one.database].inbox if other))
    if copy.round < row.round:
        state = state._replace(early=True)
    if any(_ended_the_attempts(state, report, one) for report in state.reports):
        state = state._replace(beyond=True)
    state = model.owe(state, row.message, row.queue, 1)
    acked = one.acked or not model.of.atomic or "acknowledge before the commit" in model.mutants
    return with_consumer(state, index, one._replace(phase=RUNNING, before=before, acked=acked))


def _ended_the_attempts(state: State, report: Report, one: Consumer) -> bool:
    """Whether a death that is not counted yet ended the last attempt of the round that a consumer begins to run."""
    row = one.row
    if not row or not report.last:
        return False
    recorded = row_of(state, one.database, one.number)
    is_counted = bool(recorded) and report.run in recorded.runs  # type: ignore[union-attr]
    place = (one.database, row.queue, row.key, row.round)
    return (report.database, report.queue, report.key, report.round) == place and not is_counted
