"""How long messages waited and ran in the past hours: percentiles as lines that the server draws, and as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from messaging.admin.charts import HEIGHT, WIDTH, Bar, time_of
from messaging.admin.display import UNKNOWN, exactly, span
from messaging.models.counting import BOUNDS
from messaging.monitoring.counters import Point
from messaging.monitoring.percentiles import SHARES, percentile, total

Counts = Sequence[int]
MARGIN = 4.0  # units above and below the lines, so that each is seen whole


@dataclass(frozen=True, slots=True)
class Line:
    """A percentile over time.

    Attributes:
        name: such as "p95".
        path: what an SVG path draws; "" for nothing.
        value: over the whole period, for people.
    """

    name: str
    path: str
    value: str


@dataclass(frozen=True, slots=True)
class Figure:
    """Percentiles of one length of time.

    Attributes:
        kind: "wait" or "run".
        label: the same for people.
        lines: one for each of `SHARES`.
        low, high: what the bottom and the top of the drawing stand for.
        summary: the same in a sentence.
        hits: what says the numbers of a moment, where the pointer is.
    """

    kind: str
    label: str
    lines: list[Line]
    low: str
    high: str
    summary: str
    hits: list[Bar]


def figures(points: Sequence[Point]) -> list[Figure]:
    """Of waits and of runs, as far as any were counted."""
    wanted = (
        ("wait", _("Wait"), [point.waits for point in points]),
        ("run", _("Run"), [point.runs for point in points]),
    )
    return [_figure(kind, label, counts, points) for kind, label, counts in wanted if any(map(any, counts))]


def told(counts: Counts) -> str:
    """The percentiles of a histogram in one text."""
    return " / ".join(_said(percentile(counts, share)) for share in SHARES) if any(counts) else UNKNOWN


def told_p95(histograms: Iterable[Counts]) -> str:
    """The 95th of several histograms together."""
    return _said(percentile(total(list(histograms)), 0.95))


def _figure(kind: str, label: str, counts: Sequence[Counts], points: Sequence[Point]) -> Figure:
    whole = total(counts)
    steps = [step for step, count in enumerate(whole) if count]
    low = BOUNDS[max(0, steps[0] - 1)]
    high = BOUNDS[min(len(BOUNDS) - 1, max(steps[-1], steps[0] + 1))]
    lines = [
        Line(
            f"p{round(share * 100)}",
            _path([percentile(one, share) for one in counts], low, high),
            _said(percentile(whole, share)),
        )
        for share in SHARES
    ]
    summary = ", ".join(f"{line.name} {line.value}" for line in lines)
    width = WIDTH / len(points)
    hits = [
        Bar(f"{number * width:.1f}", "0", f"{width:.1f}", f"{HEIGHT:.0f}", f"{time_of(point.minute)} · {told(one)}")
        for number, (point, one) in enumerate(zip(points, counts, strict=True))
        if any(one)
    ]
    return Figure(kind, label, lines, exactly(low), exactly(high), summary, hits)


def _path(values: Sequence[float | None], low: float, high: float) -> str:
    """A level for each point, joined where they are neighbours; by the logarithm, for they differ by thousands."""
    width, found, was_drawn = WIDTH / len(values), [], False
    for number, value in enumerate(values):
        if value is not None:
            part = math.log(min(max(value, low), high) / low) / math.log(high / low)
            y = f"{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * part:.1f}"
            found.append(f"V{y}" if was_drawn else f"M{number * width:.1f} {y}")
            found.append(f"H{(number + 1) * width:.1f}")
        was_drawn = value is not None
    return "".join(found)


def _said(seconds: float | None) -> str:
    """To two digits: more are not known."""
    if seconds is None:
        return UNKNOWN
    if math.isinf(seconds):
        return _("over %(span)s") % {"span": span(BOUNDS[-1])}
    if seconds < BOUNDS[0]:
        return _("under %(span)s") % {"span": exactly(BOUNDS[0])}
    return exactly(float(f"{seconds:.2g}"))
