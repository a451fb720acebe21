"""A browser, and a site on RabbitMQ for it to visit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.browser.visitor import Visitor
from tests.services import missing
from tests.site import Site, SiteFactory
from tools.browser import chromium
from tools.services import ServiceMissing

HANDLERS = """
import os, pathlib
from messaging import handler
from tests.app.models import Effect

FOLDER = pathlib.Path(os.environ["DATA_DIR"])

@handler("work", "work.#", max_attempts=1)
def work(message):
    if (FOLDER / "broken").exists():
        raise ValueError("The other service is away")
    Effect.objects.create(key=message.id)

@handler("mail", "mail.#", max_attempts=3, backoff=3600)
def mail(message):
    raise ValueError("There is no mail server")
"""
VIEWER = ("view_processedmessage", "view_publishedmessage", "view_queuecontrol", "view_worker", "view_auditrecord")
OPERATOR = (
    *VIEWER,
    "view_payload_processedmessage", "view_payload_publishedmessage", "requeue_processedmessage",
    "discard_processedmessage", "publish_publishedmessage", "replay_publishedmessage", "discard_publishedmessage",
    "pause_queuecontrol",
)  # fmt: skip
WHO: dict[str, tuple[str, ...] | None] = {"viewer": VIEWER, "operator": OPERATOR, "superuser": None}

Visit = Callable[..., Visitor]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(chromium())
        except ServiceMissing as error:
            missing(error)
            raise
        yield found


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if find_spec("axe_playwright_python") is None:
        missing(ServiceMissing("There is no axe-core in this Python: `pip install -r requirements-dev.txt`."))
    return files("axe_playwright_python").joinpath("axe.min.js").read_text()


@pytest.fixture
def shop(site: SiteFactory) -> Site:
    """A site with a handler that fails while a file `broken` is there, and one that always fails and is retried."""
    return made(site)


def made(site: SiteFactory, **env: str) -> Site:
    """Such a site, with a further environment."""
    own = {"DJANGO_SETTINGS_MODULE": "tests.browser.site_settings", **env}
    return site("sqlite", handlers=HANDLERS, queues={"work": {}, "mail": {}}, env=own)


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """`visit(site, "operator", scheme="dark")`: a visitor with the permissions of that kind of user."""
    with ExitStack() as stack:
        bases: dict[Path, str] = {}

        def come(site: Site, who: str = "superuser", scheme: str = "light") -> Visitor:
            if site.folder not in bases:
                bases[site.folder] = site.serve()
            visitor = Visitor(browser, bases[site.folder], site, who, WHO[who], scheme)
            stack.callback(visitor.close)
            return visitor

        yield come


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them take long, and a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(1800))
