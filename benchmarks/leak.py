"""`make leak`: whether a consumer's memory stays what it is, over MESSAGES (1,000,000) that it relays and handles.

Exit status: 0 when it does, 1 when it grows or a message has no effect or two, 2 when there was nothing to run it with.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import SITE, ensure_environment

    python = ensure_environment(SITE)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "benchmarks.leak"])  # noqa: S606 - ourselves, in the environment

from benchmarks import load
from benchmarks.figures import memory
from benchmarks.measuring import Broken
from benchmarks.stage import Stage, manage, staged
from tools.packages import install_missing
from tools.services import Daemon, ServiceFailed, ServiceMissing

WARM_UP = 20_000  # messages before the first sample: pools and caches fill
SAMPLES = 30  # one after each share of the messages
GROWTH = 2.0  # megabytes that the last third may have more than the middle one
EFFECTS = "SELECT count(*) FROM bench_effect WHERE id > {}"
UNSENT = "SELECT count(*) FROM messaging_publishedmessage WHERE state = 'pending'"


def main() -> int:
    """Run as the environment says."""
    messages = int(os.environ.get("MESSAGES", "1000000"))
    if not Path("/proc/self/statm").exists():
        print("There is no /proc here that says how much memory a process has.")
        return 2
    for sentence in install_missing("postgresql", "rabbitmq-server"):
        print(sentence, flush=True)
    try:
        with staged("leak") as stage:
            samples = watch(stage, messages)
    except (ServiceMissing, ServiceFailed) as error:
        print(error)
        return 2
    except Broken as error:
        print(error)
        return 1
    grown = growth(samples)
    print(f"Last third against middle third: {grown:+.2f} MB (at most {GROWTH:+.2f})")
    return 1 if grown > GROWTH else 0


def watch(stage: Stage, messages: int) -> list[float]:
    """Megabytes of a consumer and its supervisor after each share. Raises Broken unless each message has one effect."""
    share, samples = max(1, messages // SAMPLES), []
    with stage.running([*manage(), "consume", load.BATCH, "--concurrency=1"]) as consumer:
        _handle(stage, WARM_UP, consumer)
        for number in range(1, SAMPLES + 1):
            _handle(stage, share, consumer)
            samples.append(memory(consumer) / 1e6)
            print(f"{number * share:,} messages: {samples[-1]:.1f} MB", flush=True)
    return samples


def _handle(stage: Stage, count: int, consumer: Daemon) -> None:
    """Publish some, and wait until they are handled and marked."""
    before = stage.value("SELECT coalesce(max(id), 0) FROM bench_effect")
    stage.job("benchmarks.site.jobs", "together", count, load.BATCH)
    stage.wait(count, lambda: int(stage.value(EFFECTS.format(before))), consumer)
    stage.wait(0, lambda: -int(stage.value(UNSENT)), consumer)
    if (found := stage.value(EFFECTS.format(before))) != count:
        raise Broken(f"{count} messages had {found} effects")


def growth(samples: Sequence[float]) -> float:
    """By how much the median of the last third exceeds that of the middle one."""
    third = len(samples) // 3
    return statistics.median(samples[-third:]) - statistics.median(samples[-2 * third : -third])


if __name__ == "__main__":
    sys.exit(main())
