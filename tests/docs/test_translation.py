"""The pages in Chinese say what those in English say: the same sections, commands, code, links and pictures."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.blocks import CHINESE, README, README_ZH, blocks_of, prose
from tests.site import ROOT

LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
BOTH = {README_ZH: README, **CHINESE}
# A section of README.zh-CN.md that README.md does not need.
IN_CHINESE_ALONE = "## 将管理后台切换为中文"
CATALOGUES = [app / "locale/zh_Hans/LC_MESSAGES/django.po" for app in (ROOT / "messaging", ROOT / "project")]


def sections(page: Path) -> list[str]:
    """A page without its blocks, cut at its headings, each piece beginning with the heading's level."""
    pieces = re.split(r"^(?=#+ )", prose(page), flags=re.MULTILINE)[1:]
    return [piece for piece in pieces if not piece.startswith(IN_CHINESE_ALONE)]


def target(page: Path, link: str) -> str:
    """Where a link leads to, as a page in English; without its anchor if that page is there in Chinese too."""
    if re.match(r"\w+:", link):
        return link
    path, _, anchor = link.partition("#")
    to = Path(os.path.normpath(page.parent / path)) if path else page
    to = BOTH.get(to, to)
    name = str(to.relative_to(ROOT)).replace(".zh-CN.", ".")
    return f"{name}#{anchor}" if anchor and to not in BOTH.values() else name


def shape(page: Path, text: str) -> dict[str, object]:
    lines = text.splitlines()
    return {
        "level": len(lines[0]) - len(lines[0].lstrip("#")),
        "links": [target(page, link) for link in LINK.findall(text)],
        "items": sum(bool(re.match(r"- |\d+\. ", line)) for line in lines),
        "table": [line.count(" | ") for line in lines if line.startswith("|")],
        "code": sorted(re.findall(r"`[^`\n]+`", text)),
        "strong": len(re.findall(r"\*\*[^*]+\*\*", text)),
    }


PAIRS = [
    pytest.param(english, ours, chinese, theirs, id=f"{english.name}: {ours.splitlines()[0]}")
    for chinese, english in BOTH.items()
    for ours, theirs in zip(sections(english), sections(chinese), strict=True)
]


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_both_have_the_same_blocks(chinese: Path) -> None:
    pages = (BOTH[chinese], chinese)
    ours, theirs = ([(b.kind, b.argument, b.language, b.title, b.text) for b in blocks_of(page)] for page in pages)
    assert ours == theirs


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_each_links_to_the_other(chinese: Path) -> None:
    for page, other in ((chinese, BOTH[chinese]), (BOTH[chinese], chinese)):
        assert f"]({os.path.relpath(other, page.parent)})" in page.read_text()


@pytest.mark.parametrize(("english", "ours", "chinese", "theirs"), PAIRS)
def test_a_section_has_the_same_parts_in_both(english: Path, ours: str, chinese: Path, theirs: str) -> None:
    assert shape(chinese, theirs) == shape(english, ours)


def test_the_words_are_those_of_the_admin() -> None:
    catalogue = CATALOGUES[0].read_text()
    text = README_ZH.read_text()
    for word in ("发布", "失败", "重新入队", "丢弃", "处理函数", "错误堆栈", "消息中间件", "队列", "尝试", "确认"):
        assert word in catalogue, word
        assert word in text, word


def test_buttons_and_pages_have_the_names_that_are_told() -> None:
    there = re.findall(r'^msgstr(?:\[0\])? "(.+)"$', "".join(path.read_text() for path in CATALOGUES), re.MULTILINE)
    told = re.findall(r"\*\*([^*]+)\*\*|“([^”]+)”", prose(ROOT / "docs" / "zh" / "demo.md"))
    assert len(told) > 10
    assert {button or page for button, page in told} - {*there} == {"简体中文"}


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_readers_are_addressed_in_one_way_and_a_broker_is_no_proxy(chinese: Path) -> None:
    assert re.findall("你|代理|回溯|未了结", chinese.read_text()) == []
