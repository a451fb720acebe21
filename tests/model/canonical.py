"""States that differ in nothing but the numbers of tokens and drawn keys are one."""

from __future__ import annotations

from tests.model.states import (
    ANONYMOUS,
    FRESH,
    IDLE,
    UNCLAIMED_RUN,
    Consumer,
    Copy,
    Database,
    Outgoing,
    Relay,
    Report,
    Row,
    State,
)  # fmt: skip


def canonical(state: State) -> State:
    """The same state with its tokens and drawn keys numbered in the order in which they are met."""
    relays = tuple(sorted(state.relays, key=_relay_order)) if len(state.relays) > 1 else state.relays
    consumers = tuple(sorted(state.consumers, key=_consumer_order)) if len(state.consumers) > 1 else state.consumers
    if relays != state.relays or consumers != state.consumers:
        state = state._replace(relays=relays, consumers=consumers)
    if _is_in_order(state):
        return state
    numbered = renumbered(state)
    return numbered._replace(reports=tuple(sorted(numbered.reports)))


def renumbered(state: State) -> State:
    """The same with everybody, and every report, in the place where it was."""
    names = _Names(state.relays, state.consumers, state)
    return state._replace(
        databases=tuple(map(names.database, state.databases)),
        relays=tuple(map(names.relay, state.relays)),
        consumers=tuple(map(names.consumer, state.consumers)),
        broker=tuple(sorted(map(names.copy, state.broker))),
        reports=tuple(map(names.report, state.reports)),
        replica=tuple(map(names.database, state.replica)),
    )


def _is_in_order(state: State) -> bool:
    """Whether its tokens and drawn keys are met in the order of their numbers; a quick look, which may say no."""
    if state.reports or state.replica or any(row and row.runs for one in state.databases for row in one.inbox):
        return False
    rows = [row for database in state.databases for row in (*database.outbox, *database.inbox) if row]
    rows += [relay.row for relay in state.relays if relay.row]
    tokens, keys = [row.token for row in rows], [row.key for row in rows]
    for one in state.consumers:
        if one.before or one.elsewhere:
            return False
        if one.row:
            tokens.append(one.row.token)
            keys.append(one.row.key)
        tokens += (one.token, one.waiting)
    return _ascend(tokens, 0) and _ascend(keys, ANONYMOUS - 1)


def _ascend(numbers: list[int], last: int) -> bool:
    for number in numbers:
        if number > last + 1:
            return False
        last = max(last, number)
    return True


def _relay_order(relay: Relay) -> tuple[object, ...]:
    return (relay.old, relay.phase, relay.database, relay.number)


def _consumer_order(one: Consumer) -> tuple[object, ...]:
    return (one.old, one.phase, one.copies, one.database, one.number, one.acked, one.live, one.again, one.stopping)


class _Names:
    """New numbers for tokens and keys."""

    def __init__(self, relays: tuple[Relay, ...], consumers: tuple[Consumer, ...], state: State) -> None:
        self._tokens = {0: 0}
        self._keys: dict[int, int] = {}
        tokens = [one.row.token for one in relays if one.row]
        for one in consumers:
            tokens += (one.token, one.run, one.waiting)
        tokens += [number for report in state.reports for number in (report.token, report.run)]
        tokens += [row.token for database in state.databases for row in database.inbox if row]
        self._known = set(tokens)

    def token(self, token: int) -> int:
        if UNCLAIMED_RUN < token < FRESH:
            return token
        return self._tokens.setdefault(token, len(self._tokens))

    def key(self, key: int) -> int:
        return key if key < ANONYMOUS else self._keys.setdefault(key, ANONYMOUS + len(self._keys))

    def keys(self, keys: tuple[int, ...]) -> tuple[int, ...]:
        """Those of them that are still rows."""
        return tuple(sorted(self._keys[key] for key in keys if key in self._keys)) if keys else ()

    def database(self, one: Database) -> Database:
        return Database(tuple(map(self.outgoing, one.outbox)), tuple(map(self.row, one.inbox)), one.effects)

    def outgoing(self, one: Outgoing | tuple[()]) -> Outgoing | tuple[()]:
        if not one or (not one.token and one.key < ANONYMOUS):
            return one
        return one._replace(token=self.token(one.token), key=self.key(one.key))

    def row(self, one: Row | tuple[()]) -> Row | tuple[()]:
        if not one or (not one.token and not one.runs and one.key < ANONYMOUS):
            return one
        runs = tuple(sorted(self.token(run) for run in one.runs if run in self._known)) if one.runs else ()
        return one._replace(token=self.token(one.token), key=self.key(one.key), runs=runs)

    def relay(self, one: Relay) -> Relay:
        return one._replace(row=self.outgoing(one.row)) if one.row else one

    def copy(self, one: Copy) -> Copy:
        return one if one.key < ANONYMOUS else one._replace(key=self.key(one.key))

    def consumer(self, one: Consumer) -> Consumer:
        if one.phase == IDLE:
            return one
        elsewhere = one.elsewhere
        return one._replace(
            copies=tuple(map(self.copy, one.copies)),
            row=self.row(one.row),
            token=self.token(one.token),
            run=self.token(one.run),
            waiting=self.token(one.waiting),
            before=self.keys(one.before),
            elsewhere=(elsewhere[0], elsewhere[1], self.row(elsewhere[2])) if elsewhere else (),  # type: ignore[arg-type]
        )

    def report(self, one: Report) -> Report:
        return one._replace(
            key=self.key(one.key), token=self.token(one.token), run=self.token(one.run), before=self.keys(one.before)
        )
