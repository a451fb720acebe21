"""What a run found: samples of several rounds, their medians, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import ratios
from benchmarks.measuring import Figures, Sample


@dataclass
class Result:
    """One run.

    Attributes:
        machine, settings: where and how.
        samples: rates by measurement, one for each round.
        figures: other figures by name, one for each round.
        broken: why a measurement proved nothing, by its name.
    """

    machine: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, found: Sample | Figures) -> None:
        """Note what one round found."""
        if isinstance(found, Sample):
            self.samples.setdefault(name, []).append(found.rate)
        else:
            for key, value in found.items():
                self.figures.setdefault(key, []).append(value)

    def breaks(self, name: str, reason: str) -> None:
        """Note that a measurement proved nothing, and forget what it found in earlier rounds."""
        self.broken[name] = reason
        self.samples.pop(name, None)

    @property
    def rates(self) -> dict[str, float]:
        """Messages per second: the median of all rounds."""
        return {name: statistics.median(found) for name, found in ratios.with_best(self.samples).items()}

    @property
    def ratios(self) -> dict[str, float]:
        """See `benchmarks.ratios`."""
        return ratios.compare(ratios.with_best(self.samples))

    @property
    def limited(self) -> dict[str, float]:
        """The figures and rates that stand alone."""
        medians = {name: statistics.median(found) for name, found in self.figures.items()}
        return {name: value for name, value in (self.rates | medians).items() if name in ratios.LIMITS}

    def as_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        medians = {name: statistics.median(found) for name, found in self.figures.items()}
        return {
            "ratios": _rounded(self.ratios),
            "rates": _rounded(self.rates),
            "figures": _rounded(medians),
            "targets": {
                **{name: ratio.target for name, ratio in ratios.RATIOS.items()},
                **{name: limit.bound for name, limit in ratios.LIMITS.items()},
            },
            "met": self.met,
            "best": ratios.best_of(self.samples),
            "rounds": {name: [round(rate, 1) for rate in found] for name, found in self.samples.items()},
            "figure_rounds": {name: [round(value, 3) for value in found] for name, found in self.figures.items()},
            "broken": self.broken,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
        }

    @property
    def met(self) -> dict[str, bool]:
        """Whether each target that was measured is met."""
        found = {
            name: value >= target
            for name, value in self.ratios.items()
            if (target := ratios.RATIOS[name].target) is not None
        }
        return found | {name: ratios.LIMITS[name].is_met(value) for name, value in self.limited.items()}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
