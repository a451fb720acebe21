"""Pages that can be read at any width: names break where their parts end."""

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
SEAM = re.compile(r"(?<=[/_.:=,\[])(?=\w)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have Markdown shape names."""
    config.markdown_extensions.append(Layout())
    return config


class Layout(Extension):
    """What site.css needs besides the theme's HTML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Come after the table of contents, which copies the headings."""
        md.treeprocessors.register(_Layout(md), "layout", 1)


class _Layout(Treeprocessor):
    def run(self, root: Element) -> None:
        for code in root.iter("code"):
            _shape(code)


def _shape(code: Element) -> None:
    """Browsers break after any hyphen, and in long names nowhere."""
    words = re.split(r"(\s+)", code.text or "")
    code.text, last = "", None
    for word in words:
        if "-" in word and len(word) <= LONGEST:
            last = SubElement(code, "span", {"class": "whole"})
            last.text, last.tail = word, ""
            continue
        first, *parts = SEAM.split(word) if len(word) > LONGEST else [word]
        if last is None:
            code.text += first
        else:
            last.tail = f"{last.tail}{first}"
        for part in parts:
            last = SubElement(code, "wbr")
            last.tail = part
