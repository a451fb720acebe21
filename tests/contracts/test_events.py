"""Declared events: their registry, their checks, and what is refused when they are declared."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pytest_django import Settings

from messaging.checks.contracts import check_events
from messaging.contracts.events import Event, Events, conflicts
from messaging.exceptions import ConfigurationError
from tests.contracts.written import model
from tests.docs.blocks import DOCS


@pytest.mark.parametrize(
    ("key", "options", "why"),
    [
        ("", {}, "the routing key must be text"),
        (5, {}, "the routing key must be text"),
        ("k" * 256, {}, "the routing key must be text"),
        ("a\nb", {}, "the routing key must be text"),
        ("a", {"description": None}, "description must be text"),
        ("a", {"using": ""}, "using must be an alias"),
        ("a", {"exchange": 5}, "exchange must be text"),
        ("a", {"type": "t" * 256}, "type must be text"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_what_cannot_be_declared_is_refused_in_words(key: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Event(key, dict, **options)


def test_a_module_that_is_imported_twice_declares_once(declared: Events) -> None:
    for _ in range(2):
        Event("orders.placed", dict[str, int])
    assert [str.__str__(event) for event in declared.all()] == ["orders.placed"]
    assert declared.all("other") == []
    assert repr(declared.all()[0]) == "Event('orders.placed', dict[str, int])"


def test_two_types_of_one_address_are_a_conflict(declared: Events) -> None:
    first, second = Event("orders.placed", model("A", n=int)), Event("orders.placed", model("B", n=int))
    Event("orders.placed", model("C", n=int), exchange="elsewhere")
    third = Event("orders.placed", model("D", n=int), exchange="messaging")
    found = {frozenset(map(repr, pair)) for pair in conflicts(declared.all(), {"default": "messaging"})}
    assert found == {frozenset(map(repr, pair)) for pair in ((first, second), (first, third), (second, third))}


def test_checks_tell_what_is_wrong_with_events(settings: Settings, declared: Events) -> None:
    settings.MESSAGING = {"default": {}}
    Event("a", int)
    assert list(check_events(declared.all(), ["default"])) == []
    Event("a", str)
    Event("b", complex)
    Event("c", int, using="defualt")
    found = {str(message.id): message for message in check_events(declared.all(), ["default"])}
    assert set(found) == {"messaging.E040", "messaging.E041", "messaging.E042"}
    assert found["messaging.E040"].hint == 'Did you mean "default"?'
    assert "complex cannot be described" in found["messaging.E041"].msg


def test_the_table_of_arguments_is_complete() -> None:
    text = (DOCS / "how-to" / "contracts.md").read_text()
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    told = {name.strip("`| ") for row in rows for name in row.split(",")}
    assert told == set(inspect.signature(Event.__new__).parameters) - {"cls"}
