"""Deaths, what is told of them, stops, and the claims of the dead."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import Model, Step, action, number_of, row_of, with_consumer, with_row
from tests.model.recording import abandoned, again, consequence, stands, unclaimed
from tests.model.states import (
    ANONYMOUS,
    AWAITING,
    BATCH,
    CLAIMED,
    DISCARDED,
    FAILED,
    FAILING,
    GOT,
    IDLE,
    OUTAGE,
    PROCESSED,
    PROCESSING,
    RAN,
    RECORDED,
    REQUEUED,
    RETRYING,
    RUNNING,
    Consumer,
    Report,
    Row,
    State,
    held_back,
)  # fmt: skip

DIES = action("a process dies", "trouble", "supervising.child.Child._note_end")
MACHINE_DIES = action("a machine dies", "trouble")
LOSE_CHANNEL = action("a channel is lost", "trouble", "models.embedded.EmbeddedConnectionQuerySet.end")
CLAIM_LAPSES = action("a claim lapses", "progress")
CLAIM_LAPSES_HELD = action("a claim lapses though held", "trouble")
CLAIM_LAPSES_AWAY = action("a claim lapses in an outage", "trouble", "db.connections.Outages.leases_tell")
RENEW = action("renew a claim", "trouble", "processing.station.Claims.renew")
SWEEP = action(
    "sweep",
    "progress",
    "processing.sweeping.sweep",
    "processing.sweeping._abandoned",
    "processing.without_handler.end_abandoned",
    "processing.without_handler.record_abandoned",
    "processing.failures.send_round",
)
REPORT = action(
    "report a crash",
    "progress",
    "processing.crashes.record_crash",
    "processing.crashes._count",
    "processing.crashes._insert",
)
REPORT_UNTOLD = action("report a crash and die before telling", "trouble", "processing.crashes.record_crash")
REPORT_LATER = action("look whose a crash was, and count it later", "trouble", "processing.crashes._record_unknown")
INSERT = action("count a crash in a row of its own", "progress", "processing.crashes._insert")
LAY_PHANTOM = action(
    "look for whose a crash was",
    "progress",
    "processing.crashes._settle_elsewhere",
    "processing.crashes._merge",
    "processing.crashes._remove",
)
STOP = action(
    "a stop signal",
    "trouble",
    "processing.stopping._mark",
    "processing.stopping._mark_free",
    "processing.stopping._say_stopping",
)
HAND_BACK = action("hand back what has not begun", "progress", "models.embedded.EmbeddedMessageQuerySet.free")
RELEASE = action(
    "release its claim and leave",
    "trouble",
    "processing.without_handler.give_up",
    "processing.failures.send_round",
    "processing.stopping.leave",
)
KILLED = action("the deadline of a stop", "trouble", "processing.without_handler.record_spared")
RESTART = action("start again", "progress")

IN_LEDGER = (RUNNING, RAN, FAILING, RECORDED)
REPORTS = 2  # that are pending at most


def dying(model: Model, state: State) -> Iterator[Step]:
    """What may befall each consumer."""
    for index, one in enumerate(state.consumers):
        if one.phase == IDLE:
            if one.stopping:
                yield Step(RESTART, with_consumer(state, index, one._replace(stopping=False)))
            continue
        copy = one.copies[0]
        about = f"message {copy.message}, round {copy.round}, {one.phase}"
        dead = _gone(state, index, one)
        if model.may(state, DIES.name):
            after = _reported(model, dead, one)
            if after is not None:
                yield Step(DIES, model.spent(after, DIES.name), about)
        if model.may(state, MACHINE_DIES.name):
            yield Step(MACHINE_DIES, model.spent(_forgiven(model, dead, one, claimed=False), MACHINE_DIES.name), about)
        if one.live and model.may(state, LOSE_CHANNEL.name):
            back = _returned(state, one)
            lost = with_consumer(back, index, one._replace(live=False))
            yield Step(LOSE_CHANNEL, model.spent(lost, LOSE_CHANNEL.name), about)
        yield from _stopping(model, state, index, one, about)


def _gone(state: State, index: int, one: Consumer) -> State:
    """Its process is replaced; what it had not acknowledged comes again."""
    return with_consumer(_returned(state, one), index, Consumer(home=state.home, old=one.old))


def _returned(state: State, one: Consumer) -> State:
    if not one.live:
        return state
    back = one.copies[1:] if one.acked else one.copies
    return state._replace(broker=held_back(state.broker, *(copy._replace(redelivered=True) for copy in back)))


def _forgiven(model: Model, state: State, one: Consumer, *, claimed: bool) -> State:
    """What began and is nobody's attempt: of a batch; of a run whose death nobody can tell; of what we ended."""
    if one.phase == BATCH:
        for copy in one.copies:
            state = model.owe(state, copy.message, copy.queue, -1)
    elif one.phase in (RUNNING, RAN, FAILING) and one.row:
        row = row_of(state, one.database, one.number)
        stands = row.state == PROCESSING and row.token == one.token if row else False
        if (claimed and stands) or not one.token:
            state = model.owe(state, one.row.message, one.row.queue, -1)
    return state


