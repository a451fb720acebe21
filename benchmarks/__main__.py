"""`make bench`: QUICK=1, ROUNDS (3), ONLY=name,name, JSON=path, SVG=path, WRITE=1 (into docs/benchmarks.md).

Exit status: 0 when everything was measured, whatever the ratios; 1 when a measurement broke or a count was wrong; 2
when there was nothing to measure with.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import SITE, ensure_environment

    python = ensure_environment(SITE)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "benchmarks"])  # noqa: S606 - ourselves, in the environment

from benchmarks import chart, embedded, figures, floors, machine, ours, page, peers, report, tasks
from benchmarks.environments import pinned
from benchmarks.measuring import MEASUREMENTS, Broken, Measurement, listed
from benchmarks.ratios import BEST, is_candidate
from benchmarks.result import Result
from benchmarks.stage import POSTGRESQL, Stage, staged
from tools.packages import install_missing
from tools.services import ServiceFailed, ServiceMissing

MODULES = (floors, peers, ours, tasks, embedded, figures)  # importing them fills the list


def main() -> int:
    """Run as the environment says."""
    chosen, rounds, is_quick = _chosen(), _rounds(), _is_quick()
    if (writes := _is_set("WRITE")) and (os.environ.get("ONLY") or is_quick):
        raise SystemExit("WRITE=1 needs a whole run: leave ONLY and QUICK out.")
    for sentence in install_missing("postgresql", "rabbitmq-server"):
        say(sentence)
    try:
        with staged("bench") as stage:
            result = Result(machine.describe(stage), _settings(rounds, is_quick))
            measure(stage, chosen, rounds, is_quick, result)
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    except (ServiceMissing, ServiceFailed, Broken) as error:
        say(str(error))
        return 2
    say("\n" + report.table(result))
    _write(result)
    if writes and not result.broken:
        page.write(result)
    return 1 if result.broken else 0


def measure(stage: Stage, chosen: Sequence[Measurement], rounds: int, is_quick: bool, result: Result) -> None:
    """Take all measurements in turn, round after round: what disturbs the machine disturbs them alike."""
    for number in range(1, rounds + 1):
        for one in chosen:
            if one.name in result.broken:
                continue
            began = time.monotonic()
            try:
                found = one.run(stage, (one.quick if is_quick else 0) or one.full)
            except Broken as error:
                result.breaks(one.name, str(error))
                say(f"{number}/{rounds} {one.name}: BROKEN: {error}")
                continue
            result.add(one.name, found)
            say(f"{number}/{rounds} {one.name}: {report.short(found)} ({time.monotonic() - began:.0f} s)")


def say(line: str) -> None:
    """One line to whoever watches."""
    print(line, flush=True)


def _write(result: Result) -> None:
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(result.as_json(), indent=2) + "\n")
    if path := os.environ.get("SVG"):
        Path(path).write_text(chart.svg(result.rates))


def _settings(rounds: int, is_quick: bool) -> dict[str, object]:
    counts = {name: one.quick if is_quick else one.full for name, one in MEASUREMENTS.items()}
    return {"rounds": rounds, "quick": is_quick, "counts": counts, "postgresql": POSTGRESQL, "peers": pinned()}


def _is_quick() -> bool:
    return _is_set("QUICK")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _rounds() -> int:
    text = os.environ.get("ROUNDS") or ("1" if _is_quick() else "3")
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 100:
        raise SystemExit(f"ROUNDS={text} is no number of rounds: it should be from 1 to 99.")
    return int(text)


def _chosen() -> list[Measurement]:
    """Those that ONLY names; "consume_best" stands for all that it is the best of."""
    names = [name.strip() for name in os.environ.get("ONLY", "").split(",") if name.strip()]
    unknown = [name for name in names if name not in MEASUREMENTS and name != BEST]
    if unknown:
        raise SystemExit(f"ONLY={','.join(unknown)} is unknown. There are: {', '.join([BEST, *MEASUREMENTS])}.")
    if not names:
        return [one for one in listed() if one.quick or not _is_quick()]
    return [one for one in listed() if one.name in names or (BEST in names and is_candidate(one.name))]


if __name__ == "__main__":
    raise SystemExit(main())
