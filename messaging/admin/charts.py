"""How much was done in the past hours, as bars that the server draws: numbers in attributes, no script and no style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from messaging.admin.alerts import look
from messaging.admin.display import local
from messaging.monitoring import counters
from messaging.monitoring.counters import Period, Point, minute_of

WIDTH, HEIGHT = 480.0, 96.0  # units of the drawing; the page makes it as wide as there is room
SPARK_WIDTH, SPARK_HEIGHT = 96.0, 20.0  # of a small one in a table
ROUGHLY = 12  # rows of the table beside it

# What can be chosen: minutes of the whole, and of a bar.
PERIODS = {"1h": (60, 1), "24h": (1440, 15), "7d": (10080, 120)}
OF_QUEUE = (60, 5)  # the same for each queue, whatever is chosen


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


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted.

    Attributes:
        period: which of `PERIODS`.
        points: what was done in it.
        queues: what was done lately in each queue, by alias and name.
    """

    period: str
    points: list[Point]
    queues: dict[tuple[str, str], list[Point]]


def counted(request: HttpRequest) -> Counted:
    """What was counted until the moment of a request, whose address may choose the `period`; read once for a page."""
    known: Counted | None = getattr(request, "_messaging_counted", None)
    if known is None:
        asked, until = request.GET.get("period", ""), minute_of(look(request).now)
        chosen = asked if asked in PERIODS else next(iter(PERIODS))
        known = Counted(chosen, *counters.history(Period(until, *PERIODS[chosen]), Period(until, *OF_QUEUE)))
        request._messaging_counted = known  # type: ignore[attr-defined]
    return known


def charts(found: Counted) -> dict[str, Any]:
    """What `charts.html` shows of it, but the percentiles."""
    chosen, points, step = found.period, found.points, PERIODS[found.period][1]
    size = max(1, len(points) // ROUGHLY)
    labels = {"1h": _("1 hour"), "24h": _("24 hours"), "7d": _("7 days")}
    kinds = (("published", _("Published")), ("processed", _("Processed")), ("failed", _("Failed")))
    return {
        "periods": [(name, labels[name], name == chosen) for name in PERIODS],
        "period": labels[chosen],
        "charts": [_chart(kind, label, points, step, labels[chosen]) for kind, label in kinds],
        "begin": time_of(points[0].minute),
        "parts": [points[first : first + size] for first in range(0, len(points), size)],
        "is_empty": not any(point.published or point.processed or point.failed for point in points),
    }


def _chart(kind: str, label: str, points: Sequence[Point], step: int, period: str) -> Chart:
    values = [getattr(point, kind) for point in points]
    most, bars = max(values), bars_of(values, [point.minute for point in points], WIDTH, HEIGHT)
    summary = _("%(total)s in %(period)s, at most %(most)s a minute.") % {
        "total": f"{sum(values):,}",
        "period": period,
        "most": _rate(most / step),
    }
    return Chart(kind, label, f"{sum(values):,}", _rate(most / step), summary, bars)


def bars_of(values: Sequence[int], minutes: Sequence[int], width: float, height: float) -> list[Bar]:
    """A bar for each value that is not 0: the highest as high as the drawing, the lowest so high that it can be seen.

    Args:
        values: one for each of `minutes`.
        minutes: from which on each was counted, since 1970 in UTC, for the titles.
        width: of the whole drawing.
        height: of the whole drawing.
    """
    most, step = max(values, default=0), width / max(1, len(values))
    return [
        Bar(
            f"{number * step:.1f}",
            f"{height - high:.1f}",
            f"{max(1.0, step - 1):.1f}",
            f"{high:.1f}",
            f"{time_of(minute)} · {value:,}",
        )
        for number, (minute, value) in enumerate(zip(minutes, values, strict=True))
        if value
        for high in (max(1.5, height * value / most),)
    ]


def sparkline(values: Sequence[int], minutes: Sequence[int], words: str, kind: str = "") -> SafeString:
    """A small chart without axes.

    Args:
        values: one for each of `minutes`.
        minutes: from which on each was counted, since 1970 in UTC.
        words: what it shows, for those who do not see it.
        kind: "failed" for the colour of failures.
    """
    rect = '<rect x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
    bars = (
        (bar.x, bar.y, bar.width, bar.height, bar.title) for bar in bars_of(values, minutes, SPARK_WIDTH, SPARK_HEIGHT)
    )
    return format_html(
        '<svg class="msg-spark{}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<line class="msg-axis" x1="0" y1="{height}" x2="{width}" y2="{height}"></line>{}</svg>',
        f" msg-spark-{kind}" if kind else "",
        words,
        format_html_join("", rect, bars),
        width=f"{SPARK_WIDTH:.0f}",
        height=f"{SPARK_HEIGHT:.0f}",
    )


def row(part: Sequence[Point]) -> list[str]:
    """What neighbouring points have together, for a table: when they begin, and the three sums."""
    sums = (sum(getattr(point, kind) for point in part) for kind in ("published", "processed", "failed"))
    return [time_of(part[0].minute), *(f"{number:,}" for number in sums)]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def time_of(minute: int) -> str:
    """A minute since 1970 in UTC, for the page."""
    return local(datetime.fromtimestamp(minute * 60, UTC))
