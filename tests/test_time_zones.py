"""Times with and without `USE_TZ`, in zones east and west of Greenwich, as far away as Python can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone as django_timezone

from messaging import Retry, publish
from messaging.db.clock import Now, in_utc, read_clock
from messaging.exceptions import PublishError
from messaging.handlers import Registry
from messaging.models import Attempt, ProcessedMessage, PublishedMessage, QueueControl, Worker
from messaging.monitoring import readings
from messaging.processing.processor import Processor
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, outgoing, staff
from tests.deliveries import Acks, arrived, registered, sent

pytestmark = pytest.mark.django_db

ZONES = ["Asia/Kolkata", "America/New_York", "UTC"]
EDGES = [
    datetime.max.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
    datetime.min.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
]
SOON = timedelta(seconds=120)  # no test takes longer


@pytest.fixture(autouse=True, params=[True, False], ids=["aware", "naive"])
def _use_tz(request: pytest.FixtureRequest, zone: str, settings: Any) -> None:
    settings.USE_TZ = request.param


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, settings: Any) -> Iterator[str]:
    settings.TIME_ZONE = request.param
    settings.MESSAGING = {"default": {"URL": "amqp://guest:hush-secret@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()
    yield str(request.param)
    readings.forget()


def test_the_systems_own_time_zone_will_do(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, None  # with which Django's own admin does not work
    if connection.vendor == "postgresql":
        pytest.skip("its session has the server's time zone then")
    row = publish("k", 1, at=datetime.now() + 2 * SOON)  # noqa: DTZ005
    row.refresh_from_db()
    assert abs(in_utc(row.publish_at) - datetime.now(UTC) - 2 * SOON) < SOON


def test_the_databases_clock_is_read_in_utc() -> None:
    before = datetime.now(UTC)
    assert before - SOON < read_clock(ProcessedMessage.objects.all(), "received_at") < before + SOON


def handled(function: Callable[..., Any], delivery: Any, **options: Any) -> ProcessedMessage:
    registry = Registry()
    registered(registry, function, **options)
    Processor("default", "worker-1", handlers=registry).process(delivery, Acks())
    return ProcessedMessage.objects.latest("pk")


def is_now(moment: datetime | None) -> bool:
    assert moment is not None
    return abs(in_utc(moment) - datetime.now(UTC)) < SOON


def test_what_is_read_is_what_django_would_have() -> None:
    row = outgoing("pending")
    row.refresh_from_db()
    assert django_timezone.is_aware(row.created_at) is django_timezone.is_aware(django_timezone.now())
    assert abs(row.created_at - django_timezone.now()) < SOON
    assert PublishedMessage.objects.filter(created_at__gt=django_timezone.now() - SOON).exists()
    assert not PublishedMessage.objects.filter(created_at__gt=django_timezone.now() + SOON).exists()


def test_what_is_stored_is_what_is_read() -> None:
    moment = datetime(2031, 11, 2, 6, 30, 0, 123456, tzinfo=UTC)  # the second 01:30 of that night in New York
    row = outgoing("pending", publish_at=moment, due_at=moment)
    row.refresh_from_db()
    assert in_utc(row.publish_at) == moment or connection.vendor == "postgresql"  # whose driver forgets which of two
    assert PublishedMessage.objects.filter(publish_at=moment, due_at=moment).exists()


@pytest.mark.mode(57)
def test_a_failure_is_retried_and_ends_as_failed() -> None:
    def boom(message: object) -> None:
        raise ValueError("Boom")

    for options in ({}, {"atomic": False}):
        row = handled(boom, arrived(message_id=str(options)), max_attempts=2, backoff=0, **options)
        row.refresh_from_db()
        assert row.state == "retrying"
        assert is_now(row.retry_at)
        outbox = PublishedMessage.objects.due("default").get()
        row = handled(boom, sent(outbox), max_attempts=2, **options)
        row.refresh_from_db()
        assert (row.state, row.attempts, Attempt.objects.filter(message=row).count()) == ("failed", 2, 2)
        assert is_now(row.failed_at)
        assert all(is_now(attempt.started_at) and is_now(attempt.ended_at) for attempt in row.attempt_set.all())
        PublishedMessage.objects.all().delete()


def test_a_handler_asks_for_a_retry_as_late_as_it_likes() -> None:
    def never(message: object) -> None:
        raise Retry("never", after=1e11)

    assert handled(never, arrived()).state == "retrying"


def test_a_message_is_sent_when_it_was_said_to_be(settings: Any) -> None:
    publish("past", 1, at=django_timezone.now() - SOON)
    publish("ahead", 1, at=django_timezone.now() + 2 * SOON)
    publish("aware", 1, at=datetime.now(UTC) - SOON)
    due = PublishedMessage.objects.due("default")
    assert sorted(due.values_list("routing_key", flat=True)) == ["aware", "past"]
    wait = PublishedMessage.objects.filter(routing_key="ahead").wait("default")
    assert wait == pytest.approx(2 * SOON.total_seconds(), abs=SOON.total_seconds())
    if settings.USE_TZ:
        with pytest.raises(PublishError, match="time zone"):
            publish("naive", 1, at=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.mode(57)
@pytest.mark.parametrize("moment", EDGES)
def test_the_ends_of_time_are_never_and_at_once(moment: datetime) -> None:
    row = publish("edge", 1, at=moment)
    row.refresh_from_db()
    assert PublishedMessage.objects.due("default").exists() is (moment.year == 1)
    client = staff(*EVERYTHING)
    for url in (OUTGOING, f"{OUTGOING}{row.pk}/change/"):
        assert client.get(url).status_code == 200


@pytest.mark.mode(57)
def test_every_page_with_a_time_is_shown() -> None:
    ago = Now() - SOON
    out = outgoing("pending")
    row = incoming("retrying", retry_at=Now() + SOON, attempts=1)
    Attempt.objects.create(message=row, number=1, round=1, started_at=django_timezone.now())
    lapsed = incoming("processing", leased_until=ago, started_at=ago)
    draft = outgoing("draft", publish_at=Now() + 2 * SOON)
    for paused in (QueueControl(queue="billing", paused=True), Worker(name="w", kind="consume", host="h", pid=1)):
        paused.save()
    client = staff(*EVERYTHING)
    urls = [INCOMING, OUTGOING, QUEUES, "/admin/messaging/worker/", f"{INCOMING}?period=1h", f"{OUTGOING}?period=15m"]
    urls += [f"{INCOMING}{one.pk}/change/" for one in (row, lapsed)]
    urls += [f"{OUTGOING}{one.pk}/change/" for one in (out, draft)]
    for url in urls:
        page = client.get(url)
        assert page.status_code == 200, url
        assert " h ago" not in page.content.decode(), url
    client.post(f"{INCOMING}{row.pk}/requeue/", {"post": "yes", "reason": "a"})
    assert ProcessedMessage.objects.get(pk=row.pk).state == "requeued"
    assert client.get("/admin/messaging/auditrecord/").status_code == 200


def test_a_draft_keeps_its_moment(settings: Any) -> None:
    client = staff(*EVERYTHING)
    local = django_timezone.localtime(datetime(2031, 1, 15, 12, tzinfo=UTC))  # not in an hour that comes twice
    values = {"using": "default", "routing_key": "k", "format": "text", "body": "x", "mandatory": "on", "_save": "1"}
    client.post(f"{OUTGOING}add/", {**values, "publish_at": local.strftime("%Y-%m-%dT%H:%M:%S")})
    row = PublishedMessage.objects.get()
    assert in_utc(row.publish_at) == local
    page = client.get(f"{OUTGOING}{row.pk}/change/").content.decode()
    assert local.strftime("%Y-%m-%dT%H:%M:%S") in page
