"""Under each theme of the admin, nothing of ours is hidden, bare or in another's way."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.browser.conftest import Visit, made
from tests.services import missing
from tests.site import SiteFactory
from tools.services import ServiceMissing

THEMES = {"unfold": "django-unfold", "jazzmin": "django-jazzmin", "grappelli": "django-grappelli"}
ROWS = """
from django.utils import timezone
from messaging.models import Attempt, ProcessedMessage, Worker
from messaging.operations import Operator, set_paused, stored
from tests.admin_rows import incoming, outgoing
by = Operator(name="nina", reason="the other service is back")
row = incoming("failed", pk=901, queue="work", error="ValueError: " + "long " * 40)
Attempt.objects.create(message=row, number=1, round=1, worker="web1:7", traceback="Traceback:\\n  File x, line 1\\n")
for number in range(3):
    incoming("processed", queue="work")
    outgoing("published")
outgoing("draft", pk=902)
outgoing("failed", pk=903, error="unroutable")
set_paused("mail", True, by)
stored.store(ProcessedMessage.objects.filter(pk=901), "requeue", by, scope="state: failed")
Worker.objects.create(
    name="w", kind="consume", host="a-host-with-a-rather-long-name.example.internal", pid=4194304,
    queues=["work", "mail"], paused=["mail"], status="running 3, waiting 17",
)
"""
PAGES = (
    "", "processedmessage/", "processedmessage/901/change/", "processedmessage/901/requeue/",
    "processedmessage/901/history/", "publishedmessage/", "publishedmessage/add/", "publishedmessage/902/change/",
    "publishedmessage/903/change/", "queuecontrol/", "queuecontrol/pause/?alias=default&queue=work", "worker/",
    "operation/", "operation/1/change/", "auditrecord/",
)  # fmt: skip
LOOK = (Path(__file__).parent / "look.js").read_text()  # what is wrong on a page with what is ours, in words


@pytest.mark.parametrize("theme", ["", *THEMES])
def test_nothing_is_hidden_bare_or_in_the_way(site: SiteFactory, visit: Visit, theme: str) -> None:
    if theme and find_spec(theme) is None:
        missing(ServiceMissing(f"{THEMES[theme]} is not installed: `pip install -r requirements-dev.txt`"))
    shop = made(site, THEME=theme, PYTHONWARNINGS="default")
    shop.shell(ROWS)
    visitor, wrong = visit(shop), []
    for path in PAGES:
        visitor.go(f"/admin/messaging/{path}")
        visitor.page.evaluate("document.fonts.ready.then(() => null)")  # styles and pictures came with the page
        wrong += [f"/{path}: {found}" for found in visitor.page.evaluate(LOOK)]
        if folder := os.environ.get("PICTURES"):  # for those who want to look for themselves
            name = f"{theme or 'stock'}-{path.partition('?')[0].strip('/').replace('/', '-') or 'overview'}.png"
            visitor.page.screenshot(path=Path(folder) / name, full_page=True)
    assert not wrong, "\n".join(wrong)
