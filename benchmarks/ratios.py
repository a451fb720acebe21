"""What is compared with what, and what is to be reached."""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Ours over another's, both in messages per second.

    Attributes:
        target: the least that is to be reached; None where nothing is promised.
    """

    ours: str
    other: str
    target: float | None = None


RATIOS = {
    "publish_many/floor": Ratio("publish_many", "raw_insert", 0.7),
    "publish/celery": Ratio("publish", "celery_publish", 5),
    "relay/handwritten": Ratio("relay", "handwritten_relay", 0.9),
    "relay/raw_pipelined": Ratio("relay", "raw_pipelined", 0.5),
    "consume_single/handwritten": Ratio("consume_single", "handwritten_consume", 0.8),
    "consume_metrics/consume_single": Ratio("consume_metrics", "consume_single", 0.98),
    "consume_traced/consume_single": Ratio("consume_traced", "consume_single"),
    "consume_best/celery": Ratio("consume_best", "celery_consume", 8),
    "consume_best/dramatiq": Ratio("consume_best", "dramatiq_consume", 3),
    "consume_batch/handwritten": Ratio("consume_batch", "handwritten_batch", 0.7),
    "consume_batch/celery": Ratio("consume_batch", "celery_consume", 40),
    "end_to_end/celery": Ratio("end_to_end", "celery_end_to_end"),
    "consume_best/celery_threads": Ratio("consume_best", "celery_threads"),
    "consume_best/dramatiq_threads": Ratio("consume_best", "dramatiq_threads"),
    "tasks/django_tasks": Ratio("tasks", "tasks_peer", 5),
    "tasks_batch/django_tasks": Ratio("tasks_batch", "tasks_peer", 5),
    "embedded/django_tasks": Ratio("embedded", "django_tasks", 1),
    "embedded/huey": Ratio("embedded", "huey_recorded", 1),
    "embedded/huey_bare": Ratio("embedded", "huey"),
    "embedded_batch/django_tasks": Ratio("embedded_batch", "django_tasks", 1),
    "embedded_batch/huey": Ratio("embedded_batch", "huey_recorded", 1),
    "embedded_batch/huey_bare": Ratio("embedded_batch", "huey"),
}


@dataclass(frozen=True)
class Limit:
    """A figure of ours that stands alone.

    Attributes:
        title: for people, with its unit.
        bound: what is to be reached: "at least" or "at most" that.
    """

    title: str
    bound: float
    at_least: bool = False

    @property
    def wording(self) -> str:
        """The target for people."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        """Whether a value reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound


LIMITS = {
    "end_to_end": Limit("end to end, messages a second", 2000, at_least=True),
    "latency_p50_ms": Limit("commit to handler start on PostgreSQL, median ms", 10),
    "latency_p99_ms": Limit("the same, 99th percentile ms", 50),
    "latency_polling_p50_ms": Limit("where the database cannot notify (SQLite), median ms", 150),
    "idle_cpu_percent": Limit("consume with its relay when idle, % of a core", 1),
    "idle_memory_mb": Limit("memory of both its processes, MB", 90),
    "import_ms": Limit("what the app adds to the start of a Django site, ms", 30),
}

BEST = "consume_best"  # the best of all ways to share the work of one by one out
_CANDIDATE = re.compile(r"consume_(single|\d+x\d+)")


def is_candidate(name: str) -> bool:
    """Whether a measurement is one of those ways."""
    return _CANDIDATE.fullmatch(name) is not None


def with_best(samples: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The samples, and the best way's as `consume_best`."""
    best = best_of(samples)
    return dict(samples) | ({BEST: samples[best]} if best else {})


def best_of(samples: Mapping[str, Sequence[float]]) -> str:
    """The name of the way with the highest median; "" where none was measured."""
    return max(filter(is_candidate, samples), key=lambda name: statistics.median(samples[name]), default="")


def compare(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The ratios of those pairs that were both measured: the median of what each round says.

    What disturbs the machine for a while disturbs both of a pair, so a round's own ratio is steadier than its rates.
    """
    return {
        name: statistics.median(map(operator.truediv, samples[ratio.ours], samples[ratio.other]))
        for name, ratio in RATIOS.items()
        if ratio.ours in samples and ratio.other in samples
    }
