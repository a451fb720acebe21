"""The result as a table for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from benchmarks.measuring import Figures, Sample, listed
from benchmarks.ratios import LIMITS, RATIOS, best_of
from benchmarks.result import Result

WORDS = {True: "met", False: "NOT MET", None: ""}


def table(result: Result) -> str:
    """Rates, ratios with their targets, and the figures that stand alone."""
    return "\n".join([*_rates(result), "", *_ratios(result), "", *_limits(result), *_broken(result)]).rstrip()


def short(found: Sample | Figures) -> str:
    """What one run found, for a line of progress."""
    if isinstance(found, Sample):
        return f"{found.rate:,.0f}/s ({found.messages:,} in {found.seconds:.2f} s)"
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items())


def _rates(result: Result) -> Iterator[str]:
    yield f"{'messages a second':52} {'median':>10}   {'lowest':>9} {'highest':>9}"
    for group, members in itertools.groupby(listed(), key=lambda one: one.group):
        measured = [one for one in members if one.name in result.samples]
        if measured:
            yield f" {group}"
        for one in measured:
            low, high = min(result.samples[one.name]), max(result.samples[one.name])
            mark = "  (best)" if one.name == best_of(result.samples) else ""
            yield f"  {one.title:50} {result.rates[one.name]:10,.0f}   {low:9,.0f} {high:9,.0f}{mark}"


def _ratios(result: Result) -> Iterator[str]:
    yield f"{'ratio':52} {'found':>10}   {'target':>9}"
    for name, value in result.ratios.items():
        target = RATIOS[name].target
        wanted = "" if target is None else f"≥ {target:g}"
        yield f"  {name:50} {value:10.2f}   {wanted:>9}  {WORDS[result.met.get(name)]}".rstrip()


def _limits(result: Result) -> Iterator[str]:
    yield f"{'on its own':52} {'found':>10}   {'target':>9}"
    for name, value in result.limited.items():
        limit = LIMITS[name]
        number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        yield f"  {limit.title:50} {number:>10}   {limit.wording:>9}  {WORDS[result.met.get(name)]}"


def _broken(result: Result) -> Iterator[str]:
    for name, reason in result.broken.items():
        yield f"\nBROKEN: {name}: {reason}"
