"""Percentiles from histograms: how long it took at most for so many of a hundred messages.

The steps of a histogram are about twice as long as the ones before: a percentile is the right one to within the step
that it lies in, so it is off by a factor of two and a half at most, and mostly by much less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from messaging.models.counting import BOUNDS

SHARES = (0.5, 0.95, 0.99)


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Seconds within which this share of what was counted had ended.

    Args:
        counts: how many ended within each step of `BOUNDS`, and after the last.
        share: between 0 and 1.

    Returns `math.inf` where that is beyond the last step, and None where nothing was counted.
    """
    rank, before = share * sum(counts), 0
    for step, count in enumerate(counts):
        if count and before + count >= rank:
            return _within(step, (rank - before) / count)
        before += count
    return None


def total(histograms: Sequence[Sequence[int]]) -> list[int]:
    """Several histograms as one."""
    return [sum(counts) for counts in zip(*histograms, strict=True)] if histograms else [0] * (len(BOUNDS) + 1)


def _within(step: int, part: float) -> float:
    """Where a part of a step ends, as if what ended within it were spread evenly, by the logarithm."""
    if step == len(BOUNDS):
        return math.inf
    if step == 0:
        return BOUNDS[0] * part
    return BOUNDS[step - 1] * math.exp(part * math.log(BOUNDS[step] / BOUNDS[step - 1]))
