"""What a measurement is, and the list of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.stage import Stage


class Broken(Exception):
    """A measurement that proves nothing: something is missing, doubled, or did not happen in time."""


@dataclass(frozen=True)
class Sample:
    """What one run of a measurement of speed found.

    Attributes:
        messages: how many were counted.
        seconds: that they took.
    """

    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


# Named figures that are no rates, such as {"idle_cpu_percent": 0.4}.
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Measurement:
    """One line of the list.

    Attributes:
        name: in JSON and for ONLY.
        title: for people.
        group: what it is compared with.
        run: takes the stage and a number of messages, or of seconds for figures.
        full, quick: that number in a whole and in a quick run; 0 leaves it out unless ONLY names it.
    """

    name: str
    title: str
    group: str
    run: Callable[[Stage, int], Sample | Figures]
    full: int
    quick: int


# In this order they are taken: what is compared follows each other closely.
GROUPS = ("publish", "relay", "consume", "batch", "tasks", "end to end", "embedded", "figures")
MEASUREMENTS: dict[str, Measurement] = {}
Run = Callable[["Stage", int], Sample | Figures]


def measurement(group: str, title: str, *, full: int, quick: int, name: str = "") -> Callable[[Run], Run]:
    """Add a function to the list, under its own name unless `name` is given."""

    def add(function: Run) -> Run:
        key = name or function.__name__
        MEASUREMENTS[key] = Measurement(key, title, group, function, full, quick)
        return function

    return add


def listed() -> list[Measurement]:
    """All of them, group by group."""
    return sorted(MEASUREMENTS.values(), key=lambda one: GROUPS.index(one.group))
