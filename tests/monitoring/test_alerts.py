"""Whom alerts tell what, and how often: once, again each hour, once more when it is over; and nothing is dropped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core import mail

from messaging.db.clock import Now, in_utc
from messaging.models import Alert, AlertMessage, FailureGroup, Worker
from messaging.monitoring import alerts, evaluation, failure_groups, readings, telling
from messaging.monitoring.conditions import Condition
from messaging.monitoring.databases import home
from messaging.monitoring.evaluation import Findings
from messaging.monitoring.failure_groups import Cause
from tests.deliveries import in_a_thread
from tests.recipients import Recipient
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = Condition("broker_away", "critical", "default", "The broker <is> away.", "Start it.", alias="default")
CALLED: list[dict[str, Any]] = []
LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


def call(content: dict[str, Any]) -> None:
    CALLED.append(content)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SECONDS", 120.0)


@pytest.fixture
def recipient(settings: Any) -> Iterator[Recipient]:
    with Recipient() as own:
        settings.MESSAGING_CONSOLE = {"ALERTS": {"webhooks": [own.url]}}
        yield own


def note(*wrong: Condition, follows: tuple[Condition, ...] = (), unknown: tuple[tuple[str, str], ...] = ()) -> int:
    """Note what was found, send what is due, and return how many messages were sent."""
    alerts.note(Findings(list(wrong), list(follows), frozenset(unknown)), telling.channels(), home(Alert))
    return alerts.send_due(telling.channels(), home(Alert))


def later(**by: float) -> None:
    """As if everything so far had been so much earlier."""
    earlier = timedelta(**by)
    for row in Alert.objects.exclude(told_at=None):
        Alert.objects.filter(pk=row.pk).update(told_at=row.told_at - earlier)
    for message in AlertMessage.objects.all():
        AlertMessage.objects.filter(pk=message.pk).update(due_at=message.due_at - earlier)


def test_it_is_told_once_again_after_an_hour_and_when_it_is_over(recipient: Recipient) -> None:
    assert note(AWAY) == 1
    assert note(AWAY) == note(AWAY) == 0
    later(minutes=59)
    assert note(AWAY) == 0
    later(minutes=2)
    assert note(AWAY) == 1
    assert note() == 1
    assert note() == 0
    assert recipient.events == [("begins", "broker_away"), ("goes_on", "broker_away"), ("over", "broker_away")]
    first = recipient.told[0]
    assert (first["subject"], first["level"], first["words"]) == ("default", "critical", AWAY.words)
    assert datetime.fromisoformat(first["since"]) <= datetime.now(UTC)
    assert not AlertMessage.objects.exists()


def test_one_that_cannot_be_written_keeps_no_other_from_being_told(
    recipient: Recipient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = alerts._values

    def fail(condition: Condition) -> dict[str, str]:
        if condition.name == "odd":
            raise ValueError("refused")
        return values(condition)

    monkeypatch.setattr(alerts, "_values", fail)
    assert note(replace(AWAY, name="odd"), AWAY) == 1
    assert recipient.events == [("begins", "broker_away")]
    assert "The alert odd default could not be written" in caplog.text


def test_what_comes_and_goes_is_told_once_an_hour(recipient: Recipient) -> None:
    for _ in range(3):
        note(AWAY)
        note()
    assert recipient.events == [("begins", "broker_away"), ("over", "broker_away")]
    note(AWAY)
    later(minutes=61)
    note(AWAY)
    assert recipient.events[2:] == [("begins", "broker_away")], "it is still there after the hour"


def test_what_nobody_knows_is_not_over_and_what_follows_is_not_told(recipient: Recipient) -> None:
    late = Condition("oldest_due", "critical", "default", "Late.", "", alias="default")
    note(AWAY, follows=(late,))
    note(late)
    later(minutes=61)
    note(AWAY, follows=(late,))
    note(AWAY, unknown=(("oldest_due", ""),))
    assert [event for event in recipient.events if event[1] == "oldest_due"] == [("begins", "oldest_due")]
    note(AWAY)
    assert recipient.events[-1] == ("over", "oldest_due")


def test_everybody_is_told_in_his_own_way(recipient: Recipient, settings: Any, tmp_path: Any) -> None:
    CALLED.clear()
    secret = tmp_path / "webhook"
    secret.write_text(f"{recipient.url}\n")
    told = {"mail": ["ops@example.com"], "slack": [{"file": str(secret)}], "webhooks": [recipient.url]}
    settings.MESSAGING_CONSOLE = {"BANNER": "PRODUCTION", "ALERTS": {**told, "call": f"{__name__}.call"}}
    settings.MAILERS = {"default": {"BACKEND": LOCMEM}}  # which Django 6.1 wants where mail is sent
    assert note(AWAY) == 4
    [letter] = mail.outbox
    assert letter.to == ["ops@example.com"]
    assert letter.subject == "[PRODUCTION] Alert: The broker <is> away."
    assert "Start it." in letter.body
    slack = next(post for post in recipient.told if "text" in post)
    assert slack["text"] == "*[PRODUCTION] Alert: The broker &lt;is&gt; away.*\nStart it."
    assert [one["kind"] for one in CALLED] == ["broker_away"]


def test_a_webhook_that_is_down_is_tried_again_for_hours_and_then_given_up(recipient: Recipient) -> None:
    recipient.status = 503
    assert note(AWAY) == note(AWAY) == 0
    assert len(recipient.told) == 1, "not at once again"
    message = AlertMessage.objects.get()
    assert (message.attempts, message.error) == (1, "the webhook answers 503")
    assert timedelta(0) < in_utc(message.due_at) - datetime.now(UTC) < timedelta(seconds=31)
    recipient.status = 200
    later(seconds=31)
    assert note(AWAY) == 1
    recipient.status = 503
    note()
    for _ in range(alerts.TRIES):
        later(hours=1)
        note()
    assert len(recipient.told) == 2 + alerts.TRIES
    assert not AlertMessage.objects.exists()


def test_a_try_that_kills_its_process_is_not_made_for_ever(recipient: Recipient) -> None:
    alerts.note(Findings([AWAY]), telling.channels(), home(Alert))
    for number in range(1, alerts.TRIES + 1):
        message = alerts._claim(home(Alert))
        assert message is not None, number
        assert message.attempts == number
        later(minutes=3)
    assert alerts._claim(home(Alert)) is None
    assert not AlertMessage.objects.exists()


def leave(_content: dict[str, Any]) -> None:
    raise SystemExit(1)


def test_a_function_that_leaves_the_process_has_not_told(settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"ALERTS": {"call": f"{__name__}.leave"}}
    assert note(AWAY) == 0
    assert "SystemExit" in AlertMessage.objects.get().error


def test_a_newer_message_takes_the_place_of_one_that_was_not_sent(recipient: Recipient) -> None:
    recipient.status = 503
    note(AWAY)
    recipient.status = 200
    assert note() == 1
    assert recipient.events == [("begins", "broker_away"), ("over", "broker_away")]
    assert recipient.told[-1]["words"] == AWAY.words


def test_nobody_hears_of_an_end_that_is_none(recipient: Recipient) -> None:
    note(AWAY)
    recipient.status = 503
    note()
    recipient.status = 200
    assert note(AWAY) == 1
    assert recipient.events == [("begins", "broker_away"), ("over", "broker_away"), ("begins", "broker_away")]
    assert note() == 1


def test_a_message_that_changes_while_it_is_sent_is_sent_anew(recipient: Recipient) -> None:
    recipient.go_on.clear()
    sender = in_a_thread(lambda: note(AWAY))
    while not recipient.told:
        sender.join(0.02)
    alerts.note(Findings([]), telling.channels(), home(Alert))
    recipient.go_on.set()
    sender.join(120)
    alerts.send_due(telling.channels(), home(Alert))
    assert recipient.events == [("begins", "broker_away"), ("over", "broker_away")]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "the webhook answers 302"),
        ({"body": b"x" * (telling.MOST + 1)}, "the answer has more than 64 KiB"),
    ],
)
def test_an_answer_is_limited_and_leads_nowhere(recipient: Recipient, answer: dict[str, Any], why: str) -> None:
    for name, value in answer.items():
        setattr(recipient, name, value)
    assert note(AWAY) == 0
    error = AlertMessage.objects.get().error
    assert why in error
    assert recipient.url not in error


def test_an_url_that_cannot_be_asked_is_not_repeated(settings: Any, tmp_path: Any) -> None:
    secret = tmp_path / "webhook"
    with socket.create_server(("127.0.0.1", 0)) as server:
        secret.write_text(f"http://127.0.0.1:{server.getsockname()[1]}/services/SECRET \n")
        settings.MESSAGING_CONSOLE = {"ALERTS": {"slack": [{"file": str(secret)}]}}
        assert note(AWAY) == 0
    assert "characters that no URL has" in AlertMessage.objects.get().error


def test_of_many_that_look_at_once_one_writes(recipient: Recipient) -> None:
    note()

    threads = [in_a_thread(lambda: note(AWAY)) for _ in range(5)]
    for thread in threads:
        thread.join(60)
    assert recipient.events == [("begins", "broker_away")]


def test_one_looks_a_minute(recipient: Recipient, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(alerts, "evaluate", lambda: looks.append(1) or Findings([]))
    for _ in range(3):
        alerts.look()
    assert len(looks) == 1
    later(seconds=61)
    alerts.look()
    alerts.look(at_once=True)
    assert len(looks) == 3


def test_a_thread_looks_until_it_is_asked_to_stop(recipient: Recipient, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Findings([AWAY]), RuntimeError("odd"), Findings([])])

    def evaluate() -> Findings:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(alerts, "evaluate", evaluate)
    monkeypatch.setattr(alerts, "EVERY", 0.01)
    monkeypatch.setattr(alerts, "MARGIN", timedelta(seconds=60))
    stop = threading.Event()
    thread = alerts.AlertThread(stop)
    thread.start()
    wait_until(lambda: len(recipient.told) == 2, what="that it is over")
    stop.set()
    thread.join(120)
    assert recipient.events == [("begins", "broker_away"), ("over", "broker_away")]


def test_ten_thousand_failures_make_one_alert(recipient: Recipient, settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "database://"}}
    cause = Cause("f" * 32, "shop.errors.Refused", "billing.py:charge", "shop.handlers.bill")
    for _ in range(10_000):
        failure_groups.add("default", "default", cause, is_final=True)
    failure_groups.write("default")
    evaluation._looked_at.clear()
    found = evaluation.evaluate()
    assert [one.name for one in found.wrong] == ["new_failures"]
    assert [one.name for one in found.follows] == ["failures_rising"]
    assert "Refused in billing.py:charge" in found.wrong[0].words
    assert "10000 messages failed" in found.wrong[0].words
    alerts.look(at_once=True)
    alerts.look(at_once=True)
    assert recipient.events == [("begins", "new_failures")]
    FailureGroup.objects.update(silenced_at=Now())
    alerts.look(at_once=True)
    assert recipient.events[1:] == [("over", "new_failures")]


def test_a_failure_that_a_retry_cured_is_no_alert(settings: Any) -> None:
    failure_groups.add("default", "default", Cause("a" * 32, "Deadlock"), is_final=False)
    failure_groups.write("default")
    assert list(evaluation.new_failures()) == []
    for _ in range(5):
        failure_groups.add("default", "default", Cause("a" * 32, "Deadlock"), is_final=False)
    failure_groups.write("default")
    assert [one.subject for one in evaluation.new_failures()] == ["a" * 32], "many are another matter"


def test_many_new_failures_are_told_together() -> None:
    for number in range(evaluation.MOST_GROUPS + 5):
        failure_groups.add("default", "default", Cause(f"{number:032}", "Refused"), is_final=True)
    failure_groups.write("default")
    assert len(list(evaluation.new_failures())) == evaluation.MOST_GROUPS + 1


def test_a_broker_that_is_away_is_one_alert(recipient: Recipient, settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    evaluation._looked_at.clear()
    found = evaluation.evaluate()
    assert [(one.name, one.level, one.subject) for one in found.wrong] == [("broker_away", "critical", "default")]
    assert "No worker runs" in found.wrong[0].words
    assert found.is_unknown("not_consumed", "billing")
    Worker.objects.create(name="relay", kind="relay", host="a", pid=1, status="broker: Connection refused")
    [told] = evaluation.evaluate().wrong
    assert "Connection refused" in told.words
    alerts.look(at_once=True)
    assert recipient.events == [("begins", "broker_away")], "sent directly"


def test_what_every_worker_says_is_one_alert(recipient: Recipient, settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "database://"}}
    evaluation._looked_at.clear()
    for number in range(3):
        waits = {"kind": "consume", "status": "waiting for the database"}
        Worker.objects.create(name=f"consumer{number}", host="a", pid=number, **waits)
        Worker.objects.create(name=f"relay{number}", kind="relay", host="a", pid=number, status="a memory alarm")
    for number in range(3):
        Worker.objects.filter(pid=number).update(seen_at=Now())
        alerts.look(at_once=True)
    assert sorted(recipient.events) == [("begins", "broker_full"), ("begins", "database_away")]


def test_a_reading_never_raises_and_leaves_out_the_embedded_broker_where_that_is_asked(settings: Any) -> None:
    settings.MESSAGING = {
        "default": {"URL": "database://", "QUEUES": {"work": {}}},
        "other": {"URL": "amqp://127.0.0.1:1/", "QUEUES": {"work": {}}},
    }
    assert set(readings.waiting(brokers_alone=True).away) == {"other"}
    assert readings.waiting().unreachable == {"other"}


def test_alerts_that_were_over_long_ago_are_forgotten(recipient: Recipient) -> None:
    note(AWAY)
    note()
    assert alerts.prune(home(Alert)) == 0
    Alert.objects.update(ended_at=datetime.now(UTC) - timedelta(days=91))
    assert alerts.prune(home(Alert)) == 1
