"""`make model`: every world in full size, then every mutant, as tables. `STATES` and `PROCESSES` say how much."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.model.configurations import full
from tests.model.explore import Result, explore
from tests.model.mutants import MUTANTS, Mutant
from tests.model.protocol import Configuration

STATES = int(os.environ.get("STATES", "150000"))
PROCESSES = int(os.environ.get("PROCESSES", str(os.cpu_count() or 1)))


def visited(world: Configuration) -> Result:
    """One world, `STATES` states of it at most."""
    return explore(world, STATES)


def tried(mutant: Mutant) -> Result:
    """One mutant."""
    return mutant.explore(STATES)


def main() -> int:
    """Print both tables. Returns 1 where an invariant broke, or a mutant did not do what is said of it."""
    good = True
    with ProcessPoolExecutor(PROCESSES) as pool:
        print("| World | States | | Verdict | Seconds |\n|---|---|---|---|---|")
        for result in pool.map(visited, full()):
            extent = "complete" if result.complete else "cut off"
            name = result.configuration.name
            print(f"| {name} | {result.states:,} | {extent} | {result.verdict} | {result.seconds:.0f} |", flush=True)
            good &= not result.broken
            _print_ways(result)
        print("\n| Mutant | Breaks | After | Because |\n|---|---|---|---|")
        for mutant, result in zip(MUTANTS, pool.map(tried, MUTANTS), strict=True):
            broken = ", ".join(result.broken) or "nothing"
            print(f"| {mutant.rule} | {broken} | {result.states:,} | {mutant.because} |", flush=True)
            if bool(mutant.breaks) != bool(
                set(result.broken) & set(mutant.breaks) or (result.broken and not mutant.breaks)
            ):
                good = False
                _print_ways(result)
    return int(not good)


def _print_ways(result: Result) -> None:
    for invariant, way in result.broken.items():
        print(f"{invariant}:\n  " + "\n  ".join(way), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
