"""Topic patterns against a brute-force oracle, and the registry."""

from __future__ import annotations

import enum
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from messaging import handler
from messaging.exceptions import ConfigurationError
from messaging.handlers import Registry, is_generator, patterns_overlap, topic_matches
from messaging.handlers import registry as site_registry
from tests.deliveries import registered

words = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=5)
parts = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4)


def oracle(pattern: list[str], key: list[str]) -> bool:
    """The definition itself: `*` takes one word, `#` any number."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(oracle(pattern[1:], key[taken:]) for taken in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and oracle(pattern[1:], key[1:])


@hypothesis_settings(max_examples=1000, deadline=None)
@given(pattern=parts, key=words)
def test_a_pattern_matches_what_its_definition_says(pattern: list[str], key: list[str]) -> None:
    assert topic_matches(".".join(pattern), ".".join(key)) is oracle(pattern, [] if key == [""] else key)


@pytest.mark.parametrize(
    ("pattern", "is_matched"), [("", True), ("#", True), ("#.#", True), ("*", False), ("*.#", False), ("a", False)]
)
def test_an_empty_routing_key_has_no_word(pattern: str, is_matched: bool) -> None:
    assert topic_matches(pattern, "") is is_matched
    assert topic_matches("", pattern) is (pattern == "")
    assert patterns_overlap("", pattern) is patterns_overlap(pattern, "") is is_matched
    assert not patterns_overlap("", "a.b")


# Two patterns of at most four parts that share a key share one of at most eight words; "c" stands for any other word.
KEYS = [list(key) for length in range(1, 9) for key in itertools.product("ab", repeat=length)]


@hypothesis_settings(max_examples=200, deadline=None)
@given(first=parts, second=parts)
def test_patterns_overlap_exactly_when_some_key_matches_both(first: list[str], second: list[str]) -> None:
    shared = any(oracle(first, key) and oracle(second, key) for key in KEYS)
    assert patterns_overlap(".".join(first), ".".join(second)) is shared
    assert patterns_overlap(".".join(second), ".".join(first)) is shared


def test_the_registry_finds_by_alias_queue_and_routing_key() -> None:
    registry = Registry()

    def one(message: Any) -> None: ...
    def other(message: Any) -> None: ...
    def elsewhere(message: Any) -> None: ...

    first = registered(registry, one, routing_keys=("orders.placed",))
    second = registered(registry, other, routing_keys=("orders.paid", "refunds.#"))
    third = registered(registry, elsewhere, using="remote", queue="other")
    assert registry.find("default", "work", "orders.placed") is first
    assert registry.find("default", "work", "refunds.late.big") is second
    assert registry.find("default", "work", "nothing") is None
    assert registry.find("default", "other", "anything") is None
    assert registry.find("remote", "other", "anything") is third
    assert registry.queues("default") == ["work"]
    assert registry.all("remote") == [third]
    again = registered(registry, one, routing_keys=("orders.placed",))
    assert registry.all("default") == [second, again]
    registry.clear()
    assert registry.all() == []


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "60"},
        {"timeout": float("nan")},
        {"max_attempts": "3"},
        {"max_attempts": True},
        {"batch": 2.5},
        {"backoff": "fast"},
        {"backoff": -1},
        {"atomic": None},
        {"using": None},
        {"database": 5},
        {"queue": "\udc80"},
        {"routing_keys": ["\udc80"]},
        {"max_attempts": 0},
        {"batch": 0},
        {"batch": 10, "atomic": False},
        {"routing_keys": ["x" * 256]},
        {"routing_keys": [7]},
        {"queue": ""},
        {"queue": "x" * 251},
        {"queue": None},
        {"queue": "wo\nrk"},
        {"routing_keys": ["orders.\r\nplaced"]},
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    arguments = dict(options)
    queue, keys = arguments.pop("queue", "work"), arguments.pop("routing_keys", [])
    with pytest.raises(ConfigurationError, match="@handler"):
        handler(queue, *keys, **arguments)


class Name(str, enum.Enum):  # noqa: UP042 - StrEnum is text as it is
    QUEUE = "test-handlers\n"
    KEY = "orders.placed"
    DEFAULT = "default"


def test_names_are_plain_text_without_a_line_break_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    monkeypatch.setattr("messaging.handlers.registry", registry)
    handler(Name.QUEUE, Name.KEY, using=Name.DEFAULT, database=Name.DEFAULT)(lambda message: None)
    (found,) = registry.all()
    named = f"{found.queue} {found.routing_keys[0]} {found.using} {found.database}"
    assert named == "test-handlers orders.placed default default"
    assert registry.find("default", "test-handlers", "orders.placed") is found


def test_the_decorator_returns_the_function_and_refuses_what_is_none() -> None:
    known = site_registry.all()

    def function(message: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a function"):
        handler("test-handlers")("not a function")  # type: ignore[type-var]
    assert site_registry.all() == known
    assert not is_generator(function)
