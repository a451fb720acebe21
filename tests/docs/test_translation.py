"""README.zh-CN.md says what README.md says: the same sections, commands, code, links and pictures."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import README, README_ZH, blocks_of, prose
from tests.site import ROOT

LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
OTHER = {"README.zh-CN.md": "README.md", "README.md": "README.zh-CN.md"}


def sections(text: str) -> list[str]:
    """The text cut at its headings, each piece beginning with the heading's level."""
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)[1:]


PAIRS = list(zip(sections(prose(README)), sections(prose(README_ZH)), strict=True))


def test_both_have_the_same_blocks() -> None:
    ours, theirs = ([(b.kind, b.argument, b.language, b.text) for b in blocks_of(page)] for page in (README, README_ZH))
    assert ours == theirs


def test_each_links_to_the_other() -> None:
    for page in (README, README_ZH):
        assert f"]({OTHER[page.name]})" in page.read_text()


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[ours.splitlines()[0] for ours, _ in PAIRS])
def test_a_section_has_the_same_parts_in_both(ours: str, theirs: str) -> None:
    def shape(text: str) -> dict[str, object]:
        lines = text.splitlines()
        return {
            "level": len(lines[0]) - len(lines[0].lstrip("#")),
            "links": [OTHER.get(target, target) if "README" in target else target for target in LINK.findall(text)],
            "items": sum(line.startswith("- ") for line in lines),
            "table": [line.count(" | ") for line in lines if line.startswith("|")],
            "code": re.findall(r"`[^`\n]+`", text),
            "strong": len(re.findall(r"\*\*[^*]+\*\*", text)),
        }

    expected = shape(ours)
    expected["links"] = [OTHER.get(str(target), target) for target in LINK.findall(ours)]
    found = shape(theirs)
    found["links"] = LINK.findall(theirs)
    assert found == expected


def test_the_words_are_those_of_the_admin() -> None:
    catalogue = (ROOT / "messaging/locale/zh_Hans/LC_MESSAGES/django.po").read_text()
    text = README_ZH.read_text()
    for word in ("发布", "失败", "重新入队", "丢弃", "处理函数", "错误堆栈", "消息中间件", "队列", "尝试", "确认", "消息头"):
        assert word in catalogue, word
        assert word in text, word
