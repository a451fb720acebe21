"""Pictures of the running demo site: `make screenshots`, or `python -m tools.screenshot [FOLDER]`.

Every page of the console goes to `var/screenshots`, light and dark, in both languages and three widths; those that the
README and the docs show go to `docs/images`, or to the folder that is given, and then alone.

Needs Playwright's Python package in the Python that runs it, Chromium on PATH or in CHROMIUM, and a font with Chinese
characters. The site runs privately: free ports, its own RabbitMQ node, data in a temporary folder. A browser places the
orders and breaks the invoicing service, so that every row in the pictures came down the road.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.browser import chromium, walk
from tools.environment import ROOT
from tools.services import ServiceMissing, free_ports, is_listening

FOLDER = ROOT / "docs" / "images"
ALL = ROOT / "var" / "screenshots"
SIZE = {"width": 1440, "height": 900}
COLUMN = {"width": 900, "height": 945}  # what the README shows is not made smaller, so that it can be read
MARGIN = 14  # pixels between the lower edge of a picture and what is left out below
SCHEMES = ("light", "dark")
LANGUAGES = ("en", "zh-hans")
SUFFIXES = {"": "en", ".zh-CN": "zh-hans"}  # what the name of a picture ends with, and its language
WIDTHS = (1280, 768, 390)
START_TIMEOUT = 180.0  # seconds; the first start may create the virtual environment
ROAD_TIMEOUT = 60.0  # seconds until what was ordered has failed or succeeded
COUNTED = 150.0  # seconds until consumers and relays have written what they have counted
STOP_TIMEOUT = 60.0
# A picture does not tell whose machine, and which folder, it was made on.
RENAMED = ((socket.gethostname(), "web-1"), (str(ROOT), "/srv/shop"))
RENAME = """([name, other]) => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const pattern = new RegExp(`(?<![\\\\w.-])${name}(?![\\\\w-])`, "g");
    while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replace(pattern, other);
}"""


class Photographer:
    """A browser that is signed in to the demo site as `admin`.

    Args:
        page: Playwright's page.
        base: the site's address.
        folder: where pictures go.
    """

    def __init__(self, page: Any, base: str, folder: Path) -> None:
        self._page = page
        self._base = base
        self._folder = folder

    def sign_in(self, password: str) -> None:
        """Sign in to the admin."""
        self.go("/admin/login/?next=/")
        self._page.fill("#id_username", "admin")
        self._page.fill("#id_password", password)
        self._page.click("[type=submit]")
        self._page.wait_for_url(f"{self._base}/")

    def go(self, path: str) -> None:
        """Open a page of the site."""
        answer = self._page.goto(self._base + path)
        if answer is None or not answer.ok:
            raise SystemExit(f"{path} answered {answer and answer.status}.")

    def press(self, button: str, times: int = 1) -> None:
        """Press a button of the start page."""
        for _ in range(times):
            self.go("/")
            self._page.get_by_role("button", name=button).click()

    def count(self, state: str) -> int:
        """How many incoming messages are in a state."""
        self.go(f"/admin/messaging/processedmessage/?state={state}")
        return int(self._page.locator("#result_list tbody tr").count())

    def shows(self, path: str, selector: str) -> bool:
        """Whether a page has an element."""
        self.go(path)
        return bool(self._page.locator(selector).count())

    def look(self, size: dict[str, int], language: str = "en") -> None:
        """Look through a window of another size, in another language."""
        self._page.set_viewport_size(size)
        self._page.context.add_cookies([{"name": "django_language", "value": language, "url": self._base}])

    def open_first(self) -> None:
        """Open the first message of the list that is shown."""
        self._page.locator("#result_list tbody tr th a").first.click()

    def take(self, name: str, *, whole: bool = False, above: str = "") -> None:
        """Save what the window shows, or the whole page, as `<name>.png`; or only what is above an element."""
        for found, other in RENAMED:
            self._page.evaluate(RENAME, [re.escape(found), other])
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.png"
        clip = None
        if above:
            bottom = self._page.locator(above).bounding_box()["y"] - MARGIN
            clip = {"x": 0, "y": 0, "width": self._page.viewport_size["width"], "height": bottom}
        self._page.screenshot(path=path, animations="disabled", full_page=whole, clip=clip)
        print(f"{path}: {path.stat().st_size // 1024} KB", flush=True)


def main(arguments: list[str]) -> int:
    """Make every picture; returns the exit status."""
    folder = Path(arguments[0]) if arguments else FOLDER
    password = secrets.token_urlsafe(9)
    try:
        with demo_site(password) as base, chromium() as browser:
            page = browser.new_page(viewport=SIZE, locale="en-US", color_scheme="light", timezone_id="UTC")
            photographer = Photographer(page, base, folder)
            photographer.sign_in(password)
            fill(photographer)
            take_pictures(photographer)
            if not arguments:
                take_all(browser, base, page.context.storage_state())
    except ServiceMissing as error:
        raise SystemExit(str(error)) from None
    return 0


def fill(photographer: Photographer) -> None:
    """Send messages down the road: greetings, orders that work out, and two whose invoice cannot be written."""
    photographer.press("Say hello", times=2)
    photographer.press("Place an order", times=4)
    # Each order is three messages; a parcel may need some attempts.
    wait_until(lambda: photographer.count("processed") >= 2 + 4 * 3, "the first orders")
    photographer.press("Break invoicing")
    photographer.press("Place an order", times=2)
    wait_until(lambda: photographer.count("failed") == 2 and photographer.count("retrying") == 0, "two failed invoices")


def take_pictures(photographer: Photographer) -> None:
    """The start page, the queues and what came in; one message that failed; and the overview of it all."""
    for suffix, language in SUFFIXES.items():
        photographer.look(COLUMN, language)
        photographer.go("/")
        photographer.take(f"shop{suffix}", above="#messages")
        photographer.look(SIZE, language)
        photographer.go("/admin/messaging/queuecontrol/")
        photographer.take(f"queues{suffix}")
        photographer.go("/admin/messaging/processedmessage/")
        photographer.take(f"incoming{suffix}")
    photographer.look(COLUMN)
    photographer.go("/admin/messaging/processedmessage/?state=failed")
    photographer.open_first()
    photographer.take("failed", above="#msg-timeline")
    wait_until(lambda: photographer.shows("/admin/messaging/", ".msg-chart"), "what was counted in a minute", COUNTED)
    for suffix, language in SUFFIXES.items():
        photographer.look(COLUMN, language)
        photographer.go("/admin/messaging/")
        photographer.take(f"overview{suffix}")


def take_all(browser: Any, base: str, signed_in: Any) -> None:
    """Every page of the console that links lead to, in every way that it can be looked at."""
    shutil.rmtree(ALL, ignore_errors=True)
    for scheme, language in itertools.product(SCHEMES, LANGUAGES):
        locale = {"en": "en-US", "zh-hans": "zh-CN"}[language]
        context = browser.new_context(color_scheme=scheme, locale=locale, timezone_id="UTC", storage_state=signed_in)
        context.add_cookies([{"name": "django_language", "value": language, "url": base}])
        page = context.new_page()
        for path in walk(page, f"{base}/admin/messaging/"):
            name = re.sub(r"[^\w-]+", "-", path.removeprefix("/admin/messaging/")).strip("-")[:80] or "overview"
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                Photographer(page, base, ALL / f"{scheme}-{language}-{width}").take(name, whole=True)
        context.close()


@contextlib.contextmanager
def demo_site(password: str) -> Iterator[str]:
    """The demo site with a private broker, as `make run-rabbitmq` starts it; gives its address."""
    port, broker_port = free_ports(2)
    folder = Path(tempfile.mkdtemp(prefix="messaging-pictures-"))
    environment = os.environ | {
        "ENV_FILE": os.devnull,
        "DATA_DIR": str(folder),
        "PORT": str(port),
        "ADMIN_PASSWORD": password,
        "MESSAGING_URL": f"amqp://guest:guest@127.0.0.1:{broker_port}/",
    }
    for name in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE"):
        environment.pop(name, None)
    log = folder / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.run", "--rabbitmq"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the demo site", START_TIMEOUT)
        if process.poll() is not None:
            raise SystemExit(f"The demo site did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = ROAD_TIMEOUT) -> None:
    """Wait until `condition()`; raises SystemExit after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Waited {timeout:g} s in vain for {what}.")
        time.sleep(0.2)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
