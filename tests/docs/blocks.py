"""Fenced blocks of the documentation, and the comments before them that say how they are tested.

    <!-- kind: argument -->
    ```language title="file"

The comment and the title may be missing. `walk.py` and `test_snippets.py` say what becomes of each kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.site import ROOT

README = ROOT / "README.md"
README_ZH = ROOT / "README.zh-CN.md"
DOCS = ROOT / "docs"
PAGES = [README, README_ZH, *sorted(DOCS.rglob("*.md"))]

# Pages in Chinese, each with the one in English whose blocks it repeats: test_translation.py compares them.
CHINESE = {page: DOCS / page.relative_to(DOCS / "zh") for page in PAGES if page.is_relative_to(DOCS / "zh")}

# Pages that are run from top to bottom in a fresh site.
STORIES = ("embed", "move-to-rabbitmq", "foreign-queue", "two-services", "from-pika")
WALKED = [DOCS / "tutorial.md", *(DOCS / "how-to" / f"{name}.md" for name in STORIES)]

FENCE = re.compile(
    r"(?:^<!-- (?P<kind>[a-z ]+?)(?:: (?P<argument>[^>]+?))? -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```$'
    r"|^<!-- does: (?P<deed>[^>]+?) -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page, line: where it begins.
        kind, argument: from the comment before it; "" without one.
        language, title: from its fence; the language of something done by hand is "does".
    """

    page: Path
    line: int
    kind: str
    argument: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Its lines, each that ends in a backslash as one with the next."""
        return re.sub(r"\\\n\s*", "", self.text).splitlines()


@cache
def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["deed"]:
            found.append(Block(page, line, "does", match["deed"], "does", "", ""))
        else:
            names = (match[name] or "" for name in ("kind", "argument", "language", "title", "text"))
            found.append(Block(page, line, *names))
    return found


def find(kind: str, language: str | None = None) -> list[Block]:
    """All blocks of a kind, whatever page they are on; those without one only where the page is not walked."""
    pages = [page for page in PAGES if page not in CHINESE and (kind or page not in WALKED)]
    found = (block for page in pages for block in blocks_of(page))
    return [block for block in found if block.kind == kind and language in (None, block.language)]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text())
