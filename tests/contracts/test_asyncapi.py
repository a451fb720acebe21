"""The document of what a site publishes and handles, and the command that writes and compares it."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import pytest
import yaml
from django.core.management import CommandError, call_command
from pytest_django import Settings

from messaging import handlers
from messaging.contracts import events
from messaging.contracts.asyncapi import document
from messaging.contracts.events import Event
from messaging.exceptions import ConfigurationError
from tests.contracts.written import model, site, taking, written
from tests.services import missing
from tools.asyncapi import PARSE, node_modules
from tools.services import ServiceMissing


@dataclass
class Line:
    article: str
    price: Decimal
    amount: int = 1


@dataclass
class Placed:
    """An order as it was placed."""

    order: int
    lines: list[Line]


class Cancelled(TypedDict):
    order: int


def whole() -> dict[str, Any]:
    """The document of a site that has all there is."""
    placed = Event("orders.placed", Placed, description="A customer has placed an order.", type="placed")
    others = [
        Event("orders.cancelled", Cancelled, exchange="partner"),
        Event("notes", str),
        Event("raw.*/ü", bytes, exchange=""),
        Event("numbers", dict[str, int]),
    ]
    takers = [
        taking(Placed, "orders.#", queue="billing", told="Write the invoice.\n\nThe rest is not told."),
        taking(Cancelled, "other", queue="billing", name="shop.handlers.cancel"),
        taking(None, queue="hello", name="shop.handlers.hello"),
        taking(Placed, queue="stock", name="shop.handlers.reserve"),
    ]
    third = Event("orders.placed", Placed, using="third")
    return document(
        [
            site(events=[placed, *others], handlers=takers, bindings=[("partner", "orders.#")]),
            site(alias="embedded", scheme="database", hosts=(), vhost="", handlers=takers[:1]),
            site(alias="third", scheme="amqps", hosts=(("a", 5671), ("::1", 5671)), vhost="/", events=[third]),
        ],
        title="shop",
        version="2026.11",
    )


def test_an_event_is_a_channel_whose_address_is_its_routing_key() -> None:
    found = whole()
    channel = found["channels"]["orders.placed"]
    assert channel["address"] == "orders.placed"
    exchange = {"name": "messaging", "type": "topic", "durable": True, "autoDelete": False, "vhost": "/shop"}
    assert channel["bindings"] == {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}}
    assert found["operations"]["publish.orders.placed"] == {
        "action": "send",
        "channel": {"$ref": "#/channels/orders.placed"},
        "summary": "A customer has placed an order.",
        "messages": [{"$ref": "#/channels/orders.placed/messages/placed"}],
        "bindings": {"amqp": {"deliveryMode": 2, "mandatory": True, "timestamp": True, "bindingVersion": "0.3.0"}},
    }
    assert found["components"]["messages"]["placed"] == {
        "name": "placed",
        "contentType": "application/json",
        "payload": {"$ref": "#/components/schemas/Placed"},
        "description": "A customer has placed an order.",
        "bindings": {"amqp": {"messageType": "placed", "bindingVersion": "0.3.0"}},
    }
    assert found["channels"]["partner.orders.cancelled"]["bindings"]["amqp"]["exchange"]["name"] == "partner"


def test_a_queue_is_a_channel_with_an_operation_for_each_handler() -> None:
    found = whole()
    channel = found["channels"]["queue.billing"]
    assert channel["bindings"]["amqp"]["queue"]["name"] == "billing"
    assert {"exchange": "partner", "routingKey": "orders.#"} in channel["x-routing-keys"]
    assert list(channel["messages"]) == ["Placed", "Cancelled"]
    operation = found["operations"]["handle.billing.shop.handlers.bill"]
    assert (operation["action"], operation["summary"]) == ("receive", "Write the invoice.")
    assert operation["x-routing-keys"] == ["orders.#"]
    message = found["components"]["messages"][channel["messages"]["Placed"]["$ref"].rpartition("/")[2]]
    assert message["payload"] == {"$ref": "#/components/schemas/Placed-received"}  # whose amount may be missing
    assert found["components"]["messages"]["hello.hello"] == {"name": "hello.hello"}


def test_it_holds_no_credential_and_is_the_same_each_time() -> None:
    first, second = json.dumps(whole()), json.dumps(whole())
    assert first == second
    assert "secret" not in first
    assert '"shop:' not in first
    servers = whole()["servers"]
    assert [server["host"] for server in servers.values()] == ["rabbit.example:5672", "default", "a:5671", "[::1]:5671"]
    assert list(servers) == ["default", "embedded", "third", "third-2"]


def test_a_type_that_cannot_be_described_is_said_in_words() -> None:
    with pytest.raises(ConfigurationError, match="complex cannot be described"):
        written(events=[Event("numbers", complex)])


@pytest.mark.slow
def test_the_official_parser_accepts_it(tmp_path: Path) -> None:
    try:
        modules = node_modules()
    except ServiceMissing as error:
        missing(error)
    right, wrong = tmp_path / "right.json", tmp_path / "wrong.json"
    right.write_text(json.dumps(whole()))
    wrong.write_text(json.dumps({**whole(), "operations": {"a": {"action": "shout"}}}))
    said = {}
    for path in (right, wrong):
        command = ["node", "-e", PARSE, str(path)]
        done = subprocess.run(command, cwd=modules.parent, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        said[path.name] = json.loads(done.stdout)
    assert [one for one in said["right.json"] if one["severity"] <= 1] == []  # no errors, no warnings
    assert [one for one in said["wrong.json"] if one["severity"] == 0]


# The command


@pytest.fixture
def shop(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that publishes one event and handles nothing."""
    settings.MESSAGING = {"default": {"URL": "amqp://shop:secret@rabbit.example/shop"}}
    monkeypatch.setattr(handlers.registry, "_handlers", {})
    monkeypatch.setattr(events.Events, "discover", lambda _self: None)
    monkeypatch.setattr("messaging.management.commands.asyncapi.events", events.events)
    Event("orders.placed", model(order=int, total=int))


