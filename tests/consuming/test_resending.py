"""Rounds that left the outbox and never came back: shown, sent again by an operator, or by the consumer itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Min
from django.utils import timezone

from messaging import operations
from messaging.backends import get_backend
from messaging.backends.base import QueueSpec, Topology
from messaging.consuming.resending import resend
from messaging.db.clock import Now, in_utc
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage
from messaging.monitoring import readings
from messaging.operations import Operator
from messaging.publishing.rounds import LONG, not_back, with_sent_at
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, QUEUES, incoming, outgoing, staff
from tests.backends.tools import message, send
from tests.site import SiteFactory

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"billing": {}}, "RESEND_AFTER": 600}}
    readings.forget()
    get_backend("default").declare(Topology(queues=(QueueSpec("billing"),)))
    yield
    readings.forget()


def away(state: str = "retrying", *, sent: timedelta = HOUR, round_state: str = "published", **values: Any) -> Any:
    """An inbox row whose round was sent so long ago."""
    due = Now() - sent if state == "retrying" else None
    row = incoming(state, round=2, retry_at=due, **values)
    sent_at = Now() - sent if round_state == "published" else None
    names = {"alias": row.alias, "queue": row.queue, "message_id": row.message_id}
    outgoing(round_state, exchange="", inbox_id=row.pk, round=2, published_at=sent_at, **names)
    return row


def found() -> list[Any]:
    return list(not_back(ProcessedMessage.objects.all(), Now() - timedelta(seconds=LONG)).order_by("pk"))


def rounds(row: Any) -> list[str]:
    return list(PublishedMessage.objects.filter(inbox_id=row.pk).order_by("pk").values_list("state", flat=True))


@pytest.mark.mode(52)
def test_what_was_sent_and_is_not_back_is_found() -> None:
    lost = [away(), away("requeued")]
    away(sent=timedelta(minutes=1))
    away("requeued", round_state="pending")
    away("processed")
    incoming("retrying", retry_at=Now() + HOUR)
    assert found() == lost


def test_a_round_whose_outbox_row_is_gone_counts_as_of_its_due_time() -> None:
    row = away()
    PublishedMessage.objects.all().delete()
    assert found() == [row]


def test_a_round_that_was_sent_again_is_away_since_then() -> None:
    row = away()
    values = {"queue": row.queue, "message_id": row.message_id, "exchange": "", "inbox_id": row.pk, "round": 2}
    outgoing("published", published_at=Now() - timedelta(minutes=1), **values)
    assert not found()


def test_the_pages_say_since_when() -> None:
    away(sent=HOUR)
    row = away(sent=2 * HOUR)
    first = with_sent_at(not_back(ProcessedMessage.objects.all(), Now())).aggregate(first=Min("sent_at"))["first"]
    said = timezone.localtime(in_utc(first)).strftime("%Y-%m-%d %H:%M")
    client = staff(*EVERYTHING)
    for url, text in (("/admin/messaging/", f"since {said}"), (QUEUES, f"2 since {said}")):
        page = client.get(url).content.decode()
        assert text in page
        assert "not back" in page
        assert "?state=away" in page
    listed = client.get(f"{INCOMING}?state=away").content.decode()
    assert f"{INCOMING}{row.pk}/change/" in listed


def test_where_all_is_back_nothing_is_said() -> None:
    assert "not back" not in staff(*EVERYTHING).get("/admin/messaging/").content.decode()


@pytest.mark.mode(52)
@pytest.mark.parametrize("state", ["retrying", "requeued"])
def test_the_command_sends_again_what_is_not_back(state: str) -> None:
    lost, recent = away(state), away(state, sent=timedelta(minutes=1))
    since = (timezone.now() - timedelta(minutes=30)).isoformat()
    out = StringIO()
    call_command("requeue_messages", "--state", state, "--not-back-since", since, stdout=out)
    assert "Requeued 1 message" in out.getvalue()
    assert rounds(lost) == ["published", "pending"]
    assert rounds(recent) == ["published"]


def test_the_command_has_no_such_choice_for_other_states() -> None:
    with pytest.raises(CommandError, match="needs --state retrying or --state requeued"):
        call_command("requeue_messages", "--not-back-since", "2026-01-01")


def test_a_consumer_sends_again_what_an_empty_queue_has_lost() -> None:
    lost = away()
    assert resend("default", ["billing"], "default") == 1
    assert rounds(lost) == ["published", "pending"]
    assert resend("default", ["billing"], "default") == 0  # it is on its way
    lost.refresh_from_db()
    assert (lost.state, lost.round) == ("retrying", 2)
    record = AuditRecord.objects.get()
    assert (record.action, record.username, record.message_pk) == ("replay", "RESEND_AFTER", lost.pk)


def test_unless_the_setting_says_so_it_does_not(settings: Any) -> None:
    del settings.MESSAGING["default"]["RESEND_AFTER"]
    away()
    assert resend("default", ["billing"], "default") == 0


def test_what_may_still_be_in_its_queue_is_left_there() -> None:
    away()
    sender = get_backend("default").sender()
    sender.open()
    send(sender, message("billing"))
    sender.close()
    assert resend("default", ["billing"], "default") == 0


def test_a_paused_queue_is_left_alone() -> None:
    away()
    operations.set_paused("billing", True, Operator())
    assert resend("default", ["billing"], "default") == 0
    operations.set_paused("billing", False, Operator())
    assert resend("default", ["billing"], "default") == 1


def test_other_queues_and_missing_ones_are_left_alone() -> None:
    away(queue="mail")
    assert resend("default", ["billing"], "default") == 0
    assert resend("default", ["mail"], "default") == 0  # it does not exist


LOST = """
from datetime import timedelta
from messaging.db.clock import Now
from messaging.wire.envelope import key_of
from tests.admin_rows import incoming
row = incoming("retrying", queue="work", routing_key="work.do", round=2, retry_at=Now() - timedelta(hours=2))
row.key, row.digest = key_of(row.message_id), row.envelope().digest
row.save()
"""
HANDLERS = """
from messaging import handler

@handler("work")
def work(message):
    print("worked on", message.payload, flush=True)
"""


@pytest.mark.mode(52)
def test_a_running_consumer_finds_what_was_lost(site: SiteFactory) -> None:
    made = site(broker="database://", handlers=HANDLERS, options={"RESEND_AFTER": 60})
    made.manage("topology")
    made.manage("shell", "-c", LOST)
    running = made.start("consume", "--no-reload")
    running.wait_for_output("worked on {'order': 17}")
    assert running.stop() == 0
