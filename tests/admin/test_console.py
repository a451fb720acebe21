"""Where one is and what one may do: the banner on every page, and the permissions on the first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from messaging.models import FailureGroup, Operation
from messaging.monitoring import readings
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, inline_code, outgoing, staff

pytestmark = pytest.mark.django_db
OVERVIEW = "/admin/messaging/"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()
    yield
    readings.forget()


def pages() -> list[str]:
    row, out, draft = incoming("failed"), outgoing("failed"), outgoing("draft")
    operation = Operation.objects.create(verb="requeue", kind="processed", total=1)
    group = FailureGroup.objects.create(fingerprint="a" * 32)
    return [
        OVERVIEW, INCOMING, OUTGOING, QUEUES, f"{QUEUES}pause/?alias=default&queue=billing",
        f"{INCOMING}{row.pk}/change/", f"{INCOMING}{row.pk}/requeue/", f"{INCOMING}{row.pk}/history/",
        f"{INCOMING}export/", f"{OUTGOING}{out.pk}/change/", f"{OUTGOING}{draft.pk}/change/", f"{OUTGOING}add/",
        f"{OVERVIEW}operation/", f"{OVERVIEW}operation/{operation.pk}/change/", f"{OVERVIEW}auditrecord/",
        f"{OVERVIEW}worker/", f"{OVERVIEW}failuregroup/", f"{OVERVIEW}failuregroup/{group.pk}/change/",
        f"{OVERVIEW}failuregroup/{group.pk}/silence/", f"{OVERVIEW}failuregroup/export/",
    ]  # fmt: skip


def test_every_page_says_where_one_is(admin_client: Client, settings: Any) -> None:
    every = pages()
    for page in every:
        assert "msg-banner" not in admin_client.get(page).content.decode(), page
    settings.MESSAGING_CONSOLE = {"BANNER": "PRODUCTION <eu>"}
    for page in every:
        html = admin_client.get(page).content.decode()
        assert html.count('class="msg-banner"') == 1, page
        assert "</span>PRODUCTION &lt;eu&gt;</p>" in html, page
        assert re.search(r"<title>\s*PRODUCTION &lt;eu&gt; · ", html), page
        assert "messaging/admin.css" in html, page
        assert inline_code(html) == [], page
    settings.MESSAGING_CONSOLE = {"BANER": "PRODUCTION"}
    assert "Did you mean &quot;BANNER&quot;?" in admin_client.get(INCOMING).content.decode()


def luminance(colour: str) -> float:
    """Of a colour such as #8c1d13, as WCAG 2 has it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_banner_can_be_read() -> None:
    from django.contrib.staticfiles import finders

    with open(str(finders.find("messaging/admin.css"))) as file:
        rule = file.read().partition(".msg-banner {")[2].partition("}")[0]
    ground = re.search(r"background: (#[0-9a-f]{6});", rule)
    assert ground is not None
    assert "color: #fff;" in rule
    assert (1.0 + 0.05) / (luminance(ground[1]) + 0.05) >= 7, "WCAG's AAA"


def test_the_overview_says_what_one_may_do_and_what_the_rest_takes(admin_client: Client) -> None:
    html = admin_client.get(OVERVIEW).content.decode()
    assert "Your permissions" in html
    assert "takes messaging." not in html
    assert "Who may do the rest?" not in html
    group = Group.objects.create(name="<on call>")
    group.permissions.add(Permission.objects.get(codename="requeue_processedmessage"))
    client = staff("view_processedmessage")
    html = client.get(OVERVIEW).content.decode()
    mine, others = "</span> yes</span> Can see incoming messages", "</span> no</span> Can requeue failed messages"
    assert mine in html
    assert f'{others} <span class="msg-note">takes messaging.requeue_processedmessage' in html
    assert "on call" not in html
    with CaptureQueriesContext(connection) as queries:
        html = client.get(OVERVIEW, {"who": "1"}).content.decode()
    assert len(queries) <= 10
    assert "takes messaging.requeue_processedmessage · groups that have it: &lt;on call&gt;" in html
    assert "takes messaging.pause_queuecontrol · no group has it" in html
    assert inline_code(html) == []
