"""Which changes of a contract break somebody: a labelled table, in both directions, and how the command tells it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypedDict
from uuid import UUID

import pytest

from messaging.contracts.compatibility import changes, overlap, uncovered
from messaging.contracts.events import Event
from messaging.exceptions import ConfigurationError
from tests.contracts.written import model, taking, written

Made = Callable[[], dict[str, Any]]

BREAKING, COMPATIBLE, NOTHING = "breaking", "compatible", "nothing"
# A TypedDict says of what is sent that it may be missing; a dataclass always sends all of its fields.
Maybe = TypedDict("Maybe", {"total": int, "note": NotRequired[str]})  # noqa: UP013  beside those that have to be so
Sure = TypedDict("Sure", {"total": int, "note": str})  # noqa: UP013
Plain = TypedDict("Plain", {"total": int})  # noqa: UP013


def _id(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 40 else ""


PUBLISHED = [
    (NOTHING, "the same", model(total=int), model(total=int), ""),
    (COMPATIBLE, "a field more", model(total=int), model(total=int, tax=int), 'payload: "tax" is new, and always'),
    (BREAKING, "a field less", model(total=int, tax=int), model(total=int), 'payload: "tax" was always there, and is'),
    (
        BREAKING,
        "a field renamed",
        model(total=int),
        model(amount=int),
        'payload: "total" was always there, and is gone',
    ),
    (COMPATIBLE, "an optional key more", Plain, Maybe, 'payload: "note" is new, and optional'),
    (COMPATIBLE, "an optional key less", Maybe, Plain, 'payload: "note" is gone. It could be missing before'),
    (BREAKING, "a key became optional", Sure, Maybe, 'payload: "note" was always there, and may be missing'),
    (COMPATIBLE, "a key became sure", Maybe, Sure, 'payload: "note" is always there now, and could be'),
    (
        BREAKING,
        "another type",
        model(total=int),
        model(total=str),
        "payload.total: The type was integer, and is string",
    ),
    (BREAKING, "fractions", model(total=int), model(total=float), "payload.total: The type was integer, and is number"),
    (COMPATIBLE, "no more fractions", model(total=float), model(total=int), "payload.total: The type was number"),
    (BREAKING, "None as well", model(note=str), model(note=str | None), "payload.note: The type was string"),
    (COMPATIBLE, "never None", model(note=str | None), model(note=str), "payload.note: The type was"),
    (BREAKING, "a value more", model(k=Literal["a"]), model(k=Literal["a", "b"]), "payload.k: The values was"),
    (COMPATIBLE, "a value less", model(k=Literal["a", "b"]), model(k=Literal["a"]), "payload.k: The values was"),
    (
        BREAKING,
        "any value",
        model(k=Literal["a", "b"]),
        model(k=str),
        'payload.k: The values was "a", "b", and is string',
    ),
    (COMPATIBLE, "some values", model(k=str), model(k=Literal["a", "b"]), "payload.k: The values was string"),
    (BREAKING, "a format less", model(id=UUID), model(id=str), 'payload.id: The format was "uuid", and is none'),
    (COMPATIBLE, "a format more", model(id=str), model(id=UUID), 'payload.id: The format was none, and is "uuid"'),
    (BREAKING, "text became a number", model(p=Decimal), model(p=float), "payload.p: The type was string"),
    (BREAKING, "other items", model(i=list[int]), model(i=list[str]), "payload.i[]: The type was integer"),
    (
        BREAKING,
        "a list instead of one",
        model(i=int),
        model(i=list[int]),
        "payload.i: The type was integer, and is array",
    ),
    (BREAKING, "what may repeat", model(i=set[int]), model(i=list[int]), "payload.i: The uniqueItems was true"),
    (
        BREAKING,
        "as many as it likes",
        model(p=tuple[int, int]),
        model(p=list[int]),
        "payload.p: The minItems was 2, and is none",
    ),
    (BREAKING, "other values", model(m=dict[str, int]), model(m=dict[str, str]), "payload.m.*: The type was integer"),
    (
        BREAKING,
        "a field less further down",
        model(customer=model("Customer", name=str, mail=str)),
        model(customer=model("Customer", name=str)),
        'payload.customer: "mail" was always there, and is gone',
    ),
    (
        COMPATIBLE,
        "a field more in items",
        model(items=list[model("Item", price=int)]),  # type: ignore[misc]
        model(items=list[model("Item", price=int, tax=int)]),  # type: ignore[misc]
        'payload.items[]: "tax" is new',
    ),
    (BREAKING, "one alternative more", model(v=int | str), model(v=int | str | bool), "payload.v: The type was"),
    (COMPATIBLE, "one alternative less", model(v=int | str | bool), model(v=int | str), "payload.v: The type was"),
    (BREAKING, "text instead of JSON", model(total=int), str, 'The content type was "application/json", and is "text/'),
]
HANDLED = [
    (NOTHING, "the same", model(total=int), model(total=int), ""),
    (BREAKING, "a field more", model(total=int), model(total=int, tax=int), 'payload: "tax" is new, and required'),
    (COMPATIBLE, "a field with a default more", model(a=int), model(a=int, b=(int, 0)), 'payload: "b" is new, and opt'),
    (COMPATIBLE, "a field less", model(a=int, b=(int, 0)), model(a=int), 'payload: "b" is gone. It is passed over'),
    (COMPATIBLE, "a required field less", model(a=int, b=int), model(a=int), 'payload: "b" was required, and is gone'),
    (BREAKING, "a field renamed", model(total=int), model(amount=int), 'payload: "amount" is new, and required'),
    (COMPATIBLE, "a default more", model(a=int), model(a=(int, 0)), 'payload: "a" was required, and may be missing'),
    (BREAKING, "a default less", model(a=(int, 0)), model(a=int), 'payload: "a" is required now'),
    (
        BREAKING,
        "another type",
        model(total=int),
        model(total=str),
        "payload.total: The type was integer, and is string",
    ),
    (COMPATIBLE, "fractions", model(total=int), model(total=float), "payload.total: The type was integer, and is numb"),
    (BREAKING, "no more fractions", model(total=float), model(total=int), "payload.total: The type was number"),
    (COMPATIBLE, "None as well", model(note=str), model(note=str | None), "payload.note: The type was string"),
    (BREAKING, "never None", model(note=str | None), model(note=str), "payload.note: The type was"),
    (COMPATIBLE, "a value more", model(k=Literal["a"]), model(k=Literal["a", "b"]), "payload.k: The values was"),
    (BREAKING, "a value less", model(k=Literal["a", "b"]), model(k=Literal["a"]), "payload.k: The values was"),
    (COMPATIBLE, "any value", model(k=Literal["a", "b"]), model(k=str), "payload.k: The values was"),
    (BREAKING, "some values", model(k=str), model(k=Literal["a", "b"]), "payload.k: The values was string, and is"),
    (BREAKING, "a format more", model(id=str), model(id=UUID), 'payload.id: The format was none, and is "uuid"'),
    (COMPATIBLE, "a format less", model(id=UUID), model(id=str), 'payload.id: The format was "uuid", and is none'),
    (BREAKING, "other items", model(i=list[int]), model(i=list[str]), "payload.i[]: The type was integer"),
    (COMPATIBLE, "what may repeat", model(i=set[int]), model(i=list[int]), "payload.i: The uniqueItems was true"),
    (
        BREAKING,
        "limits of a map",
        model(m=dict[str, Any]),
        model(m=dict[str, int]),
        "payload.m.*: The type was anything",
    ),
    (
        BREAKING,
        "a field more further down",
        model(customer=model("Customer", name=str)),
        model(customer=model("Customer", name=str, mail=str)),
        'payload.customer: "mail" is new, and required',
    ),
    (BREAKING, "a type where there was none", None, model(total=int), "payload: The type was anything, and is object"),
    (COMPATIBLE, "a type no more", model(total=int), None, "payload: The type was object, and is anything"),
]


def verdict(before: dict[str, Any], now: dict[str, Any], text: str) -> str:
    """What the comparison says, in one word; with `text` in the first change."""
    found = changes(before, now)
    if not found:
        return NOTHING
    assert text in str(found[0]), [str(change) for change in found]
    return BREAKING if found[0].is_breaking else COMPATIBLE


@pytest.mark.parametrize(("label", "name", "before", "now", "text"), PUBLISHED, ids=_id)
def test_what_is_published_may_not_lose_what_consumers_need(
    label: str, name: str, before: Any, now: Any, text: str
) -> None:
    old, new = (written(events=[Event("orders.placed", kind)]) for kind in (before, now))
    assert verdict(old, new, text) == label, name


@pytest.mark.parametrize(("label", "name", "before", "now", "text"), HANDLED, ids=_id)
def test_what_is_handled_may_not_refuse_what_was_allowed(
    label: str, name: str, before: Any, now: Any, text: str
) -> None:
    old, new = (written(handlers=[taking(kind, "orders.placed")]) for kind in (before, now))
    assert verdict(old, new, text) == label, name


ORDER = model(total=int)
OTHERS = [("partner", "orders.#")]


def one(key: str = "orders.placed", kind: Any = ORDER, *, of: dict[str, Any] | None = None, **options: Any) -> Made:
    """What writes the document of a site that publishes one event."""
    return lambda: written(events=[Event(key, kind, **options)], **(of or {}))


def handling(*handlers: Any, **options: Any) -> Made:
    """What writes the document of a site with these handlers."""
    return lambda: written(handlers=handlers, **options)


@pytest.mark.parametrize(
    ("label", "before", "now", "text"),
    [
        (BREAKING, one(), written, "It is no longer published"),
        (COMPATIBLE, written, one(), "It is new"),
        (BREAKING, one(), one("orders.made"), 'publish "orders.placed" to "messaging": It is no longer'),
        (BREAKING, one(), one(exchange="other"), 'publish "orders.placed" to "messaging": It is no longer'),
        (BREAKING, one(type="a"), one(type="b"), 'The message type was "a", and is "b"'),
        (BREAKING, one(type="a"), one(), 'The message type was "a", and is none'),
        (COMPATIBLE, one(), one(type="a"), 'The message type was none, and is "a"'),
        (NOTHING, one(), one(description="An order was placed."), ""),
        (NOTHING, one(), one(of={"hosts": (("other", 1),), "password": "new"}), ""),
        (BREAKING, handling(taking(ORDER)), written, "No handler takes its messages any more"),
        (COMPATIBLE, written, handling(taking(ORDER)), 'handle queue "billing": It is new'),
        (
            BREAKING,
            handling(taking(ORDER, "orders.#")),
            handling(taking(ORDER, "orders.*")),
            'No handler takes the routing key "orders" any more, which "orders.#" did',
        ),
        (
            COMPATIBLE,
            handling(taking(ORDER, "orders.*")),
            handling(taking(ORDER, "orders.#")),
            'A handler takes the routing key "orders" now',
        ),
        (
            NOTHING,  # other patterns, which together take the same
            handling(taking(ORDER, "orders.#")),
            handling(taking(ORDER, "orders"), taking(ORDER, "orders.*.#", name="shop.handlers.other")),
            "",
        ),
        (
            BREAKING,  # one of the handlers that share it now refuses what the only one took
            handling(taking(ORDER, "orders.#")),
            handling(taking(ORDER, "orders.placed"), taking(model(total=str), "orders.#.paid", name="b")),
            "",
        ),
        (
            BREAKING,
            handling(taking(ORDER, "orders.#"), bindings=OTHERS),
            handling(taking(ORDER, "orders.#")),
            'The exchange "partner" no longer puts "orders.#" into it',
        ),
        (
            COMPATIBLE,
            handling(taking(ORDER, "orders.#")),
            handling(taking(ORDER, "orders.#"), bindings=OTHERS),
            'The exchange "partner" puts "orders.#" into it now',
        ),
    ],
)
def test_channels(label: str, before: Made, now: Made, text: str) -> None:
    assert verdict(before(), now(), text) == label


def test_types_that_refer_to_themselves_have_an_end() -> None:
    old, new = (written(events=[Event("tree.grown", kind)]) for kind in (Tree, Taller))
    assert verdict(old, old, "") == NOTHING
    assert verdict(old, new, "payload.children[]") == BREAKING


class Tree(TypedDict):
    """A tree."""

    height: int
    children: list[Tree]


class Taller(TypedDict):
    """One whose children have another height."""

    height: int
    children: list[Twig]


class Twig(TypedDict):
    """Such a child."""

    height: str
    children: list[Twig]


@pytest.mark.parametrize(
    "document", [None, [], {}, {"asyncapi": "2.6.0"}, {"asyncapi": "3.0.0", "operations": {"a": 1}}]
)
def test_what_is_no_document_is_refused_in_words(document: Any) -> None:
    with pytest.raises(ConfigurationError, match="AsyncAPI 3 document"):
        changes(document, written())


@pytest.mark.parametrize(
    ("pattern", "others", "example"),
    [
        ("a.b", ["a.*"], None),
        ("a.*", ["a.b"], "a.anything"),
        ("#", ["*.#"], ""),
        ("a.#", ["a", "a.*", "a.*.*.#"], None),
        ("#.b", ["a.b", "b"], "anything.b"),
        ("*.*", ["#.x", "x.#", "*.*"], None),
        ("a", [], "a"),
    ],
)
def test_a_routing_key_that_is_no_longer_taken_is_found(pattern: str, others: list[str], example: str | None) -> None:
    found = uncovered(pattern, others)
    assert (found is None) == (example is None)
    if example is not None:
        assert found is not None
        assert overlap([pattern], [found]) == found
        assert all(overlap([other], [found]) is None for other in others)
