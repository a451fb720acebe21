"""What a process counts where metrics are on, what the tables and the broker tell, and who may read it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.db import connections, transaction
from django.test import Client, override_settings
from pytest_django import Settings

from messaging import Reject, publish, topology
from messaging.backends import get_backend
from messaging.checks import check_metrics
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.metrics import exposition, names
from messaging.metrics.names import Family
from messaging.metrics.tally import Found, Tally
from messaging.models import ProcessedMessage, PublishedMessage, QueueControl, Worker
from messaging.monitoring import counters, metrics, readings
from messaging.processing.processor import Processor
from messaging.publishing import publisher
from messaging.relaying.relay import Relay
from tests.deliveries import arrived, registered
from tests.metrics.scraping import Scrape

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/messaging/metrics/"


@pytest.fixture
def counted() -> Iterator[Tally]:
    """Where this process counts now."""
    tally = Tally()
    metrics.start(tally)
    yield tally
    metrics.stop()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    readings.forget()
    metrics._last = (-metrics.FRESH, ())
    yield
    metrics.stop()
    metrics._counting = None
    readings.forget()


def number(found: Found, family: Family, *labels: str) -> float:
    return found.get((family.name, labels), (0.0,))[0]


def processor(function: Any, **options: Any) -> Processor:
    handlers = Registry()
    registered(handlers, function, **options)
    return Processor("default", "tests", handlers=handlers)


def test_what_is_published_counts_once_it_is_committed(counted: Tally) -> None:
    with transaction.atomic():
        publish("orders.placed", {})
        transaction.set_rollback(True)
    with transaction.atomic():
        publish("orders.placed", {})
        publish("hello", {}, queue="hello")
        assert counted.read() == {}
    publish("orders.placed", {})
    assert counted.read() == {
        (names.PUBLISHED.name, ("default", "")): (2.0,),
        (names.PUBLISHED.name, ("default", "hello")): (1.0,),
    }


def test_what_is_relayed_and_returned(counted: Tally) -> None:
    publish("hello", {}, queue="effects")
    publish("nobody.cares", {})
    relay = Relay("default")
    while PublishedMessage.objects.filter(state="pending", attempts=0).exists():
        relay.run_once(timeout=0.05)
    relay._finish()
    assert number(counted.read(), names.RELAYED, "default", "effects") == 1
    assert number(counted.read(), names.RETURNED, "default", "") >= 1


def test_how_handling_ended_and_how_long_it_took(counted: Tally) -> None:
    def work(message: ReceivedMessage) -> None:
        if message.payload == "later":
            raise ValueError
        if message.payload == "never":
            raise Reject("no")

    own = processor(work, max_attempts=2)
    publish("work.do", "now")
    message_id = PublishedMessage.objects.get().message_id
    for payload, identity in (("now", message_id), ("now", "strange"), ("later", ""), ("never", "")):
        own.process(arrived(payload, message_id=identity), lambda: None)
    labels = ("default", "work", own._station.handlers.all("default")[0].name)
    found = counted.read()
    assert number(found, names.PROCESSED, *labels) == ProcessedMessage.objects.filter(state="processed").count() == 2
    assert number(found, names.RETRIED, *labels) == 1
    assert number(found, names.FAILED, *labels) == 1
    assert sum(found[names.DURATION.name, labels][:-1]) == 2
    assert sum(found[names.CRITICAL.name, labels][:-1]) == 1  # the other id says nothing


def test_a_batch_counts_each_of_its_messages(counted: Tally) -> None:
    own = processor(lambda messages: None, batch=40)
    handler = own._station.handlers.all("default")[0]
    own.process_batch(handler, [arrived(str(one)) for one in range(40)])
    labels = ("default", "work", handler.name)
    assert number(counted.read(), names.PROCESSED, *labels) == ProcessedMessage.objects.count() == 40
    assert sum(counted.read()[names.DURATION.name, labels][:-1]) == 40


def test_a_handler_that_has_done_nothing_stands_at_zero(counted: Tally) -> None:
    counting = metrics.start(counted)
    counting.begin_with("default")
    found = counted.read()
    assert found
    assert not any(map(any, found.values()))
    assert {key[0] for key in found} == {names.PROCESSED.name, names.RETRIED.name, names.FAILED.name}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_counts_for_itself(counted: Tally) -> None:
    publish("orders.placed", {})
    before = counted.read()
    pid = os.fork()
    if pid == 0:
        counting = metrics._counting
        is_another = counting is not None and counting.tally is not counted
        counters.add("published", "default", "")
        os._exit(0 if is_another else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert counted.read() == before


def test_switched_off_nothing_is_told() -> None:
    assert counters.observer is None
    assert publisher.on_saved is None


def test_the_site_is_told_as_it_is(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "QUEUES": {"paper": {}}}}
    get_backend("default").declare(topology.build("default"))
    publish("orders.placed", {})
    publish("orders.placed", {}, delay=3600)
    QueueControl.objects.create(alias="default", queue="paper", paused=True)
    Worker.objects.create(name="one", kind="consume", alias="default", host="here", pid=1, queues=[])
    found = {(family, labels): value for family, labels, value in metrics.gauges()}
    assert found[names.DUE, ("default",)] == 1
    assert 0 <= found[names.OLDEST_DUE, ("default",)] < 60
    assert found[names.UNROUTED, ("default",)] == found[names.UNSENT, ("default",)] == 0
    assert found[names.NOT_BACK, ("default",)] == 0
    assert found[names.WORKERS, ("default", "consume")] == 1
    assert found[names.WORKERS, ("default", "relay")] == found[names.SILENT, ("default", "consume")] == 0
    assert found[names.PAUSED, ("default", "paper")] == 1
    assert found[names.READY, ("default", "paper")] == 0
    assert found[names.DATABASE_UP, ("default",)] == 1


def test_a_database_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with connections["default"].execute_wrapper(_refuse):
        found = {(family, labels): value for family, labels, value in metrics.gauges()}
    assert found[names.DATABASE_UP, ("default",)] == 0
    assert not [family for family, _ in found if family is names.DUE]


def _refuse(*_: Any) -> Any:
    from django.db import OperationalError

    raise OperationalError("it is away")


def test_nobody_reads_where_no_token_is_set(client: Client) -> None:
    for configured in (None, {}, {"TOKEN": None}, {"TOKEN": ""}, {"TOKEN": {"env": "MESSAGING_NO_SUCH"}}, "nonsense"):
        with override_settings(MESSAGING_METRICS=configured):
            assert client.get(URL, headers={"Authorization": "Bearer "}).status_code == 404


def test_who_knows_the_token_reads(client: Client, counted: Tally, settings: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret-token\n")
    settings.MESSAGING_METRICS = {"TOKEN": {"file": str(secret)}}
    publish("orders.placed", {})
    for header in ("", "Bearer", "Bearer wrong", "Basic s3cret-token", "s3cret-token", "Bearer s3cret"):
        refused = client.get(URL, headers={"Authorization": header})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert b"s3cret" not in refused.content
    answer = client.get(URL, headers={"Authorization": "Bearer s3cret-token"})
    assert answer.status_code == 200
    assert "no-store" in answer.headers["Cache-Control"]
    scrape = Scrape(answer.content.decode())
    assert scrape.value(names.PUBLISHED.sample, alias="default", queue="") == 1
    assert scrape.value(names.DUE.sample, alias="default") == 1
    assert client.post(URL, headers={"Authorization": "Bearer s3cret-token"}).status_code == 405


def test_what_is_missing_is_said(client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MESSAGING_METRICS = {"TOKEN": "s3cret"}
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = client.get(URL, headers={"Authorization": "Bearer s3cret"})
    assert answer.status_code == 503
    assert exposition.MISSING in answer.content.decode()
    assert identities() == ["messaging.E017"]


def test_processes_with_a_folder_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    metrics.start()
    code = (
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "from messaging.monitoring import counters, metrics\n"
        "metrics.start(); counters.tell('published', 'default', 'hello', number=5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    counters.tell("published", "default", "hello")
    assert number(metrics.read(), names.RELAYED, "default", "hello") == 6


def test_a_folder_that_cannot_be_used_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path / "missing"))
    metrics.start()
    publish("orders.placed", {})
    assert "are not added up with others" in caplog.text


@pytest.mark.parametrize("wrong", [[], "token", {"token": "x"}, {"TOKEN": 5}, {"TOKEN": {"vault": "x"}}])
def test_a_wrong_setting_is_an_error(wrong: Any, settings: Settings) -> None:
    settings.MESSAGING_METRICS = wrong
    assert identities() == ["messaging.E016"]


def test_a_token_that_cannot_be_read_is_a_warning(settings: Settings) -> None:
    settings.MESSAGING_METRICS = {"TOKEN": {"file": "/no/such/file"}}
    assert identities() == ["messaging.W004"]


def identities() -> list[Any]:
    found: list[CheckMessage] = list(check_metrics())
    return [message.id for message in found]


def test_the_page_of_metrics_lists_all_of_them() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/reference/metrics.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| .+ \| (\w+) \| ((?:`\w+`(?:, )?)+) \|$", page, re.MULTILINE)
    assert [(name, kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in told] == [
        (family.sample, family.kind, list(family.labels)) for family in names.FAMILIES
    ]
    bounds = re.search(r"steps of histograms end at (.+?) seconds", page.replace("\n", " "))
    assert bounds is not None
    assert [float(one) for one in bounds[1].replace(" and ", ", ").split(", ")] == list(names.BOUNDS)
