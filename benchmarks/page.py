"""The result in docs/benchmarks.md: tables between two comments, and the chart beside them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chart import svg
from benchmarks.measuring import listed
from benchmarks.ratios import LIMITS, RATIOS, best_of
from benchmarks.result import Result
from tools.environment import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "images" / "benchmarks.svg"
BEGIN, END = "<!-- measured -->\n", "<!-- until here -->\n"
WORDS = {True: "met", False: "**not met**"}
# What of a title is code.
CODE = re.compile(
    r"manage\.py relay|\bconsume\b(?: --[\w=]+)*|@?\w+\([^)]*\)|database://|\bdb_worker\b|\w+Backend\b|\{.+?\}"
)


def write(result: Result, page: Path = PAGE, chart: Path = CHART) -> None:
    """Put the tables and the chart where readers find them."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{tables(result)}\n{END}{after}")
    chart.write_text(svg(result.rates))


def tables(result: Result) -> str:
    """Where and when, the ratios, the figures that stand alone, and all rates."""
    parts = [_where(result), "\n".join(_ratios(result)), "\n".join(_limits(result)), "\n".join(_rates(result))]
    return "\n\n".join(parts) + "\n"


def _where(result: Result) -> str:
    machine, peers = result.machine, ", ".join(result.settings["peers"])
    return (
        f"{machine['date']}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}, Django {machine['django']}, pika {machine['pika']}, "
        f"psycopg {machine['psycopg']}, PostgreSQL {machine['postgresql']}, RabbitMQ {machine['rabbitmq']}. "
        f"Peers: {peers}. Medians of {result.settings['rounds']} rounds; the load average was {machine['load']} "
        "before the first."
    )


def _ratios(result: Result) -> Iterator[str]:
    yield "| Ratio | Ours over | Found | Target | Result |"
    yield "|---|---|---|---|---|"
    titles = {one.name: one.title for one in listed()}
    for name, value in result.ratios.items():
        target = RATIOS[name].target
        wanted = "" if target is None else f"≥ {target:g}"
        met = "" if target is None else WORDS[result.met[name]]
        yield f"| `{name}` | {_marked(titles[RATIOS[name].other])} | {value:.2f} | {wanted} | {met} |"


def _limits(result: Result) -> Iterator[str]:
    yield "| On its own | Found | Target | Result |"
    yield "|---|---|---|---|"
    for name, value in result.limited.items():
        limit = LIMITS[name]
        number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        yield f"| {limit.title} | {number} | {limit.wording} | {WORDS[result.met[name]]} |"


def _rates(result: Result) -> Iterator[str]:
    yield "| Group | What | Messages a second | Lowest and highest round |"
    yield "|---|---|---|---|"
    for group, members in itertools.groupby(listed(), key=lambda one: one.group):
        for one in members:
            if found := result.samples.get(one.name):
                best = ", the best of ours" if one.name == best_of(result.samples) else ""
                span = f"{min(found):,.0f} – {max(found):,.0f}"
                yield f"| {group} | {_marked(one.title)}{best} | {result.rates[one.name]:,.0f} | {span} |"


def _marked(title: str) -> str:
    return CODE.sub(r"`\g<0>`", title)
