"""Goes through every state that can be reached, nearest first, so that what it finds is found by the shortest way."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model.canonical import canonical
from tests.model.consuming import consuming
from tests.model.crashing import claims, dying, reporting
from tests.model.invariants import REST, broken
from tests.model.operating import operating
from tests.model.outside import happening
from tests.model.protocol import ACTIONS, Configuration, Model, Step
from tests.model.relaying import leases, publish, relaying
from tests.model.states import State

SOURCES = (publish, relaying, leases, consuming, reporting, claims, dying, operating, happening)
NAMES = tuple(ACTIONS)
PLACES = {name: place for place, name in enumerate(NAMES)}


@dataclass
class Result:
    """What an exploration found.

    Attributes:
        states: how many were visited.
        complete: whether that were all.
        broken: by invariant, the shortest way to a state that breaks it, with that state.
        taken: how often each action was taken.
        seconds: how much processor time it took.
    """

    configuration: Configuration
    states: int = 0
    complete: bool = False
    broken: dict[str, list[str]] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In a few words."""
        return "holds" if not self.broken else "broken: " + ", ".join(self.broken)


def steps(model: Model, state: State) -> Iterator[Step]:
    """Every step from a state; the states that they lead to are canonical."""
    for source in SOURCES:
        for step in source(model, state):
            after = canonical(step.state)
            if after != state:
                yield step._replace(state=after)


def beginning(model: Model) -> State:
    """The state in which the exploration begins."""
    state = canonical(model.start())
    for said in model.of.begun:
        state = next(step.state for step in steps(model, state) if _said(step) == said)
    return state


def _said(step: Step) -> str:
    return f"{step.action.name} ({step.about})" if step.about else step.action.name


def explore(configuration: Configuration, limit: int = 10_000_000, *, first_only: bool = False) -> Result:
    """Visit all states of a configuration, `limit` at most.

    Args:
        configuration: how large the world is.
        limit: how many states to visit at most.
        first_only: whether to stop at the first invariant that is broken.
    """
    search = _Search(Model(configuration), limit)
    return search.run(first_only=first_only)


class _Search:
    def __init__(self, model: Model, limit: int) -> None:
        self._model, self._limit = model, limit
        self._places: dict[int, int] = {}
        self._parents = array("q")
        self._heads = array("q")  # of progress from one state to another
        self._tails = array("q")
        self._quiet = bytearray()
        self._result = Result(model.of)

    def run(self, *, first_only: bool) -> Result:
        """Visit them."""
        begun, result, relaxed = time.process_time(), self._result, self._model.of.relaxed
        start = beginning(self._model)
        self._place(start, -1)
        level = [(0, start)]
        while level and not (first_only and result.broken) and len(self._parents) <= self._limit:
            following: list[tuple[int, State]] = []
            for place, state in level:
                quiet = self._visit(place, state, following)
                self._quiet.append(quiet)
                for name in broken(self._model, state, at_rest=bool(quiet)):
                    if name not in result.broken and name not in relaxed:
                        result.broken[name] = [*self._way_to(place), _shown(state)]
            level = following
        result.states, result.complete = len(self._parents), not level
        if not (first_only and result.broken) and REST not in relaxed:
            self._check_rest()
        result.seconds = time.process_time() - begun
        return result

    def _visit(self, place: int, state: State, following: list[tuple[int, State]]) -> int:
        quiet, taken = 1, self._result.taken
        for step in steps(self._model, state):
            taken[step.action.name] += 1
            there, is_new = self._place(step.state, place)
            if is_new:
                following.append((there, step.state))
            if step.action.kind == "progress":
                quiet = 0
                self._tails.append(place)
                self._heads.append(there)
        return quiet

    def _place(self, state: State, parent: int) -> tuple[int, bool]:
        # Known by its hash of 64 bits: that two of a few million states share one is less likely than one to a million.
        place = self._places.setdefault(hash(state), len(self._parents))
        if place < len(self._parents):
            return place, False
        self._parents.append(parent)
        return place, True

    def _check_rest(self) -> None:
        """From every state, what goes on by itself must be able to end.

        What was not visited is taken to be able to: what is found is true of a world that was cut off as well.
        """
        count = len(self._parents)
        before: list[list[int]] = [[] for _ in range(count)]
        for tail, head in zip(self._tails, self._heads, strict=True):
            before[head].append(tail)
        reached = self._quiet + b"\1" * (count - len(self._quiet))
        waiting = [place for place in range(count) if reached[place]]
        while waiting:
            for tail in before[waiting.pop()]:
                if not reached[tail]:
                    reached[tail] = 1
                    waiting.append(tail)
        never = reached.find(0)
        if never >= 0:
            self._result.broken[REST] = self._way_to(never)

    def _way_to(self, place: int) -> list[str]:
        """The actions on the shortest way to a state."""
        way = [place]
        while self._parents[way[-1]] >= 0:
            way.append(self._parents[way[-1]])
        said, state = list(self._model.of.begun), beginning(self._model)
        for there in reversed(way[:-1]):
            for step in steps(self._model, state):
                if self._place(step.state, -1)[0] == there:
                    said.append(_said(step))
                    state = step.state
                    break
        return said


def _shown(state: State) -> str:
    """A state in one line."""
    parts = []
    for number, database in enumerate(state.databases):
        rows = [
            f"{row.state} r{row.round} a{row.attempts}{' claimed' if row.token else ''}"
            for row in database.inbox
            if row
        ]
        sent = [f"{one.state} r{one.round}" for one in database.outbox if one]
        parts.append(f"database {number}: outbox [{', '.join(sent)}] inbox [{', '.join(rows)}] {database.effects}")
    return "; ".join([*parts, f"broker {len(state.broker)}", f"owed {state.owed}", f"lost {state.lost}"])
