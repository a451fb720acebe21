"""The pages in Chinese say what those in English say: the same sections, commands, code, links and pictures."""

from __future__ import annotations

import io
import os
import re
import tokenize
import unicodedata
from pathlib import Path

import pytest

from tests.docs.blocks import CHINESE, README, README_ZH, Block, blocks_of, prose
from tests.site import ROOT

LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
BOTH = {README_ZH: README, **CHINESE}
STRONG = re.compile(r"\*\*((?:[^*]|\*[^*]+\*)+)\*\*")
# A section that the pages in English do not need.
IN_CHINESE_ALONE = "## 将管理后台切换为中文"
CATALOGUES = [app / "locale/zh_Hans/LC_MESSAGES/django.po" for app in (ROOT / "messaging", ROOT / "project")]


def sections(page: Path) -> list[str]:
    """A page without its blocks, cut at its headings, each piece beginning with the heading's level."""
    pieces = re.split(r"^(?=#+ )", prose(page), flags=re.MULTILINE)[1:]
    return [piece for piece in pieces if not piece.startswith(IN_CHINESE_ALONE)]


def anchors(page: Path) -> list[str]:
    """What the headings of a page are called in links, in order."""
    headings = [piece.splitlines()[0].lstrip("# ") for piece in sections(page)]
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def path_of(page: Path, link: str) -> Path | None:
    """The file to which a link leads; None if it leads to another site."""
    if re.match(r"\w+:", link):
        return None
    path = link.partition("#")[0]
    return Path(os.path.normpath(page.parent / path)) if path else page


def target(page: Path, link: str) -> str:
    """Where a link leads to, as a page in English and a heading of it."""
    to = path_of(page, link)
    if to is None:
        return link
    anchor = link.partition("#")[2]
    if anchor and to in BOTH:
        anchor = anchors(BOTH[to])[anchors(to).index(anchor)]
    name = str(BOTH.get(to, to).relative_to(ROOT)).replace(".zh-CN.", ".")
    return f"{name}#{anchor}" if anchor else name


def code_of(block: Block) -> str:
    """A block as it stands; if it is Python, without the words of its comments."""
    lines = block.text.splitlines(keepends=True)
    if block.language == "python":
        for token in tokenize.generate_tokens(io.StringIO(block.text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column] + "#\n"
    return "".join(lines)


def shape(page: Path, text: str) -> dict[str, object]:
    lines = text.splitlines()
    return {
        "level": len(lines[0]) - len(lines[0].lstrip("#")),
        "links": [target(page, link) for link in LINK.findall(text)],
        "items": sum(bool(re.match(r"- |\d+\. ", line)) for line in lines),
        "table": [line.count(" | ") for line in lines if line.startswith("|")],
        "code": sorted(re.findall(r"`[^`\n]+`", text)),
        "strong": len(STRONG.findall(text)),
    }


PAIRS = [
    pytest.param(english, ours, chinese, theirs, id=f"{english.name}: {ours.splitlines()[0]}")
    for chinese, english in BOTH.items()
    for ours, theirs in zip(sections(english), sections(chinese), strict=True)
]


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_both_have_the_same_blocks(chinese: Path) -> None:
    pages = (BOTH[chinese], chinese)
    ours, theirs = ([(b.kind, b.argument, b.language, b.title, code_of(b)) for b in blocks_of(page)] for page in pages)
    assert ours == theirs


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_each_links_to_the_other(chinese: Path) -> None:
    for page, other in ((chinese, BOTH[chinese]), (BOTH[chinese], chinese)):
        assert f"]({os.path.relpath(other, page.parent)})" in page.read_text()


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_a_link_leads_to_the_page_in_chinese_where_there_is_one(chinese: Path) -> None:
    links = [link for link in LINK.findall(prose(chinese)) if path_of(chinese, link) in BOTH.values()]
    assert links == [os.path.relpath(BOTH[chinese], chinese.parent)]  # the one at the top


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
    demo = ROOT / "docs" / "zh" / "demo.md"
    told = STRONG.findall(prose(demo)) + [name for page in CHINESE for name in re.findall("“([^”]+)”", prose(page))]
    assert len(told) > 20
    assert {*told} - {*there} == {"简体中文"}


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_what_is_strong_is_so_on_github_too(chinese: Path) -> None:
    """Where punctuation is inside the asterisks, no letter may be outside: in CommonMark they would stay asterisks."""
    text = prose(chinese)
    for match in STRONG.finditer(text):
        before, first, last, after = text[match.start() - 1], match[1][0], match[1][-1], text[match.end()]
        for inside, outside in ((first, before), (last, after)):
            marks = unicodedata.category(inside)[0] in "PS"
            assert not (marks and unicodedata.category(outside)[0] in "LN"), text[match.start() - 1 : match.end() + 1]


@pytest.mark.parametrize("chinese", BOTH, ids=lambda page: page.name)
def test_readers_are_addressed_in_one_way_and_a_broker_is_no_proxy(chinese: Path) -> None:
    assert re.findall("你|代理|回溯|未了结", chinese.read_text()) == []
