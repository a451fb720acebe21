"""Publishing, and what a relay does with a row: lease, send, mark."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import (
    Model,
    Step,
    action,
    changed,
    outgoing_of,
    row_of,
    waits_for,
    with_outgoing,
    with_row,
)  # fmt: skip
from tests.model.states import (
    DISCARDED,
    FAILED,
    FRESH,
    IDLE,
    LEASED,
    PENDING,
    PUBLISHED,
    RETURNED,
    SENT,
    Copy,
    Outgoing,
    Relay,
    State,
    held_back,
)  # fmt: skip

ROWS = "models.outbox.PublishedMessageQuerySet"

PUBLISH = action(
    "publish",
    "progress",
    "publishing.publisher.publish_many",
    "publishing.publisher._save",
    at=("publisher.saved", "publisher.committed"),
)
LEASE = action("lease", "progress", f"{ROWS}.lease", f"{ROWS}._lease_in_steps", at=("relay.leased",))
SEND = action(
    "send", "progress", "relaying.relay.Relay._send", "backends.database.sender.DatabaseSender._store",
    at=("relay.sent", "relay.confirmed"),
)  # fmt: skip
RETURN = action("return as unroutable", "trouble", "backends.database.sender.DatabaseSender._address")
LOSE_CONFIRM = action("lose the confirm", "trouble", f"{ROWS}.release", "relaying.leases.Leases.returned")
MARK = action(
    "mark published", "progress", f"{ROWS}.mark_published", "relaying.leases.Marker._mark", at=("relay.marked",)
)
BACK_OFF = action("back off", "progress", f"{ROWS}.back_off")
FAIL = action("fail the outgoing row", "progress", f"{ROWS}.fail", "models.published.PublishedMessage.fail_round")
DIE = action("a relay dies", "trouble")
LAPSE = action("a lease lapses", "trouble", f"{ROWS}.renew")
LAPSE_LEFT = action("a lease of nobody lapses", "progress")


def publish(model: Model, state: State) -> Iterator[Step]:
    """The caller's transaction commits a row."""
    if state.unpublished:
        message = model.of.messages - state.unpublished
        rows = (*state.databases[0].outbox, Outgoing(message, message + 1 if model.of.identified else 0))
        state = changed(state, 0, outbox=rows)
        yield Step(PUBLISH, state._replace(unpublished=state.unpublished - 1), f"message {message}")


def relaying(model: Model, state: State) -> Iterator[Step]:
    """What each relay may do next, and what may befall it."""
    for index, relay in enumerate(state.relays):
        about = f"message {relay.row.message}, round {relay.row.round}" if relay.row else ""
        for step in PHASES[relay.phase](model, state, index, relay):
            yield step if step.about else step._replace(about=about)
        if relay.phase != IDLE and model.may(state, "a relay dies"):
            after = _with(state, index, Relay(old=relay.old))
            if row := _held(state, relay):  # nobody tells when it lapses from when it is looked for
                after = with_outgoing(after, relay.database, relay.number, row._replace(token=0, lapsed=False))
            yield Step(DIE, model.spent(after, DIE.name), about)


def leases(model: Model, state: State) -> Iterator[Step]:
    """A lease lapses at any time though its holder lives, and is renewed by it where nobody was faster."""
    held = {(relay.database, relay.number, relay.row.token) for relay in state.relays if relay.row}
    for database, number, row in _rows(state):
        if row.state == PENDING and row.token and not row.lapsed:
            about, after = f"message {row.message}", with_outgoing(state, database, number, row._replace(lapsed=True))
            if (database, number, row.token) not in held:  # left behind by a failover
                yield Step(LAPSE_LEFT, after, about)
            elif model.may(state, LAPSE.name):
                yield Step(LAPSE, model.spent(after, LAPSE.name), about)


def _idle(model: Model, state: State, index: int, relay: Relay) -> Iterator[Step]:
    for database, number, row in _rows(state):
        if row.state == PENDING and (not row.token or row.lapsed) and not _has_enough(model, state, row):
            leased = row._replace(token=FRESH, lapsed=False)
            after = with_outgoing(state, database, number, leased)
            held = Relay(LEASED, database, number, leased, relay.old)
            yield Step(LEASE, _with(after, index, held), f"message {row.message}, round {row.round}")


