"""A headless Chromium that Playwright drives: for the tests in a browser, and for pictures."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

from tools.services import ServiceMissing

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """The program. Raises ServiceMissing."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise ServiceMissing("There is no Chromium: `apt-get install chromium` (Debian), or name one in CHROMIUM.")
    return program


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's, started. Raises ServiceMissing where it, or Playwright, is not here."""
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ModuleNotFoundError:
        raise ServiceMissing("There is no Playwright in this Python: `pip install -r requirements-dev.txt`.") from None
    program = find_chromium()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def walk(page: Any, top: str, most: int = 150) -> Iterator[str]:
    """Show every page below an address that links lead to, one of each shape, one after another.

    Args:
        page: Playwright's, signed in.
        top: the address that they all begin with.
        most: pages after which it ends.

    Gives the path of each while it is shown. A page that is not there raises AssertionError.
    """
    from playwright.sync_api import Error  # which is not everywhere

    seen, wanted, base = set[str](), [urlsplit(top).path], urljoin(top, "/")[:-1]
    while wanted and len(seen) < most:
        path = wanted.pop(0)
        if shape_of(path) in seen:
            continue
        seen.add(shape_of(path))
        try:
            answer = page.goto(base + path)
        except Error as error:
            if "Download is starting" not in str(error):
                raise
            continue
        if not answer.ok:
            raise AssertionError(f"{path} answered {answer.status}.")
        yield path
        found = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
        parts = [urlsplit(urldefrag(url)[0]) for url in found if url.startswith(top)]
        wanted += [part.path + (f"?{part.query}" if part.query else "") for part in parts]


def shape_of(path: str) -> str:
    """What pages of a kind have in common: the path without numbers, and by what a list is filtered, one at a time."""
    parts = urlsplit(path)
    names = sorted({name for name, _value in parse_qsl(parts.query) if name != "_changelist_filters"})
    return re.sub(r"\d+", "N", parts.path) + (f"?{names[0]}" if names else "")
