"""The site: it builds without a warning, holds every page, and asks nobody else for anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import CHINESE, DOCS
from tests.site import ROOT


def body(html: str) -> str:
    """What is a page's own, without the theme's parts."""
    return html.partition("<article")[2].partition("</article>")[0]


def test_every_page_is_in_the_site_and_its_navigation(built: Path) -> None:
    pages = {path.relative_to(DOCS) for path in DOCS.rglob("*.md")}
    assert [str(page) for page in pages if not (built / page.with_suffix(".html")).is_file()] == []
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(navigation)))
    assert listed == {str(page) for page in pages}


def test_a_page_says_in_which_language_it_is(built: Path) -> None:
    said = {}
    for page in built.rglob("*.html"):
        text = page.read_text()
        (language,) = re.findall('<html lang="([^"]*)"', text)
        said[page.relative_to(built)] = (language, "跳转至" in text)
    chinese = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.glob("zh/**/*.md")}
    assert said == {page: ("zh-CN", True) if page in chinese else ("en", False) for page in said}
    assert set() < chinese < said.keys()


def test_headings_in_chinese_have_anchors_that_can_be_linked_to(built: Path) -> None:
    for page in CHINESE:
        html = (built / page.relative_to(DOCS).with_suffix(".html")).read_text()
        assert re.findall(r'<h\d id="(_\d+|)"', html) == [], page


def test_a_line_that_ends_in_chinese_leaves_no_gap(built: Path) -> None:
    for page in CHINESE:
        html = body((built / page.relative_to(DOCS).with_suffix(".html")).read_text())
        texts = [re.sub("<[^>]+>", "", text) for text in re.findall("<p>(.*?)</p>", html, re.DOTALL)]
        gap = re.compile(r"[\u3001-\u9fff]\s+[\u3001-\u9fff]|[\u3001-\u3011\uff01-\uff1f]\s")
        assert texts, page
        assert [text for text in texts if gap.search(text)] == [], page
        assert ", at the end" not in html, page


def test_the_next_page_is_in_the_same_language(built: Path) -> None:
    for page in built.rglob("*.html"):
        there = page.relative_to(built).parts[0] == "zh"
        for link in re.findall('<link rel="(?:prev|next)" href="([^"]+)"', page.read_text()):
            assert ((page.parent / link).resolve().relative_to(built).parts[0] == "zh") == there, page


def test_output_is_told_apart_from_commands(built: Path) -> None:
    html = (built / "tutorial.html").read_text()
    assert {"python", "sh", "text"} == set(re.findall(r'<div class="language-(\w+) highlight">', html))


def test_a_cell_has_the_head_of_its_column(built: Path) -> None:
    for page in built.rglob("*.html"):
        for table in re.findall("<table.*?</table>", page.read_text(), re.DOTALL):
            heads = [re.sub("<[^>]+>", "", head) for head in re.findall("<th[^>]*>(.*?)</th>", table)]
            labels = re.findall('<td[^>]* data-label="([^"]*)"', table)
            assert labels == (heads * table.count("</tr>"))[: len(labels)], page
            assert len(labels) == table.count("<td") or (len(heads) == 2 and not labels), page


def test_a_default_has_no_blank_behind_it(built: Path) -> None:
    text = re.sub("<[^>]+>", "", (built / "reference" / "api.html").read_text())
    assert re.search(r"default:\s+None\)", text)
    assert not re.search(r"default:\s+\S+\s+\)", text)


def test_who_finds_nothing_is_shown_the_way(built: Path) -> None:
    assert {"index.html", "zh/demo.html"} <= {
        link.lstrip("/") for link in re.findall('href="([^"]+)"', body((built / "404.html").read_text()))
    }


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


def test_words_end_at_punctuation(built: Path) -> None:
    index = json.loads((built / "search" / "search_index.json").read_text())
    separator = re.compile(index["config"]["separator"])
    for text, words in {
        "(x-messaging-round)": ["x", "messaging", "round"],
        "messaging.testing.ask": ["messaging", "testing", "ask"],
        "publish_many() of 4.3, &lt;queue&gt;.dead": ["publish_many", "of", "4.3", "queue", "dead"],
        "消息\uff0c队列": ["消", "息", "队", "列"],
    }.items():
        assert [word for word in separator.split(text) if word] == words
    text = " ".join(entry["text"] for entry in index["docs"])
    words = set(separator.split(re.sub(r"<[^>]+>", " ", text)))
    assert sorted(word for word in words if re.search(r"^[(\[{\"`“]|[)\]},:;”]$", word)) == []


@pytest.mark.skipif(not shutil.which("node"), reason="There is no node: `apt-get install nodejs` (Debian, Ubuntu).")
def test_the_search_finds_other_forms_of_a_word_and_parts_of_a_name(built: Path) -> None:
    asked = {
        "x-messaging-round": "reference/headers.html#what-our-messages-carry",
        "messaging.testing.ask": "reference/api.html#messaging.testing.ask",
        "messaging.W004": "reference/checks.html#settings",
        "publish_many": "reference/api.html#messaging.publish_many",
        "retried": "reference/api.html#messaging.Retry",
        "duplicated": "architecture.html#identity",
        "requeuing": "how-to/on-call.html#requeue-many",
        "tracebacks": "how-to/permissions.html#hide-data",
        "deploying": "how-to/deploy.html",
        "idempotent": "index.html",
        "重新入队": "zh/tutorial.html",
    }
    command = ["node", str(Path(__file__).with_name("search.js")), str(built), *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)
    assert [words for words, place in asked.items() if place not in found[words]] == []
    assert found["x-messaging-round"][0] == asked["x-messaging-round"]
