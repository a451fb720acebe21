"""The recipes of docs/how-to/cookbook.md, in modules as a site would have them, with tables and real handlers."""

from __future__ import annotations

import gc
import re
import sys
import unittest
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, ClassVar

import pytest
from django.core.files.base import ContentFile
from django.core.management import call_command, get_commands
from django.db import connection, models
from django.test import override_settings
from pytest_django import Settings

from messaging import conf, publish
from messaging.checks import check_handlers
from messaging.handlers import registry
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.testing import drain
from tests.docs.blocks import DOCS, Block, blocks_of, find
from tests.docs.test_snippets import run

pytestmark = pytest.mark.django_db(transaction=True)
PAGE = DOCS / "how-to" / "cookbook.md"
HANDLERS, SERVICES, TESTS = "shop/handlers.py", "shop/services.py", "shop/tests.py"
COMMAND = "shop/management/commands/publish_report.py"


class Order(models.Model):
    """An order of the shop."""

    paid = models.BooleanField(default=False)
    cancelled = models.BooleanField(default=False)
    objects: ClassVar[models.Manager[Order]] = models.Manager()

    class Meta:
        app_label = "cookbook"


class Product(models.Model):
    """A product of the shop."""

    price = models.IntegerField(default=0)
    version = models.IntegerField(default=0)
    objects: ClassVar[models.Manager[Product]] = models.Manager()

    class Meta:
        app_label = "cookbook"


class Listing(models.Model):
    """What another service shows of a product."""

    product = models.IntegerField(unique=True)
    price = models.IntegerField(default=0)
    version = models.IntegerField(default=0)
    objects: ClassVar[models.Manager[Listing]] = models.Manager()

    class Meta:
        app_label = "cookbook"


TABLES: tuple[type[models.Model], ...] = (Order, Product, Listing)


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A site's `shop.models`, with its tables, and no handlers yet."""
    monkeypatch.setattr(registry, "_handlers", {})
    module = ModuleType("shop.models")
    vars(module).update({model.__name__: model for model in TABLES})
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", module)
    with connection.schema_editor() as editor:
        for model in TABLES:
            editor.create_model(model)
    yield
    with connection.schema_editor() as editor:
        for model in TABLES:
            editor.delete_model(model)


def block_of(title: str, telling: str) -> Block:
    """The one recipe of this file that has this text."""
    (block,) = (one for one in find("recipe") if one.title == title and telling in one.text)
    return block


def recipe(title: str, telling: str) -> dict[str, Any]:
    """Run a recipe, and return what it defines."""
    block = block_of(title, telling)
    names: dict[str, Any] = {"__name__": "shop"}
    run(block, names)
    assert list(check_handlers(registry.all(), ["default"])) == []
    return names


def as_printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that handlers have printed since the last time."""
    return capsys.readouterr().out.splitlines()


def test_a_job_that_is_asked_for_twice_is_done_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = recipe(COMMAND, "reports.daily")["Command"]()
    recipe(HANDLERS, "reports.daily")
    for _run in range(2):
        call_command(command, "--day=2020-02-29")  # not yesterday, whenever this runs
    with override_settings(USE_TZ=True):  # which `timezone.localdate()` wants
        call_command(command)
    drain()
    first, second = as_printed(capsys)
    assert first == "The report of 2020-02-29"
    assert second.startswith("The report of ")


def test_the_test_of_a_job_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(get_commands(), "publish_report", recipe(COMMAND, "reports.daily")["Command"]())
    recipe(HANDLERS, "reports.daily")
    case = recipe(TESTS, "ReportTest")["ReportTest"]
    result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def test_an_order_is_cancelled_half_an_hour_later_unless_it_was_paid() -> None:
    services = recipe(SERVICES, "orders.overdue")
    recipe(HANDLERS, "orders.overdue")
    unpaid, paid = services["place_order"](), services["place_order"]()
    Order.objects.filter(pk=paid.pk).update(paid=True)
    assert drain(within=timedelta(minutes=29)).processed == []
    drain(within=timedelta(minutes=30))
    assert set(Order.objects.values_list("pk", "cancelled")) == {(unpaid.pk, True), (paid.pk, False)}


class Payments(BaseHTTPRequestHandler):
    """A service that knows its keys, and whose first answer is an error although it has done its work."""

    keys: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """Take a payment."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.append(self.headers["Idempotency-Key"])
        self.send_response(502 if len(self.keys) == 1 else 200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_each_attempt_of_a_call_has_the_same_key(settings: Settings) -> None:
    recipe(HANDLERS, "Idempotency-Key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Payments)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        settings.PAYMENTS_URL = f"http://127.0.0.1:{server.server_port}/"
        message_id = publish("payments.requested", {"amount": 5}).message_id
        assert len(drain(raise_errors=False).retrying) == 1
        assert len(drain(within=3600).processed) == 1
    finally:
        server.shutdown()
        server.server_close()
        gc.collect()  # the error of the first call, which holds its answer open
    assert Payments.keys == [message_id, message_id]


def test_a_payload_of_the_version_before_is_lifted(capsys: pytest.CaptureFixture[str]) -> None:
    recipe(HANDLERS, "payload_version")
    publish("prices.changed", {"cents": 5})
    publish("prices.changed", {"cents": 7, "currency": "CNY"}, headers={"x-messaging-version": 2})
    drain()
    assert sorted(as_printed(capsys)) == ["5 EUR", "7 CNY"]


def test_a_large_file_travels_by_its_name(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.MEDIA_ROOT = tmp_path
    recipe(HANDLERS, "import_rows")
    recipe(SERVICES, "default_storage")["receive"](ContentFile("sku,price\na,5\nä,7\n".encode()))
    row = PublishedMessage.objects.get()
    assert len(row.body) < 100
    drain()
    assert as_printed(capsys) == ["a 5", "ä 7"]


def test_a_tenant_is_passed_on() -> None:
    recipe(HANDLERS, "tenant")
    publish("invoices.due", 1, headers={"tenant": "acme"})
    drain()
    assert PublishedMessage.objects.get(routing_key="invoices.sent").headers == {"tenant": "acme"}


@pytest.mark.parametrize("late", [False, True])
def test_an_older_state_does_not_overwrite_a_newer_one(late: bool) -> None:
    set_price = recipe(SERVICES, "products.changed")["set_price"]
    recipe(HANDLERS, "products.changed")
    product = Product.objects.create()
    for price in (5, 7):
        set_price(product.pk, price)
    if late:
        PublishedMessage.objects.order_by("pk")[:1].get().delete()
        drain()
        publish("products.changed", {"id": product.pk, "price": 5, "version": 1})
    drain()
    assert set(Listing.objects.values_list("product", "price", "version")) == {(product.pk, 7, 2)}
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {"processed"}


def test_a_copy_sends_nothing() -> None:
    names: dict[str, Any] = {}
    run(next(block for block in blocks_of(PAGE) if block.kind == "settings"), names)
    with override_settings(MESSAGING=names["MESSAGING"]):
        assert conf.get().relay is False


def test_every_recipe_is_tried() -> None:
    assert {block.page for block in find("recipe")} == {PAGE}
    calls = re.findall(r'recipe\(([A-Z]+), "([^"]+)"\)', Path(__file__).read_text())
    assert {block_of(globals()[title], telling) for title, telling in calls} == set(find("recipe"))
