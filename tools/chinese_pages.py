"""The pages below docs/zh/ on the site say that they are in Chinese, and the theme's own words around them are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markdown.extensions.toc import slugify_unicode

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.nav import Navigation
    from mkdocs.structure.pages import Page
    from mkdocs.utils.templates import TemplateContext


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings in Chinese the anchors that GitHub gives them. Those in English stay as they are."""
    config.mdx_configs["toc"]["slugify"] = slugify_unicode
    return config


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
