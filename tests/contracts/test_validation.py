"""Payloads as dataclasses and TypedDicts: what fits, what does not, and what is said of it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NewType, NotRequired, Required, TypedDict
from uuid import UUID, uuid4

import pytest
import typing_extensions
from django.core.exceptions import ValidationError
from django.db.models import TextChoices
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from messaging.contracts.payloads import Contract, plain
from messaging.contracts.violations import Unreadable
from messaging.exceptions import PayloadError
from messaging.wire.bodies import decode_body, encode_body

Sku = NewType("Sku", str)


class Colour(Enum):
    RED = "red"
    BLUE = 7


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Status(TextChoices):
    OPEN = "open"
    PAID = "paid"


@dataclass
class Item:
    sku: Sku
    price: Decimal
    count: int = 1
    made: date | None = None


@dataclass
class Order:
    order: UUID
    placed_at: datetime
    items: list[Item]
    colour: Colour = Colour.RED
    tags: set[str] = field(default_factory=set)
    pair: tuple[int, str] = (0, "")
    limits: dict[str, Decimal] = field(default_factory=dict)
    kind: Literal["new", "old", 3] = "new"
    is_gift: bool = False
    weight: Annotated[float, "kilograms"] = 0.0
    at: time_of_day | None = None
    lasts: timedelta | None = None
    parent: Order | None = None


class Address(TypedDict):
    street: str
    city: NotRequired[str]


class Later(typing_extensions.TypedDict):
    street: typing_extensions.ReadOnly[str]
    city: typing_extensions.NotRequired[str]


class Partial(TypedDict, total=False):
    street: Required[str]
    number: int


class Whole(Partial):
    colour: Colour
    address: Address


def load(kind: Any, value: Any) -> Any:
    return Contract(kind).load(value, 1)


def reason(kind: Any, value: Any) -> str:
    with pytest.raises(PayloadError) as raised:
        load(kind, value)
    assert raised.value.__context__ is None, "nothing behind it could repeat the payload"
    return str(raised.value).partition(": ")[2]


def test_an_order_arrives_as_what_its_class_says() -> None:
    number = uuid4()
    order = load(
        Order,
        {
            "order": str(number),
            "placed_at": "2026-11-29T07:00:00.125Z",
            "items": [{"sku": "a", "price": "1.50", "made": "2026-11-01"}, {"sku": "b", "price": 2, "count": 3}],
            "colour": 7,
            "tags": ["x", "y", "x"],
            "pair": [1, "one"],
            "limits": {"eur": 0.1},
            "kind": 3,
            "weight": 2,
            "at": "07:30:00",
            "lasts": "P1DT00H00M01.500000S",
            "a field that a later release adds": [1],
        },
    )
    assert order == Order(
        order=number,
        placed_at=datetime(2026, 11, 29, 7, 0, 0, 125000, UTC),
        items=[Item(Sku("a"), Decimal("1.50"), made=date(2026, 11, 1)), Item(Sku("b"), Decimal(2), 3)],
        colour=Colour.BLUE,
        tags={"x", "y"},
        pair=(1, "one"),
        limits={"eur": Decimal("0.1")},
        kind=3,
        weight=2.0,
        at=time_of_day(7, 30),
        lasts=timedelta(days=1, seconds=1.5),
    )
    assert type(order.weight) is float


FINE: dict[str, Any] = {
    "order": "0196c01e-3543-4d0b-b025-37fd9d688c02",
    "placed_at": "2026-11-29T07:00:00",
    "items": [],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items": [{"sku": "a", "price": "1"}, {"sku": "b", "price": "secret"}]},
         "items[1].price: expected a decimal number, found other text."),
        ({"items": [{"sku": 5, "price": 1}]}, "items[0].sku: expected text, found a whole number."),
        ({"items": [{"sku": "a"}]}, "items[0].price: is missing."),
        ({"items": [{"sku": "a", "price": 1, "count": True}]},
         "items[0].count: expected a whole number, found true or false."),
        ({"items": [{"sku": "a", "price": True}]}, "items[0].price: expected a decimal number, found true or false."),
        ({"items": [{"sku": "a", "price": "NaN"}]}, "items[0].price: expected a decimal number, found other text."),
        ({"items": {}}, "items: expected a list, found an object."),
        ({"items": [None]}, "items[0]: expected an object, found null."),
        ({"order": "17"}, "order: expected a UUID, found other text."),
        ({"placed_at": "2026-11-29"}, "placed_at: expected a date and time as ISO 8601 has it, found other text."),
        ({"lasts": "15"}, "lasts: expected a duration as ISO 8601 has it, found other text."),
        ({"is_gift": 1}, "is_gift: expected true or false, found a whole number."),
        ({"is_gift": "true"}, "is_gift: expected true or false, found text."),
        ({"weight": "1"}, "weight: expected a number, found text."),
        ({"weight": 10**400}, "weight: is a number too large."),
        ({"colour": "secret"}, 'colour: expected one of "red", 7, found other text.'),
        ({"colour": 7.0}, 'colour: expected one of "red", 7, found a number.'),
        ({"kind": True}, 'kind: expected one of "new", "old", 3, found true or false.'),
        ({"pair": [1]}, "pair: expected 2 items, found 1."),
        ({"pair": [1, 2]}, "pair[1]: expected text, found a whole number."),
        ({"tags": [1]}, "tags[0]: expected text, found a whole number."),
        ({"limits": {"eur": None}}, "limits.eur: expected a decimal number, found null."),
        ({"limits": {"a b": None}}, 'limits["a b"]: expected a decimal number, found null.'),
        ({"parent": {**FINE, "items": 1}}, "parent.items: expected a list, found a whole number."),
        ({"parent": []}, "parent: expected an object, found a list."),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named_by_its_path_and_not_repeated(change: Any, said: str) -> None:
    assert reason(Order, {**FINE, **change}) == said


def test_a_whole_payload_of_another_kind_has_no_path() -> None:
    assert reason(Order, [1]) == "expected an object, found a list."
    assert reason(list[Item], b"x") == "expected a list, found bytes."
    assert reason(bytes, "x") == "expected bytes, found text."
    assert load(bytes, b"x") == b"x"
    assert load(str, "x") == "x"


def test_a_long_key_and_one_that_steers_a_terminal_are_shown_shortened() -> None:
    said = reason(dict[str, int], {"k" * 10_000: "x"})
    assert len(said) < 120
    assert "\\u001b" in reason(dict[str, int], {"\x1b[2J": "x"}) or "\x1b" not in reason(dict[str, int], {"\x1b": "x"})


def test_a_typed_dict_keeps_what_it_names() -> None:
    assert load(Address, {"street": "a", "zip": 1}) == {"street": "a"}
    assert load(Whole, {"street": "a", "colour": "red", "address": {"street": "b", "city": "c"}}) == {
        "street": "a", "colour": Colour.RED, "address": {"street": "b", "city": "c"},
    }  # fmt: skip
    assert reason(Whole, {"street": "a", "colour": "red"}) == "address: is missing."
    assert reason(Partial, {"number": 1}) == "street: is missing."
    assert reason(Address, {"street": "a", "city": None}) == "city: expected text, found null."


def test_a_typed_dict_may_be_of_typing_extensions() -> None:
    assert load(Later, {"street": "a", "zip": 1}) == {"street": "a"}
    assert reason(Later, {}) == "street: is missing."
    assert reason(Later, {"street": 1}) == "street: expected text, found a whole number."


def test_keys_of_a_dict_may_be_what_json_writes_as_text() -> None:
    number = uuid4()
    assert load(dict[UUID, int], {str(number): 1}) == {number: 1}
    assert load(dict[int, str], {"7": "a"}) == {7: "a"}
    assert load(dict[Colour, str], {"7": "a", "red": "b"}) == {Colour.BLUE: "a", Colour.RED: "b"}
    assert load(dict[date, Any], {"2026-01-01": [1]}) == {date(2026, 1, 1): [1]}
    assert reason(dict[UUID, int], {"x": 1}) == "x: the key: expected a UUID, found other text."


@dataclass
class Card:
    kind: Literal["card"]
    number: str


@dataclass
class Iban:
    kind: Literal["iban"]
    number: str


def test_a_union_is_the_first_type_that_takes_the_value() -> None:
    assert load(Card | Iban, {"kind": "iban", "number": "1"}) == Iban("iban", "1")
    assert type(load(float | int, 1)) is int
    assert load(int | None, None) is None
    assert load(Decimal | str, "1.5") == Decimal("1.5")
    said = reason(Card | Iban, {"kind": "cash", "number": "secret"})
    assert said.startswith('fits none of: Card (kind: expected one of "card", found other text); Iban (')
    assert "secret" not in said


@dataclass
class Left:
    child: Left | Right | None
    end: int


@dataclass
class Right:
    child: Left | Right | None
    end: int


def test_a_union_within_a_union_costs_no_more_than_its_length() -> None:
    payload: Any = {"child": None, "end": "not a number"}
    for _ in range(60):  # tried again at each level, that would be 2 to the power of 60
        payload = {"child": payload, "end": 1}
    began = time.process_time()
    reason(Left | Right, payload)
    assert time.process_time() - began < 20


def test_what_is_nested_too_deeply_does_not_fit() -> None:
    payload: Any = None
    for _ in range(5000):
        payload = {"child": payload, "end": 1}
    assert reason(Left | Right, payload) == "it is nested too deeply."


@dataclass
class Ruled:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")
        if self.high > 100:
            raise ValidationError("high is too high")
        if self.high == 13:
            raise LookupError("a mistake in the class")


def test_rules_of_the_class_itself_are_violations_too() -> None:
    assert reason(list[Ruled], [{"low": 2, "high": 1}]) == "[0]: low is above high."
    assert reason(Ruled, {"low": 1, "high": 101}) == "high is too high."
    with pytest.raises(LookupError):
        load(Ruled, {"low": 1, "high": 13})


class Fixed(tuple[int, ...]):
    __slots__ = ()


@dataclass
class WithBytes:
    raw: bytes


@dataclass
class WithInit:
    raw: InitVar[int]


@dataclass
class WithUnknown:
    raw: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WithBytes, "WithBytes.raw"),
        (WithInit, "InitVar"),
        (WithUnknown, "Nowhere"),
        (Fixed, "Fixed"),
        (object(), "no type"),
        (complex, "complex"),
        (dict[str, WithBytes], "WithBytes.raw"),
    ],
)
def test_a_type_that_cannot_be_checked_is_refused_in_words(kind: Any, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        Contract(kind)


@dataclass(frozen=True)
class Everything:
    number: int
    ratio: float
    price: Decimal
    identity: UUID
    colour: Colour
    level: Level
    status: Status
    tags: frozenset[str]
    by_day: dict[date, list[Decimal]]
    by_colour: dict[Colour, tuple[int, ...]]
    moment: datetime
    day: date
    at: time_of_day
    lasts: timedelta
    item: Item | None
    text: str = ""


def moments() -> st.SearchStrategy[datetime]:
    whole = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1))  # noqa: DTZ001
    return whole.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC))


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9)
days = st.dates(min_value=date(1970, 1, 1))
everything = st.builds(
    Everything,
    number=st.integers(min_value=-(2**60), max_value=2**60),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    price=decimals,
    identity=st.uuids(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    status=st.sampled_from(Status),
    tags=st.frozensets(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3),
    by_day=st.dictionaries(days, st.lists(decimals, max_size=2), max_size=2),
    by_colour=st.dictionaries(st.sampled_from(Colour), st.lists(st.integers(), max_size=2).map(tuple)),
    moment=moments(),
    day=days,
    at=st.times().map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)),
    lasts=st.timedeltas(min_value=timedelta(days=-1000), max_value=timedelta(days=1000)),
    item=st.none() | st.builds(Item, sku=st.just(Sku("a")), price=decimals, made=st.none() | days),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(sent=everything)
def test_a_dataclass_arrives_as_it_was_sent(sent: Everything) -> None:
    body, content_type = encode_body(plain(sent), None)
    assert load(Everything, decode_body(body, content_type)) == sent


def test_a_set_is_written_in_an_order_that_is_always_the_same() -> None:
    @dataclasses.dataclass
    class Tags:
        tags: set[str]

    words = [f"word {number}" for number in range(50)]
    assert plain(Tags(set(words))) == {"tags": sorted(words)} == plain(Tags({*words[25:], *words[:25]}))
