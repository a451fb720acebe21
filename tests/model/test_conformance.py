"""The real relay and the real processor take random ways through the model, and have its rows after each step."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from messaging import killpoints
from messaging.relaying import relay
from tests.emptying import empty_database
from tests.model.acting import Watch
from tests.model.canonical import canonical
from tests.model.configurations import BY_NAME, PURGE, REPLAY
from tests.model.explore import steps
from tests.model.protocol import Configuration, Model, Step
from tests.model.real import Site, rows_in, rows_of
from tests.model.states import State
from tests.settings import TEST_DB

pytestmark = pytest.mark.django_db(transaction=True)

LENGTH = 60
WALKS = 12
DOABLE = frozenset(
    {
        "a relay dies",
        "a lease lapses",
        "a process dies",
        "a machine dies",
        "a channel is lost",
        "a claim lapses though held",
    }
)
UNDOABLE = frozenset({"renew a claim"})
LOCKS = TEST_DB != "sqlite"


def _world(name: str, **options: object) -> Configuration:
    return replace(BY_NAME[name], trouble=DOABLE, troubles=3, rounds=9, locks=LOCKS, **options)  # type: ignore[arg-type]


WORLDS = (
    _world("one message"),
    _world("not atomic"),
    _world("no id"),
    _world("no id, not atomic"),
    _world("operators"),
    _world("purge", rarely={PURGE: 1, REPLAY: 1}),
)


@pytest.fixture(autouse=True)
def _stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killpoints, "_armed", Watch())
    monkeypatch.setattr(relay, "BATCH", 1)


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, WALKS))])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_code_has_the_rows_of_the_model_after_each_step(world: Configuration, seed: int) -> None:
    walk(world, seed)


def walk(world: Configuration, seed: int) -> None:
    """Take a random way from empty tables; raises AssertionError, with it so far, where the code does otherwise."""
    empty_database("default")
    chance, model = random.Random(f"{world.name} {seed}"), Model(world)
    state, taken = canonical(model.start()), []
    site = Site(identified=world.identified, atomic=world.atomic, attempts=world.attempts)
    try:
        for _ in range(LENGTH):
            step = _next(model, state, chance)
            if step is None:
                break
            taken.append(f"{step.action.name} ({step.about})")
            site.do(step, state)
            state = step.state
            if not state.reports or not any(report.row for report in state.reports):
                assert rows_of(site) == rows_in(state)
    except AssertionError as error:
        raise AssertionError("\n".join([*taken, str(error)])) from error
    finally:
        site.close()


def _next(model: Model, state: State, chance: random.Random) -> Step | None:
    """A step that the code can be made to take, each kind as likely as the other."""
    possible = [step for step in steps(model, state) if step.action.name not in UNDOABLE]
    if any(report.row for report in state.reports):  # part of one call of the code
        return next(step for step in possible if step.action.name == "look for whose a crash was")
    by_name: dict[str, list[Step]] = {}
    for step in possible:
        by_name.setdefault(step.action.name, []).append(step)
    return chance.choice(by_name[chance.choice(sorted(by_name))]) if by_name else None
