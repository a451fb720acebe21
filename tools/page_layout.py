"""Pages that can be read at any width: names break where their parts end, and cells know the heads of their columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement

from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

if TYPE_CHECKING:
    from markdown import Markdown
    from mkdocs.config.defaults import MkDocsConfig

LONGEST = 36  # characters of a name, of which a phone shows so many side by side
LONGEST_OF_MANY = 20  # in a table of five columns or more
LONGEST_OF_TWO = 24  # of a first cell beside which a phone has room for a second
SEAM = re.compile(r"(?<=[/_.:=,\[])(?=\w)(?!py\b)")
# A table whose rows are shown as blocks is none any more to some screen readers, unless it says so.
ROLES = {"table": "table", "tbody": "rowgroup", "tr": "row", "td": "cell"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have Markdown shape names and tables."""
    config.markdown_extensions.append(Layout())
    return config


def on_page_content(html: str, **_others: object) -> str:
    """Take out the blank that mkdocstrings leaves between a default and the bracket after it."""
    return re.sub(r"</code>\s+\)", "</code>)", html)


class Layout(Extension):
    """What site.css needs besides the theme's HTML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Come after the table of contents, which copies the headings."""
        md.treeprocessors.register(_Layout(md), "layout", 1)


class _Layout(Treeprocessor):
    def run(self, root: Element) -> None:
        longest = dict.fromkeys(root.iter("code"), LONGEST)
        for table in root.iter("table"):
            heads = ["".join(head.itertext()) for head in table.iter("th")]
            if len(heads) > 2 or _has_long_names(table):
                _label(table, heads)
            if len(heads) > 4:
                longest |= dict.fromkeys(table.iter("code"), LONGEST_OF_MANY)
        for code in longest:
            _shape(code, longest[code])


def _has_long_names(table: Element) -> bool:
    firsts = ["".join(row[0].itertext()) for row in table.iter("tr")]
    return any(len(word) > LONGEST_OF_TWO for first in firsts for word in first.split())


def _shape(code: Element, longest: int) -> None:
    """Browsers break after any hyphen, and in long names nowhere."""
    words = re.split(r"(\s+)", code.text or "")
    code.text, last = "", None
    for word in words:
        if "-" in word and len(word) <= longest:
            last = SubElement(code, "span", {"class": "whole"})
            last.text, last.tail = word, ""
            continue
        first, *parts = SEAM.split(word) if len(word) > longest else [word]
        if last is None:
            code.text += first
        else:
            last.tail = f"{last.tail}{first}"
        for part in parts:
            last = SubElement(code, "wbr")
            last.tail = part


def _label(table: Element, heads: list[str]) -> None:
    for part in table.iter():
        if part.tag in ROLES:
            part.set("role", ROLES[part.tag])
    for row in table.iter("tr"):
        for head, cell in zip(heads, row, strict=True):
            if cell.tag == "td":
                cell.set("data-label", head)
                if re.fullmatch(r"\d+-\d+-\d+", cell.text or ""):
                    cell.set("class", "whole")  # a date has hyphens too
