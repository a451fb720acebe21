"""The console in an admin site beside Django's own, with and without that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import path

import messaging.admin
from messaging.admin import ProcessedMessageAdmin
from messaging.models import FailureGroup, Operation, ProcessedMessage
from messaging.monitoring import readings
from tests.admin_rows import incoming, outgoing

pytestmark = pytest.mark.django_db

office = admin.AdminSite(name="office")
messaging.admin.register(office)


class Both:
    """The addresses of a site with two."""

    urlpatterns = [path("admin/", admin.site.urls), path("office/", office.urls)]


class Alone:
    """The addresses of a site that has no other."""

    urlpatterns = [path("office/", office.urls)]


@pytest.fixture(autouse=True, params=[Both, Alone])
def _addresses(settings: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    settings.ROOT_URLCONF = request.param
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"billing": {}}}}
    readings.forget()
    yield
    readings.forget()


def pages() -> list[str]:
    row, out, draft = incoming("failed"), outgoing("failed"), outgoing("draft")
    operation = Operation.objects.create(verb="requeue", kind="processed", total=1)
    group = FailureGroup.objects.create(fingerprint="a" * 32)
    lists = (
        "processedmessage", "publishedmessage", "failuregroup", "queuecontrol", "messagetemplate", "operation",
        "auditrecord", "worker",
    )  # fmt: skip
    return [
        "", "messaging/", *(f"messaging/{name}/" for name in lists), f"messaging/processedmessage/{row.pk}/change/",
        f"messaging/processedmessage/{row.pk}/requeue/", f"messaging/processedmessage/{row.pk}/history/",
        "messaging/processedmessage/export/", f"messaging/publishedmessage/{out.pk}/change/",
        f"messaging/publishedmessage/{draft.pk}/change/", "messaging/publishedmessage/add/",
        f"messaging/operation/{operation.pk}/change/", f"messaging/failuregroup/{group.pk}/change/",
        f"messaging/failuregroup/{group.pk}/silence/", "messaging/queuecontrol/pause/?alias=default&queue=billing",
        "messaging/messagetemplate/add/",
    ]  # fmt: skip


def test_every_page_is_there_and_leads_to_no_other_site(admin_client: Client) -> None:
    for page in pages():
        answer = admin_client.get(f"/office/{page}")
        assert answer.status_code == 200, page
        links = re.findall(r'(?:href|action)="(/[^"]*)"', answer.content.decode())
        others = {link for link in links if not link.startswith(("/office/", "/static/"))}
        assert others <= {"/"}, page  # what the admin calls "View site"


def test_a_message_is_requeued_there(admin_client: Client) -> None:
    row = incoming("failed")
    listed = {"action": "requeue", "_selected_action": [str(row.pk)], "post": "1", "index": "0"}
    answer = admin_client.post("/office/messaging/processedmessage/", listed)
    assert answer.headers["Location"].startswith("/office/messaging/")
    row.refresh_from_db()
    assert row.state == "requeued"


def test_a_class_that_was_registered_before_stays() -> None:
    class Own(ProcessedMessageAdmin):
        pass

    site = admin.AdminSite(name="own")
    site.register(ProcessedMessage, Own)
    messaging.admin.register(site)
    messaging.admin.register(site)
    assert type(site._registry[ProcessedMessage]) is Own
    assert set(site._registry) == {model for model in admin.site._registry if model._meta.app_label == "messaging"}
