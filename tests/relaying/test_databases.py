"""A relay that serves several databases, one of which does not answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from pytest_django import Settings

from messaging.models import PublishedMessage
from messaging.publishing.publisher import publish
from messaging.relaying.relay import Relay
from tests.waiting import wait_until


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_a_database_that_fails_does_not_stop_the_others(
    vhost_url: str, settings: Settings, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "QUEUES": {"work": {"type": "classic"}}}}
    absent = {**connections["default"].settings_dict, "NAME": str(tmp_path / "absent" / "db.sqlite3"), "OPTIONS": {}}
    stop = threading.Event()
    relays: list[Relay] = []

    def run() -> None:
        # Known to this thread alone: Django's tests let no thread reach a database that the settings name besides.
        connections["broken"] = DatabaseWrapper(absent, "broken")
        relays.append(Relay("default", databases=["broken", "default"]))
        try:
            relays[0].run(stop)
        finally:
            connections["default"].close()
            del connections["broken"]

    row = publish("work", "1", queue="work")
    thread = threading.Thread(target=run)
    published = PublishedMessage.objects.filter(pk=row.pk, state="published")
    with caplog.at_level("WARNING", logger="messaging.relay"):
        thread.start()
        try:
            wait_until(published.exists, what="the row published")
            wait_until(lambda: "broken" in caplog.text, what="a line about the broken database")
        finally:
            stop.set()
            thread.join(120)
    assert not thread.is_alive()
    assert caplog.text.count('Cannot use the database "broken"') == 1
