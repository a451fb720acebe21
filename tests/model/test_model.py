"""The protocol's model in small sizes, with each run of the tests; `make model` explores the full ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model.configurations import BY_NAME, SMALL
from tests.model.explore import explore
from tests.model.invariants import REST
from tests.model.mutants import MUTANTS, Mutant
from tests.model.protocol import ACTIONS, Configuration, Model, Step
from tests.model.states import State

FEW = 1500  # states of each world


@pytest.mark.parametrize("world", SMALL, ids=lambda world: world.name)
def test_every_invariant_holds(world: Configuration) -> None:
    result = explore(world, FEW)
    assert result.broken == {}


NOTICED = [
    pytest.param(one, id=one.rule, marks=[pytest.mark.slow] if one.states > 20_000 else [])
    for one in MUTANTS
    if one.breaks
]


@pytest.mark.parametrize("mutant", NOTICED)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    assert set(mutant.explore().broken) & set(mutant.breaks)


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if not one.breaks], ids=lambda mutant: mutant.rule)
def test_a_rule_that_only_saves_work_can_go(mutant: Mutant) -> None:
    assert mutant.explore().broken == {}


def test_every_deviation_of_the_release_before_is_a_known_rule() -> None:
    from tests.model.protocol import OLD

    told = {mutant.rule for mutant in MUTANTS}
    assert {rule for rule in OLD if not rule.startswith("claims do not")} <= told


def test_every_action_is_one_of_three_kinds() -> None:
    assert {action.kind for action in ACTIONS.values()} == {"progress", "trouble", "operator"}


def test_a_circle_without_an_end_is_found_in_a_world_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def circling(model: Model, state: State) -> Iterator[Step]:
        yield Step(ACTIONS["publish"], state._replace(home=1 - state.home))
        yield Step(ACTIONS["a process dies"], state._replace(left=(state.left[0] + 1,)))

    monkeypatch.setattr("tests.model.explore.steps", circling)
    result = explore(BY_NAME["one message"], 50)
    assert not result.complete
    assert set(result.broken) == {REST}
