"""A pause says which workers have heard of it, and each waiting message of a paused queue says that it is paused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from messaging import operations
from messaging.consuming import housekeeping
from messaging.consuming.housekeeping import Housekeeper
from messaging.handlers import Registry
from messaging.models import QueueControl, Worker
from messaging.monitoring import readings
from messaging.operations import Operator
from messaging.processing.processor import Processor
from tests.admin_rows import INCOMING, QUEUES, incoming
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db
OVERVIEW = "/admin/messaging/"


@pytest.fixture(autouse=True)
def _no_broker(settings: Any) -> Iterator[None]:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}, "mail": {}}}}
    readings.forget()
    yield
    readings.forget()


def worker(name: str, *, paused: list[str], queues: list[str] | None = None, **values: Any) -> Worker:
    own = {
        "kind": "consume",
        "host": f"web-{name}",
        "pid": 7,
        "queues": ["billing", "mail"] if queues is None else queues,
        **values,
    }
    return Worker.objects.create(name=name, paused=paused, **own)


def heard(client: Client, page: str = QUEUES) -> list[str]:
    html = client.get(page).content.decode()
    return [text.strip() for text in re.findall(r"(acknowledged by [^<]*|no worker of ours[^<]*)<", html)]


@pytest.mark.parametrize("page", [QUEUES, OVERVIEW])
def test_a_pause_says_how_many_workers_have_heard_of_it(admin_client: Client, page: str) -> None:
    QueueControl.objects.create(queue="billing", paused=True, changed_by="nina")
    assert heard(admin_client, page) == ["no worker of ours takes from it"]
    for name in ("a", "b", "c"):
        worker(name, paused=["billing"])
    worker("d", paused=["mail"])
    worker("other", paused=[], queues=["mail"])
    worker("relay", paused=[], queues=[], kind="relay")
    worker("gone", paused=[], seen_at=timezone.now() - timedelta(minutes=5))
    worker("elsewhere", paused=[], alias="second")
    assert heard(admin_client, page) == ["acknowledged by 3 of 4 workers, not yet by web-d:7"]
    Worker.objects.filter(name="d").update(paused=["billing", "mail"])
    assert heard(admin_client, page) == ["acknowledged by 4 of 4 workers"]


def test_what_a_worker_said_before_the_pause_was_of_an_earlier_one(admin_client: Client) -> None:
    worker("a", paused=["billing"], seen_at=timezone.now() - timedelta(seconds=20))
    QueueControl.objects.create(queue="billing", paused=True)
    assert heard(admin_client) == ["acknowledged by 0 of 1 worker, not yet by web-a:7"]


def test_few_of_those_that_have_not_heard_are_named(admin_client: Client) -> None:
    for name in "abcde":
        worker(name, paused=[])
    QueueControl.objects.create(queue="billing", paused=True, changed_at=timezone.now() - timedelta(seconds=5))
    [text] = heard(admin_client)
    assert text == "acknowledged by 0 of 5 workers, not yet by web-e:7, web-d:7, web-c:7, …"


def test_no_queue_that_is_open_says_so(admin_client: Client) -> None:
    worker("a", paused=["billing"])
    QueueControl.objects.create(queue="billing", paused=False)
    assert heard(admin_client) == []


@pytest.mark.django_db(transaction=True)
def test_a_consumer_says_soon_that_it_has_heard_and_still_after_a_restart(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "HEARTBEAT", 3600.0)  # so that nothing but the pause has it say anything
    monkeypatch.setattr(housekeeping, "POLL", 0.1)
    monkeypatch.setattr(housekeeping, "HEARD", 0.1)
    nothing = lambda *_: None  # noqa: E731

    def start() -> Housekeeper:
        processor = Processor("default", "worker-1", handlers=Registry())
        keeper = Housekeeper("worker-1", ("billing",), processor, str, lambda: False, nothing, nothing)
        keeper.start()
        assert keeper.has_looked.wait(120)
        return keeper

    keeper = start()
    try:
        operations.set_paused("billing", True, Operator(name="nina"))
        wait_until(lambda: heard(admin_client) == ["acknowledged by 1 of 1 worker"], what="the pause heard of")
    finally:
        keeper.stop(30)
    assert heard(admin_client) == ["no worker of ours takes from it"], "it has signed off"
    keeper = start()
    try:
        assert keeper.paused == {"billing"}
        wait_until(lambda: heard(admin_client) == ["acknowledged by 1 of 1 worker"], what="the pause heard of again")
    finally:
        keeper.stop(30)


@pytest.mark.parametrize("state", ["requeued", "retrying", "processing"])
def test_each_waiting_message_of_a_paused_queue_says_so(admin_client: Client, state: str) -> None:
    worker("a", paused=["billing"])
    QueueControl.objects.create(queue="billing", paused=True, changed_by="nina")
    html = admin_client.get(f"{INCOMING}{incoming(state).pk}/change/").content.decode()
    assert "Its queue is paused since" in html
