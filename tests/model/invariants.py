"""What must hold in every state, and in those in which nothing goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.operating import outgoing_takes_verbs, takes_verbs
from tests.model.protocol import Model, row_of
from tests.model.states import (
    ANONYMOUS,
    AWAITING,
    CLAIMED,
    DISCARDED,
    FAILED,
    MOVING,
    PENDING,
    PROCESSED,
    PROCESSING,
    RECORDED,
    SENT,
    SUPERSEDED,
    Row,
    State,
)  # fmt: skip

ENDING = (CLAIMED, MOVING, RECORDED)

SOMEWHERE = "always somewhere"
ONE_EFFECT = "one effect"
RECORD = "an effect with its record"
FINISHED = "nothing at rest unfinished"
COUNTED = "no attempt counted that never began"
DEATHS = "no death that never counts"
LAST = "nothing runs after a last attempt"
ROUNDS = "a round runs on its own delivery"
WAY_OUT = "a way out for the operator"
REST = "rest can be reached"
ALL = (SOMEWHERE, ONE_EFFECT, RECORD, FINISHED, COUNTED, DEATHS, LAST, ROUNDS, WAY_OUT, REST)


def broken(model: Model, state: State, *, at_rest: bool) -> Iterator[str]:
    """The invariants that a state breaks, those of the whole graph excepted."""
    published = range(model.of.messages - state.unpublished)
    pairs = [(message, queue) for message in published for queue in range(1, model.of.queues + 1)]
    if any(not state.lost[model.pair(*pair)] and not is_somewhere(model, state, *pair) for pair in pairs):
        yield SOMEWHERE
    if model.of.atomic:
        yield from _effects(model, state, pairs)
    if min(state.owed) < 0:
        yield COUNTED
    if state.forgotten:
        yield DEATHS
    if state.beyond:
        yield LAST
    if state.early:
        yield ROUNDS
    if at_rest:
        if (
            any(not state.lost[model.pair(*pair)] and not _has_ended(model, state, *pair) for pair in pairs)
            or any(_is_unfinished(model, state, row) for _, row in _rows(state))
            or _is_pending(state)
        ):
            yield FINISHED
        if any(not _has_way_out(model, state, place, row) for place, row in _rows(state)) or _is_stuck(model, state):
            yield WAY_OUT


def _effects(model: Model, state: State, pairs: list[tuple[int, int]]) -> Iterator[str]:
    for message, queue in pairs:
        place = model.pair(message, queue)
        effects = [one.effects[place] for one in state.databases]
        if model.of.identified and sum(effects) > 1:
            yield ONE_EFFECT
        for database, count in enumerate(effects):
            rows = [row for where, row in _rows(state) if where[0] == database and _is_of(row, message, queue)]
            if count and not state.gone[place] and not any(row.state == PROCESSED for row in rows):
                yield RECORD


def is_somewhere(model: Model, state: State, message: int, queue: int, *, surely: bool = False) -> bool:
    """Whether a message is in the outbox, at the broker, or recorded as ended, for this queue.

    `surely`: a delivery that is about to be acknowledged is nowhere.
    """
    if state.gone[model.pair(message, queue)]:
        return True
    fence = 0
    for _, row in _rows(state):
        if not _is_of(row, message, queue) or (row.state == SUPERSEDED and not row.edited):
            continue
        if row.edited or row.state in (PROCESSED, FAILED, DISCARDED):
            return True
        if row.state == PROCESSING and row.token and row.content and not _comes_again(model, row):
            return True
        fence = max(fence, row.round)
    return _is_on_its_way(state, message, queue, fence, surely=surely)


def _is_on_its_way(state: State, message: int, queue: int, fence: int, *, surely: bool) -> bool:
    but = ENDING if surely else ()
    sent_already = [relay.row.message for relay in state.relays if relay.row and relay.phase == SENT] if surely else []
    for database in state.databases:
        for sent in database.outbox:
            if sent and sent.message == message and sent.queue in (0, queue):
                if sent.state in (FAILED, DISCARDED) and not sent.inbox:
                    return True
                if sent.state == PENDING and (sent.round >= fence or not sent.key) and message not in sent_already:
                    return True
    held = [
        copy
        for one in state.consumers
        if one.live and one.phase not in but
        for copy in (one.copies[1:] if one.acked else one.copies)
    ]
    return any(
        copy.message == message and copy.queue == queue and (copy.round >= fence or not copy.key)
        for copy in (*state.broker, *held)
    )


def _has_ended(model: Model, state: State, message: int, queue: int) -> bool:
    """Whether a message rests where it should: processed, failed, laid aside, or edited."""
    if state.gone[model.pair(message, queue)]:
        return True
    for database in state.databases:
        for sent in database.outbox:
            if sent and sent.message == message and not sent.inbox and sent.state in (FAILED, DISCARDED):
                return True
    ended = (PROCESSED, FAILED, DISCARDED)
    return any(row.edited or row.state in ended for _, row in _rows(state) if _is_of(row, message, queue))


def _is_unfinished(model: Model, state: State, row: Row) -> bool:
    return row.state in (PROCESSING, *AWAITING) and not _was_lost(model, state, row)


def _was_lost(model: Model, state: State, row: Row) -> bool:
    """Whether the broker or a failover lost it. Without an id, no replay can be told to belong to its row."""
    return state.lost[model.pair(row.message, row.queue)] or (row.key >= ANONYMOUS and model.has_lost(state))


def _is_pending(state: State) -> bool:
    return any(sent and sent.state == PENDING for database in state.databases for sent in database.outbox)


def _has_way_out(model: Model, state: State, place: tuple[int, int], row: Row) -> bool:
    if row.state in (PROCESSED, DISCARDED, SUPERSEDED):
        return True
    return takes_verbs(model, state, *place)


def _is_stuck(model: Model, state: State) -> bool:
    """Whether an outbox row failed for good, so that retention keeps it, and what it is a round of, for ever."""
    for database, one in enumerate(state.databases):
        for number, sent in enumerate(one.outbox, 1):
            if sent and sent.state == FAILED and not outgoing_takes_verbs(model, state, database, number):
                row = row_of(state, database, sent.inbox)
                if not row or row.key != sent.key or not takes_verbs(model, state, database, sent.inbox):
                    return True
    return False


def _is_of(row: Row, message: int, queue: int) -> bool:
    return row.message == message and row.queue == queue


def _comes_again(model: Model, row: Row) -> bool:
    """Whether a claim waits for its delivery, as the protocol has it (whatever a mutant does)."""
    if row.key < ANONYMOUS or row.round != 1:
        return False
    return model.of.atomic if row.at_broker is None else row.at_broker


def _rows(state: State) -> Iterator[tuple[tuple[int, int], Row]]:
    for database, one in enumerate(state.databases):
        for number, row in enumerate(one.inbox, 1):
            if row:
                yield (database, number), row
