"""The pages below docs/zh/ on the site say that they are in Chinese, and the theme's own words around them are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from markdown.extensions.toc import slugify_unicode

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.nav import Navigation
    from mkdocs.structure.pages import Page
    from mkdocs.utils.templates import TemplateContext

_MARK = "[\u3001-\u303f\uff01-\uff65]"  # punctuation, each as wide as a character
_CHARACTER = "[\u201c\u201d\u4e00-\u9fff]"
_TAGS = "(?:<[^>]*>)*"
_GAP = re.compile(rf"({_MARK}{_TAGS})\s+|({_CHARACTER}{_TAGS})\s+(?={_TAGS}{_CHARACTER})|\s+(?={_TAGS}{_MARK})")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings in Chinese the anchors that GitHub gives them. Those in English stay as they are."""
    config.mdx_configs["toc"]["slugify"] = slugify_unicode
    return config


def on_nav(nav: Navigation, **_others: object) -> Navigation:
    """End the English pages with the last of them, and begin the Chinese ones with the first."""
    for page in nav.pages:
        following = page.next_page
        if following and is_chinese(following) != is_chinese(page):
            page.next_page = following.previous_page = None
    return nav


def on_page_content(html: str, page: Page, **_others: object) -> str:
    """Close the gaps that line breaks and the blanks after `**` leave, and translate what titles of blocks say."""
    if not is_chinese(page):
        return html
    pieces = re.split("(<pre.*?</pre>)", html, flags=re.DOTALL)
    pieces[::2] = [_GAP.sub(r"\1\2", piece) for piece in pieces[::2]]
    return "".join(pieces).replace(", at the end</span>", "\uff0c末尾</span>")


def on_page_context(
    context: TemplateContext,
    page: Page,
    config: MkDocsConfig,
    nav: Navigation,  # noqa: ARG001
) -> TemplateContext:
    """Choose the language of the theme's words for the page that is rendered next."""
    config.theme["language"] = "zh" if is_chinese(page) else "en"
    return context


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Say which Chinese it is: fonts, hyphenation and screen readers go by that."""
    return output.replace('<html lang="zh"', '<html lang="zh-CN"', 1) if is_chinese(page) else output


def is_chinese(page: Page) -> bool:
    """Tell by the folder of its source."""
    return page.file.src_uri.startswith("zh/")