def _reported(model: Model, state: State, one: Consumer) -> State | None:
    """With the report of what the ledger showed; None where the model has enough of them."""
    row = one.row
    if one.phase not in IN_LEDGER or not row or not one.run:
        return _forgiven(model, state, one, claimed=False)
    if len(state.reports) >= REPORTS:
        return None
    place = (one.database, row.queue, row.message, row.key, row.round)
    is_last = one.number > 0 and row.attempts + 1 >= model.of.attempts and stands(model, state, one)
    report = Report(*place, one.token, one.run, one.before, one.void, last=is_last)
    return state._replace(reports=tuple(sorted((*state.reports, report))))


# Reports


class Locked(Exception):
    """Another run of the message holds its row: the report stays pending."""


def reporting(model: Model, state: State) -> Iterator[Step]:
    """A successor records how a process died."""
    old = any(one.old for one in state.consumers)
    for place, report in enumerate(state.reports):
        about = f"message {report.message}, round {report.round}"
        rest = state._replace(reports=(*state.reports[:place], *state.reports[place + 1 :]))
        if model.is_locked(state, report.database, report.queue, report.key):
            if model.deviates(old, "reports end at a lock"):
                yield Step(REPORT, _noted(rest, rest, report), about)
            continue
        if report.row < 0:
            yield Step(INSERT, _in_a_row_of_its_own(model, rest, report), about)
            continue
        try:
            after = _recorded(model, rest, report, old) if not report.row else _laid(model, rest, report)
        except Locked:
            continue
        after = _noted(rest, after, report)
        if not report.row and _is_in_a_row_of_its_own(rest, after, report) and model.may(state, REPORT_LATER.name):
            yield Step(REPORT_LATER, model.spent(_asking(rest, report, -1), REPORT_LATER.name), about)
        yield Step(LAY_PHANTOM if report.row else REPORT, after, about)
        if not report.row and model.may(state, REPORT_UNTOLD.name):
            untold = after._replace(reports=tuple(sorted((*rest.reports, report))))
            yield Step(REPORT_UNTOLD, model.spent(untold, REPORT_UNTOLD.name), about)


def _noted(before: State, after: State, report: Report) -> State:
    """With a note, for the invariants, of a death that is told, is not counted, and leaves its message to go on."""
    if report.void or len(after.reports) > len(before.reports):  # it is told once more when it has been looked for
        return after
    ours = [row for one in before.databases for row in one.inbox if row and _is_about(row, report)]
    counted = [row for one in after.databases for row in one.inbox if row and report.run in row.runs]
    is_over = any(row.state not in (PROCESSING, RETRYING) or row.round < report.round for row in ours)
    if is_over or any(_is_about(row, report) for row in counted):
        return after
    return after._replace(forgotten=True)


def _is_about(row: Row, report: Report) -> bool:
    """Whether a row may be of the message of a death; one without an id comes again under another key."""
    if row.queue != report.queue:
        return False
    is_alike = row.key >= ANONYMOUS and report.key >= ANONYMOUS and row.key not in report.before
    return row.key == report.key or is_alike


