"""Versions of payloads: what is published says its own, and what is older is lifted step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from django.core.checks import CheckMessage

from messaging import ReceivedMessage, payload_version, upgrades
from messaging.checks.payloads import check_payloads
from messaging.contracts import upgrades as ladders
from messaging.contracts.payloads import Contract
from messaging.contracts.violations import Unreadable
from messaging.exceptions import ConfigurationError, NewerVersion, PayloadError
from messaging.handlers import Registry
from tests.deliveries import registered


@payload_version(3)
@dataclass(slots=True)
class Moved:
    street: str
    city: str
    country: str = "DE"


class Derived(Moved):
    pass


@payload_version(4, oldest=3)
class Kept(TypedDict):
    name: str


@pytest.fixture(autouse=True)
def _steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladders, "_steps", {})


@pytest.fixture
def ladder() -> None:
    @upgrades(Moved, from_version=1)
    def split(payload: Any) -> Any:
        street, city = payload.pop("address").split(", ")
        return payload | {"street": street, "city": city}

    @upgrades(Moved, from_version=2)
    def add(payload: Any) -> Any:
        return payload | {"country": "FR"}


def problems(*handlers: Any, **options: Any) -> list[CheckMessage]:
    registry = Registry()
    for number, function in enumerate(handlers):
        registered(registry, function, queue=str(number), **options)
    return list(check_payloads(registry.all()))


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id) for message in messages]


def move(message: ReceivedMessage[Moved]) -> None: ...


def move_derived(message: ReceivedMessage[Derived]) -> None: ...


@pytest.mark.usefixtures("ladder")
@pytest.mark.parametrize(
    ("version", "payload", "found"),
    [
        (1, {"address": "Rue 1, Paris"}, Moved("Rue 1", "Paris", "FR")),
        (2, {"street": "Rue 1", "city": "Paris"}, Moved("Rue 1", "Paris", "FR")),
        (3, {"street": "Rue 1", "city": "Paris"}, Moved("Rue 1", "Paris", "DE")),
    ],
)
def test_a_payload_is_lifted_from_its_version_step_by_step(version: int, payload: Any, found: Moved) -> None:
    assert Contract(Moved).load(payload, version) == found
    assert Contract(Derived).load(dict(found_payload(version)), version) is not None
    assert problems(move, move_derived) == []


def found_payload(version: int) -> dict[str, str]:
    return {"address": "a, b"} if version == 1 else {"street": "a", "city": "b"}


@pytest.mark.usefixtures("ladder")
def test_one_that_is_not_known_yet_is_told_from_one_that_is_not_taken_any_more() -> None:
    with pytest.raises(NewerVersion, match="version 4 of Moved, and this release takes 3"):
        Contract(Moved).load({}, 4)
    assert not issubclass(NewerVersion, PayloadError), "it is tried again"
    with pytest.raises(PayloadError, match="version 2 of Kept, and 3 is the oldest"):
        Contract(Kept).load({}, 2)
    with pytest.raises(NewerVersion):  # a class that says nothing is version 1
        Contract(str).load("x", 2)


def test_a_step_that_is_missing_is_found_by_a_check_and_is_no_violation() -> None:
    assert ids(problems(move)) == ["messaging.E027"] * 2
    with pytest.raises(ConfigurationError, match="from_version=1"):
        Contract(Moved).load({}, 1)
    upgrades(Moved, from_version=1)(lambda payload: payload)
    (problem,) = problems(move)
    assert "@upgrades(Moved, from_version=2)" in problem.msg
    upgrades(Kept, from_version=3)(lambda payload: payload)
    assert problems() == [problem], "also where nobody handles the class"


def test_a_step_beyond_the_class_and_two_from_the_same_version_are_found(ladder: None) -> None:
    upgrades(Moved, from_version=3)(found_payload)
    (beyond,) = problems(move)
    assert (beyond.id, "@payload_version(4)" in beyond.msg) == ("messaging.E027", True)
    ladders._steps[Moved].pop(3)

    @upgrades(Moved, from_version=2)
    def another(payload: Any) -> Any: ...

    assert ids(problems(move)) == ["messaging.E028"]


def test_the_same_function_may_be_registered_twice() -> None:
    for _ in range(2):
        upgrades(Moved, from_version=1)(found_payload)
    assert not list(ladders.rival_steps(Moved))


def test_a_step_that_returns_nothing_is_told() -> None:
    upgrades(Kept, from_version=3)(lambda payload: None)
    with pytest.raises(ConfigurationError, match="returned nothing"):
        Contract(Kept).load({"name": "a"}, 3)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2", 2**31])
def test_what_is_no_version_is_refused(number: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole number"):
        payload_version(number)
    with pytest.raises(ConfigurationError, match="whole number"):
        upgrades(Moved, from_version=number)


def test_what_is_no_class_and_an_oldest_version_above_the_newest_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="class of a payload"):
        upgrades("Moved", from_version=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="oldest"):
        payload_version(2, oldest=3)


def test_a_union_of_classes_with_versions_is_refused() -> None:
    with pytest.raises(Unreadable, match="a handler for each"):
        Contract(Moved | None)


def test_an_annotation_and_an_argument_that_differ_are_found() -> None:
    upgrades(Moved, from_version=1)(lambda payload: payload)
    upgrades(Moved, from_version=2)(lambda payload: payload)
    assert ids(problems(move, payload=dict[str, int])) == ["messaging.E025"]
    assert ids(problems(move, payload=Moved)) == []
    assert ids(problems(move, payload=Derived)) == []


def untyped(message: ReceivedMessage) -> None: ...


def unreadable(message: ReceivedMessage[Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def elsewhere(message: Somewhere[Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def several(message: ReceivedMessage[int] | ReceivedMessage[str]) -> None: ...


def test_an_annotation_that_cannot_be_read_is_found_where_it_is_meant_for_us() -> None:
    assert ids(problems(untyped, elsewhere, lambda message: None)) == []
    found = problems(unreadable, several)
    assert ids(found) == ["messaging.E026"] * 2
    assert "Nowhere" in found[0].msg
    assert "several" in found[1].msg
    assert ids(problems(unreadable, payload=str)) == []
    assert ids(problems(untyped, payload=complex)) == ["messaging.E026"]
