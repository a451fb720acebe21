"""A headless Chromium that Playwright drives: for the tests in a browser, and for pictures."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

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
