"""Database routers: reads from a replica that lags, tables in a database of their own, relations that are forbidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections
from django.test.utils import CaptureQueriesContext

from messaging import operations, publish
from messaging.backends import get_backend
from messaging.backends.base import ExchangeSpec, QueueSpec, Topology
from messaging.handlers import Registry
from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage, QueueControl
from messaging.monitoring import readings
from messaging.operations import Operator
from messaging.processing.processor import Processor
from tests.admin.test_pages import EVERYTHING
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, staff
from tests.deliveries import Acks, arrived, registered

pytestmark = [
    pytest.mark.usefixtures("second_database"),
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]


class Strict:
    """None of our rows may refer to another, whatever database it is in."""

    def allow_relation(self, one: Any, other: Any, **hints: object) -> bool | None:
        return False if "messaging" in (one._meta.app_label, other._meta.app_label) else None


class Replica(Strict):
    """Reads come from a database that has none of it yet."""

    written = "default"

    def db_for_read(self, model: Any, **hints: object) -> str | None:
        return "other" if model._meta.app_label == "messaging" else None

    def db_for_write(self, model: Any, **hints: object) -> str | None:
        return "default"


class Apart(Strict):
    """The tables have a database of their own; users stay where they are."""

    written = "other"

    def db_for_read(self, model: Any, **hints: object) -> str | None:
        return "other" if model._meta.app_label == "messaging" else None

    db_for_write = db_for_read


@pytest.fixture(params=[Replica, Apart], ids=["replica", "apart"])
def home(request: pytest.FixtureRequest, settings: Any) -> Iterator[str]:
    """Where the rows are written. No statement about them goes anywhere else."""
    settings.DATABASE_ROUTERS = [request.param()]
    home = str(request.param.written)
    settings.MESSAGING = {"default": {"URL": f"database://{home}", "DATABASES": [home], "QUEUES": {"work": {}}}}
    readings.forget()
    with only_in(home):
        yield home
    readings.forget()


@contextmanager
def only_in(home: str) -> Iterator[None]:
    elsewhere = [name for name in ("default", "other") if name != home]
    with ExitStack() as stack:
        seen = [stack.enter_context(CaptureQueriesContext(connections[name])) for name in elsewhere]
        yield
        asked = [query["sql"] for queries in seen for query in queries if '"messaging_' in query["sql"]]
        assert not [sql for sql in asked if "django_content_type" not in sql]


def failed(home: str, **options: Any) -> ProcessedMessage:
    def boom(message: object) -> None:
        raise ValueError("Boom")

    registry = Registry()
    registered(registry, boom, database=home, **{"max_attempts": 1, **options})
    Processor("default", "worker-1", handlers=registry).process(arrived(), Acks())
    return ProcessedMessage.objects.using(home).latest("pk")


@pytest.mark.mode(56)
@pytest.mark.parametrize("atomic", [True, False])
def test_a_failure_is_recorded_and_retried(home: str, atomic: bool) -> None:
    row = failed(home, atomic=atomic, max_attempts=2)
    assert row.state == "retrying"
    assert Attempt.objects.using(home).get().message_id == row.pk
    assert PublishedMessage.objects.using(home).get().inbox_id == row.pk


@pytest.mark.mode(56)
def test_operators_act_on_what_was_written(home: str) -> None:
    row, client = failed(home), staff(*EVERYTHING)
    page = f"{INCOMING}{row.pk}/"
    assert "Boom" in client.get(f"{page}change/").content.decode()
    assert "Attempt 1 failed" in client.get(f"{page}change/").content.decode()
    assert client.get(f"{page}payload/").status_code == 200
    listed = client.post(INCOMING, {"action": "requeue", "_selected_action": [str(row.pk)], "post": "1", "index": "0"})
    assert listed.status_code == 302
    row.refresh_from_db()
    assert row.state == "requeued"
    assert "Requeued by olga" in client.get(f"{page}change/").content.decode()
    assert client.post(f"{page}discard/", {"post": "1"}).status_code == 302
    row.refresh_from_db()
    assert row.state == "requeued"  # its round is still to be sent
    record = AuditRecord.objects.using(home).get()
    assert (record.user_id, record.username) == (get_user_model().objects.get().pk, "olga")


def test_a_draft_is_found_once_it_is_saved(home: str) -> None:
    client = staff(*EVERYTHING)
    values = {"using": "default", "routing_key": "k", "format": "text", "body": "x", "mandatory": "on", "_save": "1"}
    page = client.post(f"{OUTGOING}add/", values, follow=True).content.decode()
    assert "The draft was saved" in page
    draft = PublishedMessage.objects.using(home).get()
    assert client.post(f"{OUTGOING}{draft.pk}/publish/", {"post": "1"}).status_code == 302
    copied = client.post(f"{OUTGOING}{draft.pk}/copy/", {"post": "1"}, follow=True)
    assert "1 copy will be sent" in copied.content.decode()
    assert set(PublishedMessage.objects.using(home).values_list("state", flat=True)) == {"pending"}


def test_a_paused_queue_is_shown_as_paused(home: str) -> None:
    client = staff(*EVERYTHING)
    assert client.post(f"{QUEUES}pause/?alias=default&queue=work", {"reason": "a"}).status_code == 302
    assert QueueControl.objects.using(home).get().paused
    assert f"{QUEUES}resume/" in client.get(QUEUES).content.decode()


def test_the_command_asks_the_router_where_the_rows_are(home: str) -> None:
    failed(home)
    staff(name="olga")
    out = StringIO()
    call_command("requeue_messages", "--user", "olga", stdout=out)
    assert "Requeued 1 message" in out.getvalue()


@pytest.mark.mode(56)
def test_a_deleted_user_is_forgotten_where_that_can_be_done(home: str) -> None:
    user = get_user_model().objects.create_user("olga")
    operations.set_paused("work", True, Operator(user=user))
    number = user.pk
    user.delete()
    record = AuditRecord.objects.using(home).get()
    assert record.user_id == (None if home == "default" else number)
    assert record.username == "olga"


def test_the_embedded_broker_stays_in_its_own_database(home: str) -> None:
    backend = get_backend("default")
    topology = Topology((ExchangeSpec("shop", "topic"),), (QueueSpec("work", bindings=(("shop", "k.#"),)),))
    backend.declare(topology)
    assert backend.compare(topology) == []


def test_publishing_writes_where_the_router_says(home: str) -> None:
    publish("k.1", 1)
    assert PublishedMessage.objects.using(home).count() == 1
