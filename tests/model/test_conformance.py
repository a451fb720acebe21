"""The real relay and the real processor take random ways through the model, and have its rows after each step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pytest_django import Settings

from messaging import killpoints
from messaging.processing import elsewhere
from messaging.relaying import relay
from tests.emptying import empty_database
from tests.model.acting import Watch
from tests.model.canonical import renumbered
from tests.model.configurations import BY_NAME, LAG, MOVE, PURGE, REPLAY, STOP
from tests.model.explore import SOURCES
from tests.model.protocol import Configuration, Model, Step
from tests.model.real import Site
from tests.model.rows import DATABASES, rows_in, rows_of
from tests.model.states import AWAITING, GOT, IDLE, PROCESSING, SENT, State
from tests.settings import TEST_DB

pytestmark = [pytest.mark.django_db(transaction=True, databases=DATABASES), pytest.mark.usefixtures("second_database")]

LENGTH = 60
WALKS = 12
DOABLE = frozenset(
    {
        "a relay dies",
        "a lease lapses",
        "lose the confirm",
        "a process dies",
        "a machine dies",
        "a channel is lost",
        "claim, its answer lost",
        "commit the handler, the answer lost",
        "the database goes away",
        "a claim lapses though held",
        "a claim lapses in an outage",
        "report a crash and die before telling",
    }
)
UNDOABLE = frozenset({"renew a claim"})
RARE = {
    "a relay dies": 0.1,
    "a lease lapses": 0.1,
    "lose the confirm": 0.3,
    "a channel is lost": 0.4,
    "report a crash": 0.4,
    "return as unroutable": 3.0,
    "the database goes away": 3.0,
    "claim, its answer lost": 2.0,
    "commit the handler, the answer lost": 3.0,
    "a claim lapses though held": 2.0,
}
OPEN = (PROCESSING, *AWAITING)
LOCKS = TEST_DB != "sqlite"
DEAD, PRUNE, PUBLISH, ASIDE = (
    "the broker gives a message up", "retention deletes it", "publish again", "discard the outgoing row",
)  # fmt: skip


def _world(name: str, called: str = "", **options: object) -> Configuration:
    given = {"trouble": DOABLE, "troubles": 3, "rounds": 9, "locks": LOCKS, "name": called or name, **options}
    return replace(BY_NAME[name], **given)  # type: ignore[arg-type]


TWO = {"relays": ("new",) * 2, "consumers": ("new",) * 2, "copies": 2}
UNROUTABLE = DOABLE | {"return as unroutable"}
WORLDS = (
    _world("one message"),
    _world("not atomic"),
    _world("no id"),
    _world("no id, not atomic"),
    _world("twins"),
    _world("twins, not atomic"),
    _world("twins", "two consumers of twins", consumers=("new",) * 2),
    _world("two of each"),
    _world("not atomic", "two of each, not atomic", **TWO),
    _world("operators"),
    _world("operators", "operators, not atomic", atomic=False),
    _world("edit"),
    _world("purge", rarely={PURGE: 1, REPLAY: 1}),
    _world("purge", "replay", relays=("new",) * 2, rarely={PURGE: 2, REPLAY: 3}),
    _world(
        "purge",
        "replay of later rounds",
        attempts=4,
        rarely={PURGE: 1, REPLAY: 3},
        trouble=frozenset({"lose the confirm", "a relay dies"}),
    ),
    _world("unroutable", trouble=UNROUTABLE, rarely={PUBLISH: 1, "requeue": 1, ASIDE: 1}),
    _world("stop", rarely={STOP: 2}),
    _world("stop, not atomic", rarely={STOP: 2}),
    _world("stop, no id", rarely={STOP: 2}),
    _world("two databases"),
    _world("two databases, not atomic"),
    _world("failover", rarely={LAG: 1}, relays=("new",) * 2),
    _world("failover", "failover with late marks", messages=1, relays=("new",) * 2, rarely={LAG: 1}, troubles=0),
    _world("dead letters", rarely={DEAD: 2}),
    _world("dead letters, no id", rarely={DEAD: 2}),
    _world("two queues"),
    _world("batch"),
    _world("retention", trouble=UNROUTABLE, rarely={PRUNE: 2, "requeue": 1, "discard": 1, PUBLISH: 1}),
)
NAMED = {world.name: world for world in WORLDS}


@pytest.fixture(autouse=True)
def _stepped(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    leases = {"LEASE": 3600}  # they end when the model says so
    settings.MESSAGING = {"default": {"URL": "database://", "DATABASES": list(DATABASES), **leases}}
    monkeypatch.setattr(killpoints, "_armed", Watch())
    monkeypatch.setattr(relay, "BATCH", 1)
    monkeypatch.setattr(elsewhere, "GAINED", -1.0)  # nothing is believed: each look asks


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, WALKS))])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_code_has_the_rows_of_the_model_after_each_step(world: Configuration, seed: int) -> None:
    walk(world, seed)


def walk(world: Configuration, seed: int) -> None:
    """Take a random way from empty tables; raises AssertionError, with it so far, where the code does otherwise."""
    for database in DATABASES:
        empty_database(database)
    chance, model = random.Random(f"{world.name} {seed}"), Model(world)
    state, taken = renumbered(model.start()), []
    site = Site(world)
    try:
        for _ in range(LENGTH):
            step = _next(model, state, site, chance)
            if step is None:
                break
            taken.append(f"{step.action.name} ({step.about})")
            site.do(step, state)
            state = renumbered(step.state)
            site.renumber(state)
            if PRUNE in world.rarely:
                site.prune_what_is_needed(state)
            if not any(report.row for report in state.reports):
                _compare(rows_of(site.names), rows_in(state, world.queues, identified=world.identified))
    except AssertionError as error:
        raise AssertionError("\n".join([*taken, str(error)])) from error
    finally:
        site.close()


def _compare(code: dict[str, Any], model: dict[str, Any]) -> None:
    differing = [
        f"{name}\n  code:  {code[name]}\n  model: {model[name]}" for name in model if code[name] != model[name]
    ]
    assert not differing, "\n".join(differing)


def _next(model: Model, state: State, site: Site, chance: random.Random) -> Step | None:
    """A step that the code can be made to take, each kind as likely as the other; not yet renumbered."""
    possible = [step for step in _steps(model, state) if step.action.name not in UNDOABLE and site.can(step, state)]
    if any(report.row for report in state.reports):  # part of one call of the code
        return next(step for step in possible if step.action.name == "look for whose a crash was")
    if any(relay.phase == "returned" for relay in state.relays):  # part of one call of the code
        possible = [step for step in possible if step.action.name in ("back off", "fail the outgoing row")]
    by_name: dict[str, list[tuple[Step, float]]] = {}
    for step in possible:
        by_name.setdefault(step.action.name, []).append((step, _weight(model, state, step)))
    if not by_name:
        return None
    names = sorted(by_name)
    name = chance.choices(names, [max(weight for _, weight in by_name[one]) for one in names])[0]
    found, weights = zip(*by_name[name], strict=True)
    return chance.choices(found, weights)[0]


def _weight(model: Model, state: State, step: Step) -> float:
    """How likely it is to be taken: trouble is soon spent, so that it is kept for where it matters."""
    name, weight = step.action.name, RARE.get(step.action.name, 1.0)
    if step.action.kind == "trouble":
        weight *= 0.2 if step.about.endswith((IDLE, GOT)) else 0.6
    if name == MOVE and not any(row and row.state in OPEN for one in state.databases for row in one.inbox):
        weight = 0.05
    if name == "mark published" and LAG in model.of.rarely:
        weight = 0.15
    if name == "failover to the copy" and not any(relay.phase == SENT for relay in state.relays):
        weight = 0.15
    if name == "deliver" and model.of.batch:
        pairs = zip(state.consumers, step.state.consumers, strict=True)
        weight = 0.05 if all(len(other.copies) == 1 for one, other in pairs if one != other) else 2.0
    return weight


def _steps(model: Model, state: State) -> Iterator[Step]:
    for source in SOURCES:
        for step in source(model, state):
            if renumbered(step.state) != state:
                yield step