def run(*arguments: str) -> str:
    said = io.StringIO()
    call_command("asyncapi", *arguments, stdout=said, no_color=True, skip_checks=True)
    return said.getvalue()


@pytest.mark.usefixtures("shop")
def test_the_command_writes_it_as_json_or_yaml(tmp_path: Path) -> None:
    found = json.loads(run())
    assert found["asyncapi"] == "3.0.0"
    assert found["info"] == {"title": "tests", "version": "0"}
    assert list(found["operations"]) == ["publish.orders.placed"]
    assert "secret" not in run()
    assert yaml.safe_load(run("--format", "yaml")) == found
    assert "&id" not in run("--format", "yaml")
    assert run("--output", str(tmp_path / "now.json")) == ""
    assert json.loads((tmp_path / "now.json").read_text()) == found
    assert json.loads(run("--title", "Shop", "--release", "2"))["info"] == {"title": "Shop", "version": "2"}
    with pytest.raises(CommandError, match="cannot be written"):
        run("--output", str(tmp_path / "no" / "folder.json"))


@pytest.mark.usefixtures("shop")
def test_the_command_tells_what_breaks_and_says_so_by_its_exit_status(
    tmp_path: Path, declared: events.Events, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "before.yaml"
    run("--output", str(before), "--format", "yaml")
    assert run("--check", str(before)) == "Nothing has changed.\n"
    declared.clear()
    Event("orders.placed", model(order=int, total=int, tax=int))
    told = run("--check", str(before))
    assert told == 'Compatible:\n  publish "orders.placed" to "messaging": payload: "tax" is new, and always there.\n'
    declared.clear()
    Event("orders.placed", model(order=str, tax=int))
    with pytest.raises(SystemExit) as stopped:
        call_command("asyncapi", "--check", str(before), no_color=True, skip_checks=True)
    assert stopped.value.code == 1
    told = capsys.readouterr().out
    assert (
        'Breaking:\n  publish "orders.placed" to "messaging": payload: "total" was always there, and is gone.' in told
    )
    assert "payload.order: The type was integer, and is string now." in told
    assert told.index("Breaking:") < told.index("Compatible:")


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"asyncapi": "2.6.0"}', "\x00"])
def test_an_earlier_document_that_cannot_be_read_is_said_in_words(tmp_path: Path, text: str) -> None:
    for name in ("before.json", "before.yaml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(CommandError) as raised:
            run("--check", str(tmp_path / name))
        assert raised.value.returncode == 2
        assert name in str(raised.value)
    with pytest.raises(CommandError, match="cannot be read"):
        run("--check", str(tmp_path / "none.json"))


@pytest.mark.usefixtures("shop")
def test_two_types_of_one_address_are_refused() -> None:
    Event("orders.placed", model("Other", order=int), exchange="messaging")
    with pytest.raises(CommandError, match="Two events have the same exchange and routing key, but different types"):
        run()