def _recorded(model: Model, state: State, report: Report, old: bool) -> State:
    database, number = report.database, number_of(state, report.database, report.queue, report.key)
    row = row_of(state, database, number)
    if not row:
        elsewhere = _known_elsewhere(model, state, report, old)
        return _recorded_unknown(model, state, report) if elsewhere is None else elsewhere
    has_identity = not model.deviates(old, "reports without identity")
    if has_identity and (report.run in row.runs or _is_counted_elsewhere(state, report)):
        bare = row.state == PROCESSING and not row.token and not row.content and row.key >= ANONYMOUS
        return _asking(state, report, number) if bare else state
    counted = row._replace(attempts=row.attempts + 1, runs=(*row.runs, report.run))
    fewer = model.owe(state, row.message, row.queue, -1)
    if row.state not in (PROCESSING, *AWAITING) or (row.state == PROCESSING and not row.token):
        return state
    if row.round < report.round:
        return state
    if row.round > report.round:
        if not has_identity or row.state == REQUEUED or report.void:
            return state
        if row.state == RETRYING and counted.attempts >= model.of.attempts:
            return with_row(fewer, database, number, counted._replace(state=FAILED))
        return with_row(fewer, database, number, counted)
    if row.state == PROCESSING and row.token != report.token:
        return with_row(fewer, database, number, counted)
    if row.state == PROCESSING and model.comes_again(row, old):
        return with_row(fewer, database, number, unclaimed(model, counted, False))
    return consequence(model, fewer, database, number, counted, old)


def _is_counted_elsewhere(state: State, report: Report) -> bool:
    """Whether another database has counted the crash of a message with an id, before its handler moved on."""
    others = [one.inbox for database, one in enumerate(state.databases) if database != report.database]
    rows = [row for inbox in others for row in inbox if row and report.key < ANONYMOUS]
    return any(row.key == report.key and row.queue == report.queue and report.run in row.runs for row in rows)


def _known_elsewhere(model: Model, state: State, report: Report, old: bool) -> State | None:
    """The handler has another database since, where its message is recorded: the crash is counted there."""
    if "a crash is told to one database" in model.mutants:
        return None
    if report.key >= ANONYMOUS or model.deviates(old, "handler's database alone"):
        return None
    for database in range(len(state.databases)):
        number = number_of(state, database, report.queue, report.key) if database != report.database else 0
        if row := row_of(state, database, number):
            if model.is_locked(state, database, row.queue, row.key):
                raise Locked
            return _recorded(model, state, report._replace(database=database), old)
    return None


def _recorded_unknown(model: Model, state: State, report: Report) -> State:
    """The crash of a run that left no row: counted where the message came again, else in a row without content."""
    if report.key >= ANONYMOUS and "phantoms stay" not in model.mutants:
        known = _settled(model, state, report, 0)
        if known is not None:
            return known
    return _in_a_row_of_its_own(model, state, report)


def _in_a_row_of_its_own(model: Model, state: State, report: Report) -> State:
    own = (report.message, report.key, report.queue)
    crash = Row(*own, round=report.round, attempts=1, content=False, runs=(report.run,))
    state = with_row(model.owe(state, report.message, report.queue, -1), report.database, 0, crash)
    if report.key < ANONYMOUS or model.mutants & {"phantoms stay", "a crash is looked for once"}:
        return state
    return _asking(state, report, len(state.databases[report.database].inbox))


def _is_in_a_row_of_its_own(before: State, after: State, report: Report) -> bool:
    """Whether a crash is now counted in a new row, whose message may have come again under another key."""
    own = (report.database, report.queue, report.key)
    return report.key >= ANONYMOUS and not number_of(before, *own) and number_of(after, *own) > 0


def _asking(state: State, report: Report, number: int) -> State:
    """Its own row is committed: now it is looked for whose it is."""
    return state._replace(reports=tuple(sorted((*state.reports, report._replace(row=number)))))


def _settled(model: Model, state: State, report: Report, number: int) -> State | None:
    """Counted in the row that the message came again under since; its own row, if it made one, goes."""
    own = row_of(state, report.database, number)
    ended = False
    for there, row in enumerate(state.databases[report.database].inbox, 1):
        if not row or row.key < ANONYMOUS or row.key == report.key or row.key in report.before:
            continue
        if row.queue != report.queue:
            continue
        if report.run in row.runs:
            return state
        if row.state == RETRYING or (row.state == PROCESSING and row.content and row.at_broker is not False):
            if model.is_locked(state, report.database, row.queue, row.key):
                raise Locked
            counted = row._replace(attempts=row.attempts + 1, runs=(*row.runs, report.run))
            state = with_row(state, report.database, there, counted)
            if own:
                return with_row(state, report.database, number, ())
            return model.owe(state, row.message, row.queue, -1)
        # An ordinary first delivery of another message with the same content claims nothing, and has one round.
        came = row.state == PROCESSED and (row.at_broker is True or row.round > 1)
        ended = ended or row.state in (FAILED, REQUEUED, DISCARDED) or came
    if not ended:
        return None
    return with_row(state, report.database, number, ()) if own else state