def _leased(model: Model, state: State, index: int, relay: Relay) -> Iterator[Step]:
    row = relay.row
    assert row
    queues = (row.queue,) if row.queue else range(1, model.of.queues + 1)
    copies = held_back(state.broker, *(Copy(queue, row.message, row.key, row.round) for queue in queues))
    yield Step(SEND, _with(state._replace(broker=copies), index, relay._replace(phase=SENT)))
    if model.may(state, RETURN.name):
        yield Step(RETURN, model.spent(_with(state, index, relay._replace(phase=RETURNED)), RETURN.name))


def _sent(model: Model, state: State, index: int, relay: Relay) -> Iterator[Step]:
    """Confirmed, and marked by number, id and sending epoch, whoever holds the lease by now; or never heard of."""
    after, leased = _with(state, index, Relay(old=relay.old)), relay.row
    row = outgoing_of(state, relay.database, relay.number)
    assert leased
    marked = after
    if row and row.state != PUBLISHED:
        by_number = model.deviates(relay.old, "mark by number alone")
        same_round = (row.round, row.queue) == (
            leased.round,
            leased.queue,
        ) or "rounds are marked alike" in model.mutants
        same_id = by_number or (same_round and (row.message == leased.message or not model.of.identified))
        same_sending = by_number or row.epoch == leased.epoch or model.deviates(relay.old, "no epoch")
        ours = not model.deviates(relay.old, "only the lease's holder marks") or row.token == leased.token
        if same_id and same_sending and ours:
            published = row._replace(state=PUBLISHED, token=0, lapsed=False)
            marked = with_outgoing(after, relay.database, relay.number, published)
    yield Step(MARK, marked)
    if model.may(state, LOSE_CONFIRM.name):
        held = _held(state, relay)
        if held:
            after = with_outgoing(after, relay.database, relay.number, held._replace(token=0, lapsed=False))
        yield Step(LOSE_CONFIRM, model.spent(after, LOSE_CONFIRM.name))


def _returned(model: Model, state: State, index: int, relay: Relay) -> Iterator[Step]:
    """Tried again for a while, then failed; a round takes its inbox row along."""
    after = _with(state, index, Relay(old=relay.old))
    row = _held(state, relay)
    if not row:
        yield Step(BACK_OFF, after)
        return
    rested = with_outgoing(after, relay.database, relay.number, row._replace(token=0, lapsed=False))
    yield Step(BACK_OFF, rested)
    incoming = row_of(state, relay.database, row.inbox)
    if incoming and model.is_locked(state, relay.database, incoming.queue, incoming.key):
        return
    failed = row._replace(state=FAILED, token=0, lapsed=False)
    waits = row.inbox > 0 and incoming and waits_for(incoming, row)
    if waits and incoming and not model.deviates(relay.old, "a failed round leaves its message"):
        after = with_row(after, relay.database, row.inbox, incoming._replace(state=FAILED))
    elif row.inbox and not waits and not model.deviates(relay.old, "failed round stays failed"):
        failed = failed._replace(state=DISCARDED)
    yield Step(FAIL, with_outgoing(after, relay.database, relay.number, failed))


PHASES = {IDLE: _idle, LEASED: _leased, SENT: _sent, RETURNED: _returned}


def _has_enough(model: Model, state: State, row: Outgoing) -> bool:
    """Whether the broker, or another relay, has as many copies as the model allows."""
    found = sum(one.message == row.message and one.round == row.round for one in state.broker)
    for consumer in state.consumers:
        if consumer.live and consumer.phase != IDLE:
            held = consumer.copies[1:] if consumer.acked else consumer.copies
            found += sum(one.message == row.message and one.round == row.round for one in held)
    return found >= model.of.copies * (1 if row.queue else model.of.queues)


def _held(state: State, relay: Relay) -> Outgoing | tuple[()]:
    """The relay's row, if its lease still stands."""
    row = outgoing_of(state, relay.database, relay.number)
    return row if row and relay.row and row.state == PENDING and row.token == relay.row.token else ()


def _rows(state: State) -> Iterator[tuple[int, int, Outgoing]]:
    for database, one in enumerate(state.databases):
        for number, row in enumerate(one.outbox, 1):
            if row:
                yield database, number, row


def _with(state: State, index: int, relay: Relay) -> State:
    return state._replace(relays=(*state.relays[:index], relay, *state.relays[index + 1 :]))
