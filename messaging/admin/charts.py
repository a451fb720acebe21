"""How much was done in the past hours, as bars that the server draws: numbers in attributes, no script and no style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.utils.translation import gettext as _

from messaging.admin.display import local
from messaging.monitoring import counters
from messaging.monitoring.counters import Point, minute_of
from messaging.monitoring.snapshot import Snapshot

WIDTH, HEIGHT = 480.0, 96.0  # units of the drawing; the page makes it as wide as there is room
ROUGHLY = 12  # rows of the table beside it

# What can be chosen: minutes of the whole, and of a bar.
PERIODS = {"1h": (60, 1), "24h": (1440, 15), "7d": (10080, 120)}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `title` says what it stands for."""

    x: str
    y: str
    width: str
    height: str
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One row of bars.

    Attributes:
        kind: tells its colour.
        label: what is counted.
        total: how many there were.
        most: per minute, in the highest bar.
        summary: the same in a sentence.
        bars: those that are not empty.
    """

    kind: str
    label: str
    total: str
    most: str
    summary: str
    bars: list[Bar]


def charts(now: Snapshot, period: str) -> dict[str, Any]:
    """What `charts.html` shows.

    Args:
        now: tells the time.
        period: one of `PERIODS`; another one stands for the first.
    """
    chosen = period if period in PERIODS else next(iter(PERIODS))
    minutes, step = PERIODS[chosen]
    points = counters.history(minute_of(now.now), minutes, step)
    labels = {"1h": _("1 hour"), "24h": _("24 hours"), "7d": _("7 days")}
    kinds = (("published", _("Published")), ("processed", _("Processed")), ("failed", _("Failed")))
    return {
        "periods": [(name, labels[name], name == chosen) for name in PERIODS],
        "period": labels[chosen],
        "charts": [_chart(kind, label, points, step, labels[chosen]) for kind, label in kinds],
        "begin": _time(points[0]),
        "rows": _rows(points),
        "is_empty": not any(point.published or point.processed or point.failed for point in points),
    }


def _chart(kind: str, label: str, points: Sequence[Point], step: int, period: str) -> Chart:
    values = [getattr(point, kind) for point in points]
    most, width = max(values), WIDTH / len(points)
    bars = [
        Bar(
            f"{number * width:.1f}",
            f"{HEIGHT - _height(value, most):.1f}",
            f"{max(1.0, width - 1):.1f}",
            f"{_height(value, most):.1f}",
            f"{_time(point)} · {value:,}",
        )
        for number, (point, value) in enumerate(zip(points, values, strict=True))
        if value
    ]
    summary = _("%(total)s in %(period)s, at most %(most)s a minute.") % {
        "total": f"{sum(values):,}",
        "period": period,
        "most": _rate(most / step),
    }
    return Chart(kind, label, f"{sum(values):,}", _rate(most / step), summary, bars)


def _height(value: int, most: int) -> float:
    """At least so much that it can be seen."""
    return max(2.0, HEIGHT * value / most)


def _rows(points: Sequence[Point]) -> list[tuple[str, str, str, str]]:
    """The same as a table, in as many rows as one reads."""
    size = max(1, len(points) // ROUGHLY)
    found = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        sums = (sum(getattr(point, kind) for point in part) for kind in ("published", "processed", "failed"))
        published, processed, failed = (f"{number:,}" for number in sums)
        found.append((_time(part[0]), published, processed, failed))
    return found


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _time(point: Point) -> str:
    return local(datetime.fromtimestamp(point.minute * 60, UTC))