def _laid(model: Model, state: State, report: Report) -> State:
    """Look once more, after the crash's own row is committed: the message may have been claimed meanwhile."""
    own = row_of(state, report.database, report.row)
    if not own or own.key != report.key or own.content or own.state != PROCESSING or own.token:
        return state
    return _settled(model, state, report, report.row) or state


# Claims


def claims(model: Model, state: State) -> Iterator[Step]:
    """A claim lapses at any time; its holder may have died, or be slow, or have lost the database."""
    held = {token for one in state.consumers if one.phase != IDLE for token in (one.token, one.waiting) if token}
    for database, one in enumerate(state.databases):
        for number, row in enumerate(one.inbox, 1):
            if row and row.state == PROCESSING and row.token:
                about = f"message {row.message}, round {row.round}"
                for step in _lapsing(model, state, database, number, row, held):
                    yield step._replace(about=about)
                for by in {other.old for other in state.consumers}:
                    if _is_swept(model, row, by) and not model.is_locked(state, database, row.queue, row.key):
                        yield Step(SWEEP, abandoned(model, state, database, number, by), about)


def _is_swept(model: Model, row: Row, old: bool) -> bool:
    waits = model.comes_again(row, old) and "sweep what comes again" not in model.mutants
    return row.lapsed > 0 and row.content and not waits


def _lapsing(model: Model, state: State, database: int, number: int, row: Row, held: set[int]) -> Iterator[Step]:
    lapsed = with_row(state, database, number, row._replace(lapsed=1))
    if row.lapsed:
        if row.token in held and model.may(state, CLAIM_LAPSES_HELD.name):
            yield Step(RENEW, with_row(state, database, number, row._replace(lapsed=0)))
        return
    if row.token not in held:
        yield Step(CLAIM_LAPSES, lapsed)
    elif model.may(state, CLAIM_LAPSES_HELD.name):
        yield Step(CLAIM_LAPSES_HELD, model.spent(lapsed, CLAIM_LAPSES_HELD.name))
    if model.may(state, CLAIM_LAPSES_AWAY.name):
        away = with_row(state, database, number, row._replace(lapsed=OUTAGE))
        yield Step(CLAIM_LAPSES_AWAY, model.spent(away, CLAIM_LAPSES_AWAY.name))


# Stops


def _stopping(model: Model, state: State, index: int, one: Consumer, about: str) -> Iterator[Step]:
    releases = not model.deviates(one.old, "stop releases nothing")
    if not one.stopping:
        if model.may(state, STOP.name):
            after = with_consumer(state, index, one._replace(stopping=True))
            row = row_of(state, one.database, one.number) if one.token else ()
            if releases and row and row.state == PROCESSING and row.token == one.token and one.phase != CLAIMED:
                after = with_row(after, one.database, one.number, row._replace(interrupted=True))
            yield Step(STOP, model.spent(after, STOP.name), about)
        return
    back = _gone(state, index, one)
    if one.phase == GOT and not one.acked:
        yield Step(HAND_BACK, back, about)
    left = _forgiven(model, back, one, claimed=True)
    if not releases or not one.token:
        yield Step(KILLED, left, about)
        return
    yield Step(RELEASE, _released(model, left, one), about)
    yield Step(KILLED, left, about)


def _released(model: Model, state: State, one: Consumer) -> State:
    """Its claim ends without an attempt."""
    row = row_of(state, one.database, one.number)
    if not row or row.state != PROCESSING or row.token != one.token:
        return state
    if model.comes_again(row, one.old):
        free = unclaimed(model, row, False)._replace(interrupted=True)
        return with_row(state, one.database, one.number, free)
    return again(model, state, one.database, one.number, row, one.old)
