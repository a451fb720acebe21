"""The site: it builds without a warning, holds every page, and asks nobody else for anything."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.docs.blocks import DOCS
from tests.site import ROOT


def test_every_page_is_in_the_site_and_its_navigation(built: Path) -> None:
    pages = {path.relative_to(DOCS) for path in DOCS.rglob("*.md")}
    assert [str(page) for page in pages if not (built / page.with_suffix(".html")).is_file()] == []
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(navigation)))
    assert listed == {str(page) for page in pages}


def test_the_site_asks_nobody_else_for_anything(built: Path) -> None:
    loads = r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//[^\"]+|<link[^>]+href=\"(?:https?:)?//[^\"]+"
    for page in built.rglob("*.html"):
        assert re.findall(loads, page.read_text()) == [], page
    for sheet in built.rglob("*.css"):
        assert "url(http" not in sheet.read_text(), sheet
    assert "unpkg.com/iframe-worker" not in (built / "index.html").read_text()


def test_the_search_finds_words_without_a_web_server(built: Path) -> None:
    index = (built / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    assert "requeue_messages" in index
    assert "assets/iframe-worker.js" in (built / "index.html").read_text()
