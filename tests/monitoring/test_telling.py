"""Who is told, by which name, and for how long he is waited for; and what two aliases have in common."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command

from messaging.models import Alert, AlertMessage
from messaging.monitoring import alerts, evaluation, health, readings, telling, unrecorded
from messaging.monitoring.conditions import Condition, long_paused, not_consumed
from messaging.monitoring.databases import home
from messaging.monitoring.evaluation import Findings
from messaging.monitoring.snapshot import Pause, Snapshot
from messaging.supervising import state
from tests.recipients import Recipient
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = Condition("broker_away", "critical", "default", "The broker is away.", "Start it.", alias="default")
GO_ON = threading.Event()
CALLED: list[str] = []


def hang(content: dict[str, Any]) -> None:
    CALLED.append(content["kind"])
    GO_ON.wait(180)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(telling, "SECONDS", 120.0)
    CALLED.clear()
    GO_ON.clear()
    readings.forget()
    yield
    GO_ON.set()
    readings.forget()


def note(*wrong: Condition, unknown: frozenset[tuple[str, str]] = frozenset()) -> int:
    alerts.note(Findings(list(wrong), unknown=unknown), telling.channels(), home(Alert))
    return alerts.send_due(telling.channels(), home(Alert))


def test_a_function_that_never_comes_back_holds_nobody_up(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "CALL_SECONDS", 0.1)
    with Recipient() as recipient:
        settings.MESSAGING_CONSOLE = {"ALERTS": {"call": f"{__name__}.hang", "webhooks": [recipient.url]}}
        assert note(AWAY) == 1
        assert recipient.events == [("begins", "broker_away")]
        assert "has not come back within 0.1 seconds" in AlertMessage.objects.get().error
        for message in AlertMessage.objects.all():
            AlertMessage.objects.filter(pk=message.pk).update(due_at=message.due_at - timedelta(minutes=1))
        assert note(AWAY) == 0
        wait_until(lambda: CALLED, what="the call before to begin")
        assert CALLED == ["broker_away"], "the call before still runs, and is not joined by a second one"
        GO_ON.set()
        for thread in threading.enumerate():
            if thread.name == "messaging-alert-call":
                thread.join(120)
        monkeypatch.setattr(telling, "CALL_SECONDS", 60.0)
        AlertMessage.objects.update(due_at=datetime(2026, 1, 1, tzinfo=UTC))
        assert note(AWAY) == 1
        assert CALLED == ["broker_away"] * 2


def test_a_recipient_is_the_same_wherever_it_stands(settings: Any) -> None:
    with Recipient() as one, Recipient() as other:
        other.status = 503
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [one.url, other.url]}}
        assert note(AWAY) == 1
        other.status = 200
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [other.url, one.url]}}
        AlertMessage.objects.update(due_at=datetime(2026, 1, 1, tzinfo=UTC))
        assert note(AWAY) == 1
        assert one.events == [("begins", "broker_away")], "it was told already"
        assert other.events[1:] == [("begins", "broker_away")]
        keys = [channel.key for channel in telling.channels()]
        assert not any(part in key for key in keys for part in (one.url, other.url))


def test_what_an_earlier_release_has_written_is_sent(settings: Any) -> None:
    with Recipient() as recipient:
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [recipient.url]}}
        alerts.note(Findings([AWAY]), telling.channels(), home(Alert))
        AlertMessage.objects.update(channel="webhooks:0")
        assert alerts.send_due(telling.channels(), home(Alert)) == 1
        assert recipient.events == [("begins", "broker_away")]


def test_a_queue_of_each_alias_is_an_alert_of_its_own(settings: Any) -> None:
    settings.MESSAGING = {alias: {"URL": "database://", "QUEUES": {"billing": {}}} for alias in ("default", "other")}
    now = datetime.now(UTC)
    pauses = tuple(Pause(alias, "billing", now - timedelta(days=1)) for alias in ("default", "other"))
    waiting = Snapshot(now=now, ready={("default", "billing"): 1, ("other", "billing"): 2})
    found = [*long_paused(Snapshot(now=now, pauses=pauses)), *not_consumed(waiting)]
    assert [one.subject for one in found] == ["billing", "other: billing"] * 2
    with Recipient() as recipient:
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [recipient.url]}}
        assert note(*found) == 4
        assert note(*found[::2]) == 2
        ended = [(one["kind"], one["subject"]) for one in recipient.told if one["event"] == "over"]
        assert sorted(ended) == [("long_paused", "other: billing"), ("not_consumed", "other: billing")]


@pytest.mark.parametrize(
    ("options", "subject"),
    [({"URL": "amqp://127.0.0.1:1/", "QUEUES": {"billing": {}}}, "other: billing"), ({"URL": "nonsense"}, "any")],
)
def test_of_a_broker_that_is_away_and_of_settings_that_cannot_be_read_nothing_is_over(
    settings: Any, options: dict[str, Any], subject: str
) -> None:
    settings.MESSAGING = {"default": {"URL": "database://"}, "other": options}
    evaluation._looked_at.clear()
    assert evaluation.evaluate().is_unknown("not_consumed", subject)


def test_where_nothing_remembers_what_was_told_the_command_says_so(
    settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "answers", lambda *_: False)  # the database is away
    with Recipient() as recipient:
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [recipient.url]}}
        for folder, told in ((str(tmp_path), 1), (None, 3)):
            monkeypatch.setattr(state, "own_folder", lambda folder=folder: folder)
            for _ in range(2):
                complaint = io.StringIO()
                call_command("send_alerts", stdout=io.StringIO(), stderr=complaint)
                assert (unrecorded.FORGETFUL in complaint.getvalue()) == (folder is None)
            assert len(recipient.told) == told


def test_while_a_database_is_away_no_pause_in_it_is_over(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MESSAGING = {"default": {"URL": "database://"}}
    monkeypatch.setattr(evaluation.snapshot, "read", lambda _ready: Snapshot(now=datetime.now(UTC), away=("other",)))
    assert evaluation.evaluate().is_unknown("long_paused", "billing")
