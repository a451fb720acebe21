"""Every page that links lead to, in a browser: what it complains about, how wide pages are, what axe-core finds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.conftest import Visit
from tests.browser.filling import fill
from tests.browser.visitor import Visitor
from tests.site import Site
from tools.browser import shape_of

WIDTHS = (390, 768, 1280)
STOCK = "/admin/auth/user/"  # a page of Django's own, whose faults are not ours
# What makes a page wider than its window, if anything does.
WIDEST = """() => {
    const most = document.documentElement.clientWidth, all = document.documentElement.scrollWidth;
    if (all <= most) return "";
    const wide = [...document.querySelectorAll("body *")].filter(one => one.getBoundingClientRect().right > most + 1);
    return `${all} > ${most}: ` + wide.slice(0, 3).map(one => one.outerHTML.slice(0, 150));
}"""
CLIPPED = """() => [...document.querySelectorAll("#result_list tr > :last-child")].filter(cell => {
    const box = document.querySelector("#result_list").closest(".results").getBoundingClientRect();
    return cell.getBoundingClientRect().right > box.right + 1;
}).length"""
# The trail above a page and the search of a list are Django's own, and look as they do on all its pages.
AXE = """async () => (await axe.run({exclude: [[".breadcrumbs"], ["#changelist-search"]]},
    {resultTypes: ["violations"]})).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .flatMap(found => found.nodes.map(node => [found.id, node.html.slice(0, 200), node.failureSummary]))"""
LEAST = 20  # pages of a superuser


def serious(visitor: Visitor, axe: str) -> list[Any]:
    """What is serious on the page that is shown; asked of the browser itself, which no policy forbids."""
    if not visitor.page.evaluate("typeof axe === 'object'"):
        visitor.page.evaluate(axe)
    found: list[Any] = visitor.page.evaluate(AXE)
    return found


@pytest.mark.parametrize("who", ["viewer", "operator", "superuser"])
def test_no_page_makes_the_browser_complain_or_is_wider_than_its_window(shop: Site, visit: Visit, who: str) -> None:
    fill(shop)
    visitor, paths, wide = visit(shop, who), list[str](), list[str]()
    for path in visitor.walk():
        paths.append(path)
        for width in WIDTHS:
            visitor.page.set_viewport_size({"width": width, "height": 900})
            if problem := visitor.page.evaluate(WIDEST):
                wide.append(f"{path} at {width}: {problem}")
            if width == 1280 and visitor.page.evaluate(CLIPPED):
                wide.append(f"{path} clips its last column")
    assert visitor.complaints == []
    assert wide == []
    assert len(paths) >= (LEAST if who == "superuser" else LEAST // 2), paths
    acts = {path.rstrip("/").rpartition("/")[2] for path in paths} & {"requeue", "discard", "pause", "replay", "copy"}
    assert bool(acts) == (who != "viewer"), paths


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_keeps_people_out(shop: Site, visit: Visit, axe: str, scheme: str) -> None:
    fill(shop)
    visitor, found = visit(shop, scheme=scheme), dict[str, Any]()
    visitor.go(STOCK)
    djangos = {(rule, html) for rule, html, _why in serious(visitor, axe)}
    for path in visitor.walk():
        ours = [one for one in serious(visitor, axe) if (one[0], one[1]) not in djangos]
        if ours:
            found[shape_of(path)] = ours[:3]
    assert not found, json.dumps(found, indent=1)
