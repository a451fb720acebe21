"""JSON Schema of payload types, in both directions."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import pytest
import typing_extensions

from messaging.contracts.schemas import Schemas, merged
from messaging.exceptions import ConfigurationError

Number = NewType("Number", int)
Thing = TypeVar("Thing")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    """Text of a class of its own."""

    __slots__ = ()


@dataclass
class Line:
    """A line of an order.

    The rest is not told.
    """

    article: str
    price: Decimal
    amount: int = 1
    tags: list[str] = field(default_factory=list)


@dataclass
class Page(Generic[Thing]):
    items: list[Thing]


@dataclass
class Order:
    id: UUID
    lines: list[Line]
    parent: Order | None = None


class Placed(TypedDict):
    order: int
    note: NotRequired[str]


class Later(typing_extensions.TypedDict):
    """Of later Pythons, in a package that many sites have."""

    order: typing_extensions.ReadOnly[int]
    note: NotRequired[str]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (int, {"type": "integer"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (None, {"type": "null"}),
        (Name, {"type": "string"}),
        (Number, {"type": "integer"}),
        (UUID, {"type": "string", "format": "uuid"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (datetime.date, {"type": "string", "format": "date"}),
        (datetime.timedelta, {"type": "string", "format": "duration"}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (Level, {"type": "integer", "enum": [1]}),
        (Literal["a", 1], {"type": ["integer", "string"], "enum": ["a", 1]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Annotated[int, "whole"], {"type": "integer"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (
            dict[str, list[int]],
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}},
        ),
        (dict, {"type": "object"}),
    ],
    ids=str,
)
def test_annotations(kind: Any, expected: dict[str, Any]) -> None:
    for sent in (True, False):
        assert Schemas(sent=sent).of(kind) == expected


def test_a_decimal_is_sent_as_text_and_received_as_a_number_too() -> None:
    assert Schemas(sent=True).of(Decimal) == {"type": "string", "format": "decimal"}
    assert Schemas(sent=False).of(Decimal) == {"type": ["string", "number"], "format": "decimal"}


def test_a_dataclass_is_always_sent_whole_and_may_be_received_without_its_defaults() -> None:
    sent, received = Schemas(sent=True), Schemas(sent=False)
    assert sent.of(Line) == received.of(Line) == {"$ref": "#/components/schemas/Line"}
    properties = {
        "article": {"type": "string"},
        "price": {"type": "string", "format": "decimal"},
        "amount": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    line = {"type": "object", "description": "A line of an order.", "properties": properties}
    assert sent.components == {"Line": {**line, "required": ["article", "price", "amount", "tags"]}}
    properties["amount"] = {"type": "integer", "default": 1}
    properties["price"] = {"type": ["string", "number"], "format": "decimal"}
    assert received.components == {"Line": {**line, "required": ["article", "price"]}}


@pytest.mark.parametrize("kind", [Placed, Later])
@pytest.mark.parametrize("sent", [True, False])
def test_a_typed_dict_says_itself_what_may_be_missing(kind: Any, sent: bool) -> None:
    schemas = Schemas(sent=sent)
    schemas.of(kind)
    found = schemas.components[kind.__name__]
    assert found["required"] == ["order"]
    assert found["properties"] == {"order": {"type": "integer"}, "note": {"type": "string"}}


def test_types_that_refer_to_themselves_and_generic_ones() -> None:
    schemas = Schemas(sent=True)
    schemas.of(Order)
    parent = schemas.components["Order"]["properties"]["parent"]
    assert parent == {"anyOf": [{"$ref": "#/components/schemas/Order"}, {"type": "null"}]}
    assert schemas.of(Page[int]) == {"$ref": "#/components/schemas/Page_int"}
    assert schemas.components["Page_int"]["properties"]["items"]["items"] == {"type": "integer"}


def test_two_types_of_one_name_have_a_name_each() -> None:
    first, second = (type("Line", (), {"__annotations__": {name: int}}) for name in ("a", "b"))
    schemas = Schemas(sent=True)
    references = {schemas.of(dataclass(kind))["$ref"] for kind in (first, second)}
    assert len(references) == 2


def test_what_differs_between_both_directions_has_two_names_and_so_has_what_refers_to_it() -> None:
    sent, received = Schemas(sent=True), Schemas(sent=False)
    for schemas in (sent, received):
        schemas.of(Order)
        schemas.of(Placed)
    components, names = merged(sent, received)
    assert names == {"Line": "Line-received", "Order": "Order-received"}
    assert set(components) == {"Line", "Line-received", "Order", "Order-received", "Placed"}
    lines = components["Order-received"]["properties"]["lines"]
    assert lines["items"] == {"$ref": "#/components/schemas/Line-received"}


@pytest.mark.parametrize("kind", [object(), complex, Literal[b"a"], [int], lambda: 1])
def test_what_cannot_be_described_is_refused_in_words(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be described as JSON Schema"):
        Schemas(sent=True).of(kind)


def test_pydantic_writes_its_own() -> None:
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", price=(Decimal, ...))
    cat = pydantic.create_model("Cat", kind=(Literal["cat"], "cat"))
    dog = pydantic.create_model("Dog", kind=(Literal["dog"], "dog"))
    animal = Annotated[cat | dog, pydantic.Field(discriminator="kind")]
    outer = pydantic.create_model("Outer", inner=(inner, ...), pair=(tuple[int, str], ...), pet=(animal, ...))
    schemas = Schemas(sent=False)
    assert schemas.of(outer) == {"$ref": "#/components/schemas/Outer"}
    assert {"Outer", "Inner", "Cat", "Dog"} == set(schemas.components)
    properties = schemas.components["Outer"]["properties"]
    assert properties["inner"] == {"$ref": "#/components/schemas/Inner"}
    assert properties["pet"]["discriminator"] == "kind"
    assert isinstance(properties["pair"]["items"], list)
    assert "$defs" not in str(schemas.components)


def test_msgspec_writes_its_own() -> None:
    msgspec = pytest.importorskip("msgspec")
    inner = msgspec.defstruct("Inner", [("price", int)])
    outer = msgspec.defstruct("Outer", [("inner", inner), ("note", str, "")])
    sent, received = Schemas(sent=True), Schemas(sent=False)
    for schemas, required in ((sent, ["inner", "note"]), (received, ["inner"])):
        assert schemas.of(outer) == {"$ref": "#/components/schemas/Outer"}
        assert schemas.components["Outer"]["required"] == required
        assert schemas.components["Outer"]["properties"]["inner"] == {"$ref": "#/components/schemas/Inner"}
        assert schemas.components["Inner"]["properties"] == {"price": {"type": "integer"}}
