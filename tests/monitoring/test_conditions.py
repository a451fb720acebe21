"""What is wrong is concluded from what workers and tables say, and every page of the console says it first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from messaging.backends import get_backend
from messaging.db.clock import in_utc
from messaging.models import QueueControl, Worker
from messaging.models.failure_groups import BUCKET
from messaging.monitoring import readings, snapshot
from messaging.monitoring.conditions import conditions
from messaging.monitoring.counters import minute_of
from messaging.monitoring.snapshot import Outbox, Pause, Snapshot
from messaging.topology import build
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, inline_code, outgoing, staff
from tests.backends.tools import confirmed, message, send

NOW = datetime(2026, 5, 4, 12, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)


def worker(kind: str = "consume", status: str = "running 0, waiting 0", ago: float = 1.0, **values: Any) -> Worker:
    own = {"queues": ["billing"] if kind == "consume" else [], "name": f"host:1:{kind}", **values}
    return Worker(kind=kind, status=status, seen_at=NOW - timedelta(seconds=ago), **own)


def relay(status: str = "") -> Worker:
    return worker("relay", status)


def names(**known: Any) -> dict[str, str]:
    return {found.name: found.level for found in conditions(Snapshot(NOW, **known))}


def due(ago: timedelta) -> dict[str, Outbox]:
    return {"default": Outbox(due=3, oldest=NOW - ago)}


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert names() == {}
    assert (
        names(workers=(worker(), relay()), outboxes=due(timedelta(seconds=5)), ready={("default", "billing"): 9}) == {}
    )


@pytest.mark.parametrize("told", [worker(status="waiting for the broker"), relay("broker: Connection refused")])
def test_the_broker_is_away_when_relays_or_consumers_say_so(told: Worker) -> None:
    found = names(workers=(told, relay(), worker()))
    assert found == {"broker_away": "critical"}
    told.seen_at = NOW - timedelta(minutes=10)
    assert "broker_away" not in names(workers=(told, relay(), worker())), "what was said long ago"


def test_the_reason_is_the_relays_own() -> None:
    [found] = conditions(Snapshot(NOW, workers=(worker(), relay("broker: Connection refused"))))
    assert found.words == "Of 2 running workers, 1 cannot reach the broker. Connection refused"
    assert found.fix


def test_a_broker_that_takes_nothing_is_another_matter() -> None:
    assert names(workers=(worker(), relay("a memory alarm"))) == {"broker_full": "critical"}


def test_a_database_is_away_when_consumers_wait_for_it() -> None:
    assert names(workers=(worker(status="waiting for the database"), relay())) == {"database_away": "critical"}


def test_a_queue_with_messages_needs_a_consumer_unless_it_is_paused() -> None:
    known: dict[str, Any] = {"workers": (worker(), relay()), "ready": {("default", "mail"): 7}}
    assert names(**known) == {"not_consumed": "critical"}
    assert names(**known, pauses=(Pause("default", "mail", NOW),)) == {}
    assert names(workers=(worker(queues=["mail"]), relay()), ready=known["ready"]) == {}


def test_what_is_published_needs_a_relay() -> None:
    assert names(outboxes=due(timedelta(seconds=5))) == {}, "a site that is not running yet"
    assert names(outboxes=due(HOUR)) == {"no_relay": "critical"}
    assert names(workers=(worker(),), outboxes={"default": Outbox()}) == {"no_relay": "warning"}


def test_what_is_due_for_long_is_trouble() -> None:
    assert names(workers=(relay(),), outboxes=due(timedelta(minutes=2))) == {"oldest_due": "warning"}
    assert names(workers=(relay(),), outboxes=due(HOUR)) == {"oldest_due": "critical"}


def test_what_no_queue_takes_is_said() -> None:
    box = Outbox(unrouted=2, unrouted_since=NOW - HOUR)
    assert names(workers=(relay(),), outboxes={"default": box}) == {"unrouted": "warning"}


def test_failures_rise_where_many_more_fail_than_before() -> None:
    this = minute_of(NOW) - minute_of(NOW) % BUCKET
    before = {("default", this - ago * BUCKET): 10 for ago in range(2, 8)}
    assert names(failures={("default", this): 6}) == {"failures_rising": "warning"}
    assert names(failures={("default", this): 5}) == {}
    assert names(failures={**before, ("default", this): 60}) == {}
    assert names(failures={**before, ("default", this - BUCKET): 61}) == {"failures_rising": "warning"}


def test_a_pause_that_may_have_been_forgotten_is_said() -> None:
    assert names(pauses=(Pause("default", "mail", NOW - 2 * HOUR),)) == {"long_paused": "warning"}
    assert names(pauses=(Pause("default", "mail", NOW - HOUR / 2),)) == {}


def test_workers_that_died_are_said() -> None:
    assert names(workers=(worker(ago=300), relay(), worker())) == {"silent_workers": "warning"}


def test_workers_that_newer_ones_stand_in_for_are_not_said() -> None:
    dead, other = worker(ago=300, name="dead"), worker(ago=400, name="other")
    newer = worker(started_at=NOW - timedelta(seconds=100), name="newer")
    assert names(workers=(newer, dead, relay())) == {}
    assert names(workers=(newer, dead, other, relay())) == {"silent_workers": "warning"}, "for one it does"
    assert names(workers=(worker(started_at=NOW - HOUR), dead, relay())) == {"silent_workers": "warning"}
    elsewhere = worker(started_at=NOW - timedelta(seconds=100), queues=["mail"])
    assert names(workers=(elsewhere, dead, relay())) == {"silent_workers": "warning"}, "for other queues"


def test_each_host_is_said_for_itself() -> None:
    silent = (worker(ago=300, host="a", name="one"), worker(ago=400, host="a", name="two"), worker(ago=300, host="b"))
    found = [one for one in conditions(Snapshot(NOW, workers=(relay(), *silent))) if one.name == "silent_workers"]
    assert [(one.subject, one.since) for one in found] == [
        ("a", NOW - timedelta(seconds=400)), ("b", NOW - timedelta(seconds=300)),
    ]  # fmt: skip
    assert "one, two" in found[0].words


@pytest.mark.django_db
def test_every_page_says_it_first_to_those_who_may_see_more(admin_client: Client, settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"mail": {}}}}
    readings.forget()
    hostile = "broker: <b>refused</b>"
    Worker.objects.create(name="r", kind="relay", host="web1", pid=7, status=hostile)
    QueueControl.objects.create(queue="mail", paused=True, changed_at=datetime.now(UTC) - 2 * HOUR)
    outgoing("pending", publish_at=datetime.now(UTC) - HOUR)
    for page in ("/admin/messaging/", QUEUES, INCOMING, OUTGOING, "/admin/messaging/worker/"):
        html = admin_client.get(page).content.decode()
        for text in (
            "Of 1 running workers, 1 cannot reach the broker. &lt;b&gt;refused",
            "is paused",
            "due and not sent: 1.",
        ):
            assert text in html, (page, text)
        assert html.index("cannot reach the broker") < html.index("is paused"), "the worst first"
        assert 'href="/admin/messaging/publishedmessage/?state=pending"' in html
        assert inline_code(html) == []
    html = staff("view_publishedmessage").get(OUTGOING).content.decode()
    assert "due and not sent" in html
    assert "cannot reach the broker" not in html


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_nobody_consumes_is_known_from_the_last_reading(settings: Any, admin_client: Client) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"mail": {}}}}
    readings.forget()
    assert readings.unattended() == {}
    backend = get_backend("default")
    backend.declare(build("default"))
    sender = backend.sender()
    sender.open()
    assert confirmed(send(sender, message("mail")))
    sender.close()
    for page in (QUEUES, INCOMING):  # the first reads the broker, the second knows of it
        assert "Nobody consumes the queue mail, which has 1 messages." in admin_client.get(page).content.decode()
    assert readings.unattended() == {("default", "mail"): 1}
    Worker.objects.create(name="c", kind="consume", host="web1", pid=7, queues=["mail"])
    assert "Nobody consumes" not in admin_client.get(INCOMING).content.decode()


@pytest.mark.django_db
def test_what_the_tables_say_is_read_by_two_statements(django_assert_num_queries: Any) -> None:
    now = timezone.now()
    outgoing("pending", publish_at=now - HOUR)
    outgoing("pending", publish_at=now - 2 * HOUR, due_at=now + HOUR, attempts=1, lease_owner="r")
    outgoing("pending", publish_at=now + HOUR, due_at=now + HOUR)
    outgoing("pending", publish_at=now - HOUR, due_at=now + HOUR, attempts=1, unrouted=True)
    outgoing("failed")
    QueueControl.objects.create(queue="mail", paused=True)
    QueueControl.objects.create(queue="billing", paused=False)
    with django_assert_num_queries(2):
        found = snapshot.read()
    box = found.outboxes["default"]
    assert (box.due, box.unrouted, box.failed) == (2, 1, 1)
    assert box.oldest is not None
    assert abs(in_utc(box.oldest) - (in_utc(now) - 2 * HOUR)) < timedelta(seconds=1)
    assert [pause.queue for pause in found.pauses] == ["mail"]
    assert abs(found.now - in_utc(now)) < timedelta(minutes=1)
