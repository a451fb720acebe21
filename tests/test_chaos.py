"""The soak's own promises: its schedule replays, and its proof finds what it is there to find."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.site import Site, SiteFactory
from tools.chaos import proof
from tools.chaos.schedule import BROKER, KINDS, plan


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert plan("7", 600) == plan("7", 600)
    assert plan("7", 600) != plan("8", 600)


@pytest.mark.parametrize("seed", [str(number) for number in range(20)])
def test_ten_minutes_have_over_a_hundred_faults_of_every_kind(seed: str) -> None:
    faults = plan(seed, 600)
    assert len(faults) > 100
    assert {fault.kind for fault in faults} == set(KINDS)
    assert all(earlier.at <= later.at < 600 for earlier, later in pairwise(faults))


def test_a_short_run_strikes_in_every_lane() -> None:
    assert {fault.lane for fault in plan("7", 30)} == {kind.lane for kind in KINDS.values()}


def test_a_broker_that_is_not_ours_is_left_alone() -> None:
    kinds = [name for name, kind in KINDS.items() if kind.lane != BROKER]
    assert {fault.kind for fault in plan("7", 600, kinds)} == set(kinds)


LEDGER = """
from tools.chaos.workload.models import Effect, Expected
for key in ("once", "never", "twice", "again"):
    Expected.objects.create(key=key, may_repeat=key == "again")
for key in ("once", "twice", "twice", "again", "again", "unasked"):
    Effect.objects.create(key=key)
"""


@pytest.mark.postgres
def test_the_proof_finds_what_is_lost_doubled_or_was_rolled_back(site: SiteFactory) -> None:
    made = site("postgres", broker="database://", env={"EXTRA_APPS": "tools.chaos.workload"})
    made.manage("migrate", "--run-syncdb", "--verbosity=0")
    made.shell(LEDGER)
    assert keys(made, proof.LOST) == ["never"]
    assert keys(made, proof.DOUBLED) == ["twice"]
    assert keys(made, proof.UNASKED) == ["unasked"]
    assert keys(made, proof.RERUN) == ["again"]
    assert proof.count(made.sql, proof.FLAWS) == {
        "lost": 1,
        "doubled": 1,
        "had an effect though its publishing was rolled back": 1,
        "failed": 0,
        "still on its way": 0,
    }
    assert not proof.is_settled(made.sql)


def keys(made: Site, statement: str) -> list[str]:
    return [key for (key,) in made.sql(statement)]
