"""The texts that people read are there in Simplified Chinese, and what is compiled is what is written."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils.translation.template import templatize

from tests.site import ROOT

CATALOGS = {
    "messaging": ([ROOT / "messaging"], ROOT / "messaging" / "locale"),
    "project": ([ROOT / "project", ROOT / "templates"], ROOT / "project" / "locale"),
}
MARKS = {"_", "gettext", "gettext_lazy", "gettext_noop", "ngettext", "ngettext_lazy", "pgettext", "pgettext_lazy"}
CALL = re.compile(
    r"""\b(p?gettext|ngettext|npgettext|_)\(\s*((?:u?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*,?\s*)+)"""
)
ENTRY = re.compile(r'^(msgctxt|msgid|msgid_plural|msgstr)(?:\[\d\])? (".*"(?:\n".*")*)$', re.MULTILINE)


def texts_of(path: Path) -> Iterator[str]:
    """The texts that a file marks for translation, as keys of a catalog."""
    if path.suffix == ".html":
        for name, arguments in CALL.findall(templatize(path.read_text())):
            words = [
                ast.literal_eval(word.strip()) for word in re.findall(r"u?(?:\".*?\"|'.*?')(?=\s*(?:,|$))", arguments)
            ]
            yield key_of(name, words)
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKS:
            words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            if words:
                yield key_of(node.func.id, words)


def key_of(name: str, words: list[str]) -> str:
    return "\x04".join(words[:2]) if name.startswith("pgettext") else words[0]


def compiled(locale: Path) -> dict[object, str]:
    with (locale / "zh_Hans" / "LC_MESSAGES" / "django.mo").open("rb") as file:
        return gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", CATALOGS)
def test_every_text_is_translated(name: str) -> None:
    folders, locale = CATALOGS[name]
    known = {key[0] if isinstance(key, tuple) else key for key, text in compiled(locale).items() if text}
    files = [path for folder in folders for kind in ("*.py", "*.html") for path in folder.rglob(kind)]
    marked = {text for path in files for text in texts_of(path)}
    assert len(marked) > 20, "the texts were found"
    assert marked - known == set()


@pytest.mark.parametrize("name", CATALOGS)
def test_what_is_compiled_is_what_is_written(name: str) -> None:
    _, locale = CATALOGS[name]
    written = (locale / "zh_Hans" / "LC_MESSAGES" / "django.po").read_text()
    texts = [
        "".join(map(ast.literal_eval, lines.split("\n"))) for kind, lines in ENTRY.findall(written) if kind == "msgstr"
    ]
    assert sorted(texts[1:]) == sorted(text for key, text in compiled(locale).items() if key), "the header apart"


@pytest.mark.parametrize("name", CATALOGS)
def test_one_word_is_used_for_one_thing(name: str) -> None:
    told = "\n".join(text for key, text in compiled(CATALOGS[name][1]).items() if key)
    others = {
        "代理": "a proxy; a broker is 消息中间件",
        "回溯": "a traceback is 错误堆栈",
        "未了结": "open is 未处理",
        "处理程序": "a handler is 处理函数",
        "警报": "an alert is 告警",
        "操作员": "an operator is 运维人员",
        "你": "readers are 您",
    }
    assert [better for word, better in others.items() if word in told] == []
