"""Which changes of state the model's steps make: the table of `docs/architecture.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.model.canonical import canonical
from tests.model.explore import steps
from tests.model.outside import FAIL_OVER, LAG
from tests.model.protocol import Configuration, Model
from tests.model.states import Outgoing, Row, State

NONE = "—"
Transition = tuple[str, str, str]  # "outbox" or "inbox", from, to


def taken(worlds: Iterable[Configuration], states: int) -> dict[Transition, set[str]]:
    """The changes that are made in these worlds, with the actions that make them; so many states of each."""
    found: dict[Transition, set[str]] = {}
    for world in worlds:
        model = Model(world)
        start = canonical(model.start())
        seen, waiting = {start}, [start]
        for state in waiting:
            for step in steps(model, state):
                if step.action not in (FAIL_OVER, LAG):
                    for change in _changes(state, step.state):
                        found.setdefault(change, set()).add(_told(step.action.name))
                if step.state not in seen and len(seen) < states:
                    seen.add(step.state)
                    waiting.append(step.state)
    return found


def _told(name: str) -> str:
    """An action's name, whether its answer gets lost or not."""
    for untold in (", the answer lost", ", its answer lost", " and die before telling"):
        name = name.removesuffix(untold)
    return name


def name_of(row: Row) -> str:
    """A row's state; `processing` is three: claimed, claimed and lapsed, and a crash that is counted."""
    if row.state != "processing":
        return row.state
    return "processing, counted" if not row.token else "processing"


def _changes(before: State, after: State) -> Iterator[Transition]:
    for old, new in zip(before.databases, after.databases, strict=True):
        yield from _between("outbox", old.outbox, new.outbox)
        yield from _between("inbox", old.inbox, new.inbox)


def _between(
    table: str, old: tuple[Outgoing | Row | tuple[()], ...], new: tuple[Outgoing | Row | tuple[()], ...]
) -> Iterator[Transition]:
    for place in range(max(len(old), len(new))):
        was, now = (rows[place] if place < len(rows) else () for rows in (old, new))
        names = [NONE if not row else name_of(row) if isinstance(row, Row) else row.state for row in (was, now)]
        if names[0] != names[1]:
            yield (table, names[0], names[1])
