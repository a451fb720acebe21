"""What operators do, and retention."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import (
    Model,
    Step,
    action,
    next_round,
    outgoing_of,
    row_of,
    unsent,
    waits_for,
    with_outgoing,
    with_row,
)  # fmt: skip
from tests.model.recording import unclaimed
from tests.model.states import (
    AWAITING,
    DISCARDED,
    FAILED,
    IDLE,
    PENDING,
    PROCESSED,
    PROCESSING,
    PUBLISHED,
    REQUEUED,
    RETRYING,
    SUPERSEDED,
    Consumer,
    Outgoing,
    Report,
    Row,
    State,
)  # fmt: skip

REQUEUE = action(
    "requeue",
    "operator",
    "operations.requeue",
    "operations._leave",
    "publishing.rounds.cancel_rounds",
    "operations._leave_together",
    "publishing.rounds.cancel_rounds_together",
    "publishing.rounds.add_rounds_together",
    at=("operations.requeued", "operations.acted"),
)
EDIT = action(
    "edit", "operator", "operations.edit", "operations._leave", "publishing.rounds.cancel_rounds",
    at=("operations.requeued",),
)  # fmt: skip
DISCARD = action("discard", "operator", "operations.discard", "operations._leave", "publishing.rounds.cancel_rounds")
RESTORE = action("restore", "operator", "operations.restore")
REPLAY = action(
    "replay", "operator", "operations.replay", "publishing.rounds.send_round_again", "consuming.resending._send_again"
)
PUBLISH_AGAIN = action("publish again", "operator", "operations.release")
LAY_ASIDE = action("discard the outgoing row", "operator", "operations.discard_published")
PRUNE = action("retention deletes it", "operator", "retention.prune", "retention._delete")


def operating(model: Model, state: State) -> Iterator[Step]:
    """Every verb on every row that takes it."""
    for database, one in enumerate(state.databases):
        for number, row in enumerate(one.inbox, 1):
            if row and not model.is_locked(state, database, row.queue, row.key):
                yield from _on_incoming(model, state, database, number, row)
        for number, sent in enumerate(one.outbox, 1):
            if sent:
                yield from _on_outgoing(model, state, database, number, sent)


def _on_incoming(model: Model, state: State, database: int, number: int, row: Row) -> Iterator[Step]:
    about = f"message {row.message}, round {row.round}"
    open_ = takes_verbs(model, state, database, number)
    if open_ and row.content and model.may(state, REQUEUE.name):
        fresh = row._replace(state=REQUEUED, round=row.round + 1, attempts=0, runs=(), buried=False)
        after = with_row(cancelled(model, state, database, number), database, number, unclaimed(model, fresh, False))
        after = _voided(next_round(after, database, number), database, row)
        yield Step(REQUEUE, model.spent(after, REQUEUE.name), about)
    if open_ and model.may(state, DISCARD.name):
        laid = row._replace(state=DISCARDED, round=row.round + 1, buried=False)
        after = with_row(cancelled(model, state, database, number), database, number, unclaimed(model, laid, False))
        yield Step(DISCARD, model.spent(after, DISCARD.name), about)
    if row.state == FAILED and row.content and model.may(state, EDIT.name):  # the copy is a message of its own
        past = row._replace(state=SUPERSEDED, round=row.round + 1, buried=False, edited=True)
        after = with_row(cancelled(model, state, database, number), database, number, unclaimed(model, past, False))
        yield Step(EDIT, model.spent(after, EDIT.name), about)
    if row.state == DISCARDED and model.may(state, RESTORE.name):
        after = with_row(state, database, number, row._replace(state=FAILED))
        yield Step(RESTORE, model.spent(after, RESTORE.name), about)
    ended = row.state in (PROCESSED, DISCARDED, SUPERSEDED)
    if ended and model.may(state, PRUNE.name) and _is_deletable(model, state, database, number, row):
        place = model.pair(row.message, row.queue)
        is_forgotten = row.state != SUPERSEDED or row.edited or state.gone[place]
        gone = (*state.gone[:place], is_forgotten, *state.gone[place + 1 :])
        yield Step(PRUNE, model.spent(with_row(state, database, number, ())._replace(gone=gone), PRUNE.name), about)


def _voided(state: State, database: int, row: Row) -> State:
    """Fresh attempts are granted: runs that began before count no more."""

    def same(one: Report | Consumer, key: int) -> bool:
        return one.database == database and key == row.key

    reports = [one._replace(void=True) if same(one, one.key) else one for one in state.reports]
    consumers = [one._replace(void=True) if one.row and same(one, one.row.key) else one for one in state.consumers]
    return state._replace(reports=tuple(sorted(reports)), consumers=tuple(consumers))


def takes_verbs(model: Model, state: State, database: int, number: int) -> bool:
    """Whether requeue and discard take an inbox row."""
    row = row_of(state, database, number)
    if not row:
        return False
    if row.state == PROCESSING:
        return (not row.token or row.lapsed > 0) and not model.deviates(False, "no way out of processing")
    return row.state in (FAILED, RETRYING) or (row.state == REQUEUED and not unsent(state, database, number))


def outgoing_takes_verbs(model: Model, state: State, database: int, number: int) -> bool:
    """Whether an outbox row can be laid aside by itself: a first sending, or a failed round that nobody waits for."""
    sent = outgoing_of(state, database, number)
    if not sent or sent.state not in (PENDING, FAILED):
        return False
    if not sent.inbox:
        return True
    stale = sent.state == FAILED and not waits_for(row_of(state, database, sent.inbox), sent)
    return stale and "failed round stays failed" not in model.mutants


def cancelled(model: Model, state: State, database: int, number: int) -> State:
    """The outbox rows of earlier rounds are discarded: those not sent yet, and those that failed."""
    if "earlier rounds are not cancelled" in model.mutants:
        return state
    failed = () if "failed round stays failed" in model.mutants else (FAILED,)
    for place in unsent(state, database, number, PENDING, *failed):
        sent = outgoing_of(state, database, place)
        assert sent
        state = with_outgoing(state, database, place, sent._replace(state=DISCARDED, token=0, lapsed=False))
    return state


def _on_outgoing(model: Model, state: State, database: int, number: int, sent: Outgoing) -> Iterator[Step]:
    about = f"message {sent.message}, round {sent.round}"
    anew = sent._replace(state=PENDING, token=0, lapsed=False, epoch=sent.epoch + 1)
    if sent.state == PUBLISHED and model.may(state, REPLAY.name) and not any(state.gone):  # dedupe has a memory
        after = _replayed(model, state, database, number, sent, anew)
        if after is not None:
            yield Step(REPLAY, model.spent(after, REPLAY.name), about)
    if sent.state == FAILED and not sent.inbox and model.may(state, PUBLISH_AGAIN.name):
        after = with_outgoing(state, database, number, anew)
        yield Step(PUBLISH_AGAIN, model.spent(after, PUBLISH_AGAIN.name), about)
    if model.may(state, LAY_ASIDE.name) and outgoing_takes_verbs(model, state, database, number):
        after = with_outgoing(state, database, number, sent._replace(state=DISCARDED, token=0, lapsed=False))
        yield Step(LAY_ASIDE, model.spent(after, LAY_ASIDE.name), about)
    if sent.state in (PUBLISHED, DISCARDED) and model.may(state, PRUNE.name) and _is_quiet(state, sent.message):
        yield Step(PRUNE, model.spent(with_outgoing(state, database, number, ()), PRUNE.name), about)


def _replayed(model: Model, state: State, database: int, number: int, sent: Outgoing, anew: Outgoing) -> State | None:
    """Send it again, and with it the rounds that are under way."""
    ghosts = list(state.lost)
    if sent.inbox:
        if not waits_for(row_of(state, database, sent.inbox), sent):
            return None
        ghosts[model.pair(sent.message, sent.queue)] = False
        return _round_sent_again(model, state, database, sent.inbox)._replace(lost=tuple(ghosts))
    after = with_outgoing(state, database, number, anew)
    for queue in range(1, model.of.queues + 1):
        ghosts[model.pair(sent.message, queue)] = False
    if "replay of round 1 only" not in model.mutants:
        for other, one in enumerate(state.databases):
            for place, row in enumerate(one.inbox, 1):
                if row and row.key == sent.key and sent.key and _is_under_way(row):
                    after = _round_sent_again(model, after, other, place)
    return after._replace(lost=tuple(ghosts))


def _round_sent_again(model: Model, state: State, database: int, number: int) -> State:
    """The round that a message is in, once more. One that a relay may be sending just now is not marked by that."""
    row, rows = row_of(state, database, number), state.databases[database].outbox
    earlier = "an earlier round stands for this one" in model.mutants
    places = unsent(state, database, number)
    pending = [place for place in places if row and (earlier or getattr(rows[place - 1], "round", 0) == row.round)]
    if not pending:
        return next_round(state, database, number)
    if "a round under way is not replayed" not in model.mutants:
        for place in pending:
            sent = outgoing_of(state, database, place)
            assert sent
            anew = sent._replace(token=0, lapsed=False, epoch=sent.epoch + 1)
            state = with_outgoing(state, database, place, anew)
    return state


def _is_under_way(row: Row) -> bool:
    return row.state in AWAITING or (row.state == PROCESSING and not row.token and row.round >= 2)


def _is_deletable(model: Model, state: State, database: int, number: int, row: Row) -> bool:
    """Whether nothing on its way needs the row in order not to run twice."""
    if not _is_quiet(state, row.message):
        return False
    if "retention does not look at the outbox" in model.mutants:
        return True
    for sent in state.databases[database].outbox:
        if sent and sent.state in (PENDING, FAILED) and (sent.inbox == number or sent.key == row.key):
            return False
    return True


def _is_quiet(state: State, message: int) -> bool:
    """Whether no copy is on its way: days have passed, in which the broker has delivered what it had."""
    held = [copy.message for one in state.consumers if one.phase != IDLE for copy in one.copies]
    sending = [relay.row.message for relay in state.relays if relay.row]
    reports = [report.message for report in state.reports]
    return message not in (*held, *sending, *reports, *(copy.message for copy in state.broker))
