"""What the pages say of how long messages took, and of what runs now."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.admin import lengths, running
from messaging.admin.display import exactly
from messaging.models import ProcessedMessage, Worker
from messaging.monitoring import readings
from tests.admin_rows import INCOMING, QUEUES, incoming, inline_code, outgoing, staff

pytestmark = pytest.mark.django_db
WORKERS = "/admin/messaging/worker/"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    readings.forget()


def processed(seconds: float | None, *, waited: float = 0.0, **values: Any) -> ProcessedMessage:
    """A message whose handler has just ended."""
    now = timezone.now()
    duration = None if seconds is None else round(seconds * 1_000_000)
    began = now - timedelta(seconds=seconds or 0)
    row: ProcessedMessage = incoming(
        "processed", processed_at=now, duration=duration, received_at=began - timedelta(seconds=waited), **values
    )
    return row


def run(**values: Any) -> dict[str, Any]:
    """A run as a worker tells of it."""
    own = {
        "alias": "default",
        "queue": "billing",
        "handler": "shop.bill",
        "message_id": "m-1",
        "key": str(uuid.uuid4()),
    }
    return {**own, "database": "default", "batch": 1, "age": 60.0, "limit": None, **values}


def worker(*runs: dict[str, Any], **values: Any) -> Worker:
    own = {"name": uuid.uuid4().hex, "kind": "consume", "host": "web1", "pid": 7, "queues": ["billing"]}
    return Worker.objects.create(**{**own, "running": list(runs), **values})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "under 1 ms"), (0.0421, "42 ms"), (0.9999, "1.0 s"), (3.14, "3.1 s"), (9.96, "10 s"), (900, "15 min")],
)
def test_a_short_time_is_told_exactly(seconds: float, text: str) -> None:
    assert exactly(seconds) == text


def test_the_page_of_a_success_tells_what_waited_and_what_ran(admin_client: Client) -> None:
    row = processed(900, waited=5, worker="web1:7")
    sent = outgoing(message_id=row.message_id, published_at=row.began_at - timedelta(seconds=120))  # type: ignore[operator]
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "Its handler began" in html
    assert "waited 2 min" in html
    assert "web1:7 · run 15 min, total 17 min" in html
    sent.delete()
    assert lengths.lengths_of(row, []) == ("5.0 s", "15 min", "15 min")


def test_what_is_noted_as_published_behind_the_begin_of_its_handler_waited_since_it_was_due() -> None:
    row = processed(1)
    assert row.began_at is not None
    late = outgoing(
        message_id=row.message_id, published_at=timezone.now(), publish_at=row.began_at - timedelta(seconds=3)
    )
    assert lengths.lengths_of(row, [late]) == ("3.0 s", "1.0 s", "4.0 s")


def test_a_retry_waited_since_its_own_round_and_took_as_long_as_all_of_it() -> None:
    row = processed(1, round=2)
    assert row.began_at is not None
    first = outgoing(message_id=row.message_id, published_at=row.began_at - timedelta(seconds=60))
    second = outgoing(inbox=row, round=2, published_at=row.began_at - timedelta(seconds=4))
    assert lengths.lengths_of(row, [second, first]) == ("4.0 s", "1.0 s", "61 s")


def test_of_a_row_of_the_release_before_nothing_is_made_up(admin_client: Client) -> None:
    row = processed(None)
    assert lengths.lengths_of(row, []) == ("—", "—", "—")
    html = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "Its handler began" not in html


def test_a_brief_run_is_called_brief(admin_client: Client) -> None:
    row = processed(0)
    assert lengths.lengths_of(row, []).run == "under 100 ms"
    assert "under 100 ms" in admin_client.get(INCOMING).content.decode()


@pytest.mark.parametrize("page", [WORKERS, QUEUES])
def test_what_runs_is_shown_with_a_link_where_there_is_a_row(page: str) -> None:
    client = staff("view_worker", "view_queuecontrol", "view_processedmessage", "view_publishedmessage")
    row = incoming("processing", message_id="m-claimed")
    sent = outgoing(message_id="m-first")
    worker(
        run(message_id="m-claimed", row=row.pk, age=900.0, usual=60.0),
        run(message_id="m-first", row=0, outgoing=sent.pk, limit=7200, batch=3),
        run(message_id="m-stranger"),
    )
    with CaptureQueriesContext(connection) as queries:
        html = client.get(page).content.decode()
    assert len(queries) <= 10
    assert inline_code(html) == []
    assert f'<a href="{INCOMING}{row.pk}/change/"><code>m-claimed</code></a>' in html
    assert f'<a href="/admin/messaging/publishedmessage/{sent.pk}/change/"><code>m-first</code></a>' in html
    assert "<code>m-stranger</code>" in html
    assert html.count("over its usual time (at most 60 s)") == 1
    assert "limit 2 h" in html
    assert "and 2 more in its batch" in html


def test_who_may_not_see_messages_reads_what_runs_and_not_whose() -> None:
    worker(run(message_id="m-secret"))
    html = staff("view_worker").get(WORKERS).content.decode()
    assert "shop.bill" in html
    assert "m-secret" not in html


def test_nobody_knows_what_a_silent_worker_runs(admin_client: Client) -> None:
    worker(run(usual=1.0), seen_at=timezone.now() - timedelta(seconds=running.SILENT + 5))
    assert "Running now" not in admin_client.get(WORKERS).content.decode()
    assert running.over_usual(Worker.objects.all()) == []


@pytest.mark.parametrize(
    ("told", "is_over"),
    [
        ({"age": 60.0, "usual": 39.0}, True),
        ({"age": 60.0, "usual": 41.0}, False),  # half as long again
        ({"age": 9.0, "usual": 1.0}, False),  # too soon to say
        ({"age": 60.0, "usual": None}, False),
        ({"age": 60.0}, False),
        ({"age": "soon", "usual": 1.0, "batch": None}, False),  # of another release
    ],
    ids=str,
)
def test_a_run_is_over_its_usual_time(told: dict[str, Any], is_over: bool) -> None:
    worker(run(**told))
    assert bool(running.over_usual(Worker.objects.all())) == is_over


def test_the_overview_says_so_first_where_one_looks(admin_client: Client) -> None:
    assert "Running over their usual time" not in admin_client.get("/admin/messaging/").content.decode()
    worker(run(age=900.0, usual=60.0), run(age=600.0, usual=60.0))
    html = admin_client.get("/admin/messaging/").content.decode()
    assert "Running over their usual time" in html
    assert WORKERS in html


def test_a_relay_and_a_worker_of_the_release_before_say_nothing(admin_client: Client) -> None:
    Worker.objects.create(name="old", kind="consume", host="web1", pid=7, queues=["billing"])
    for page in (WORKERS, QUEUES):
        assert admin_client.get(page).status_code == 200
