"""Models of pydantic, structs of msgspec, serializers of Django REST framework and schemas of django-ninja."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
import ninja
import pydantic
import pytest
from pydantic.dataclasses import dataclass as pydantic_dataclass
from rest_framework import serializers

from messaging import Message, publish, publish_many
from messaging.contracts.payloads import Contract
from messaging.exceptions import PayloadError, PublishError
from messaging.models import PublishedMessage
from messaging.testing import assert_published
from tests.app.models import Effect
from tests.site import ROOT

MOMENT = datetime(2026, 11, 29, 7, 0, 0, 123456, UTC)


class Colour(Enum):
    RED = "red"


class Item(pydantic.BaseModel):
    sku: str = pydantic.Field(alias="SKU", max_length=5)
    price: Decimal


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    order: UUID
    placed_at: datetime
    items: list[Item]
    colour: Colour
    lasts: timedelta
    tags: set[str]


class Part(msgspec.Struct, rename="camel"):
    part_number: str
    price: Decimal
    kind: Literal["a", "b"] = "a"


class Shipped(msgspec.Struct):
    order: UUID
    shipped_at: datetime
    parts: list[Part]
    colour: Colour
    lasts: timedelta
    by_day: dict[date, int]


@pydantic_dataclass
class Point:
    x: int
    y: int

    @pydantic.field_validator("y")
    @classmethod
    def _above(cls, value: int) -> int:
        if value < 0:
            raise ValueError("y is below 0")
        return value


@dataclass
class Mixed:
    order: Order | None
    part: Part
    points: list[Point]


class Out(ninja.Schema):
    key: str
    price: Decimal = Decimal("1.50")
    when: date = date(2026, 1, 1)


class EffectSerializer(serializers.ModelSerializer[Effect]):
    price = serializers.DecimalField(max_digits=5, decimal_places=2, default=Decimal("1.50"))
    seen = serializers.DateTimeField(default=MOMENT)

    class Meta:
        model = Effect
        fields = ["key", "value", "price", "seen"]


def order() -> Order:
    item = Item(SKU="a", price=Decimal("1.50"))
    return Order(
        order=uuid4(), placed_at=MOMENT, items=[item], colour=Colour.RED, lasts=timedelta(seconds=1.5), tags={"x"}
    )


def shipped() -> Shipped:
    part = Part("p", Decimal("1.50"), "b")
    return Shipped(uuid4(), MOMENT, [part], Colour.RED, timedelta(seconds=1.5), {date(2026, 1, 1): 2})


INSTANCES: list[tuple[Any, Callable[[], Any]]] = [
    (Order, order),
    (Shipped, shipped),
    (Point, lambda: Point(1, 2)),
    (Mixed, lambda: Mixed(order(), Part("p", Decimal(2)), [Point(1, 2)])),
    (list[Order], lambda: [order(), order()]),
    (dict[str, Part], lambda: {"p": Part("p", Decimal(2))}),
    (Out, lambda: Out(key="a", price=Decimal("2.50"))),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("kind", "make"), INSTANCES)
def test_what_is_published_arrives_as_it_was(kind: Any, make: Callable[[], Any]) -> None:
    sent = make()
    row = publish("things.done", sent)
    row.refresh_from_db()
    assert row.content_type == "application/json"
    assert Contract(kind).load(row.payload, 1) == sent
    (other,) = publish_many([Message("things.done", {"inside": [sent]})])
    assert other.payload == {"inside": [row.payload]}
    assert_published("things.done", sent)
    assert_published("things.done", {"inside": [sent]})


@pytest.mark.django_db
def test_serializers_data_is_published_as_it_is(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = True, "UTC"  # on which a serializer makes its times depend
    data: Any = EffectSerializer(Effect(key="a", value="b")).data
    row = publish("effects.seen", data)
    assert row.payload == {"key": "a", "value": "b", "price": "1.50", "seen": "2026-11-29T07:00:00.123456Z"}
    many: Any = EffectSerializer([Effect(key="a", value="b"), Effect(key="c", value="d")], many=True).data
    assert [one["key"] for one in publish("effects.seen", many).payload] == ["a", "c"]


@pytest.mark.django_db
def test_a_schema_of_ninja_is_made_of_a_model_and_published() -> None:
    assert publish("effects.seen", Out.from_orm(Effect(key="a", value="b"))).payload == {
        "key": "a", "price": "1.50", "when": "2026-01-01",
    }  # fmt: skip


def said(kind: Any, payload: Any) -> str:
    with pytest.raises(PayloadError) as raised:
        Contract(kind).load(payload, 1)
    assert raised.value.__context__ is None
    assert "secret" not in str(raised.value)
    return str(raised.value).partition(": ")[2]


def test_what_pydantic_refuses_is_named_by_its_path() -> None:
    fine = order().model_dump(mode="json", by_alias=True)
    wrong = {**fine, "items": [fine["items"][0], {"SKU": "b", "price": "secret"}]}
    assert said(Order, wrong).startswith("items[1].price: ")
    assert said(Order, {**fine, "items": [{"SKU": "b"}]}) == "items[0].price: Field required."
    assert said(Order, {**fine, "tags": 1, "lasts": "secret"}).endswith("(and 1 more).")
    assert said(Order, b"secret") == "expected an object, found bytes."
    assert said(Point, {"x": 1, "y": -1}) == "y: Value error, y is below 0."
    assert said(Mixed, {"order": None, "part": {"partNumber": "p", "price": 1}, "points": [{"x": "secret", "y": 1}]})


def test_what_msgspec_refuses_is_named_by_its_path() -> None:
    fine = msgspec.to_builtins(shipped(), str_keys=True)
    part = fine["parts"][0]
    assert said(Shipped, {**fine, "parts": [part, {**part, "price": True}]}).startswith("parts[1].price: ")
    assert said(Shipped, {**fine, "parts": [{"partNumber": "p"}]}) == "parts[0].price: is missing."
    assert said(Shipped, {**fine, "colour": "secret"}) == "colour: Invalid enum value."
    assert said(Shipped, {**fine, "parts": [{**part, "kind": "secret"}]}) == "parts[0].kind: Invalid enum value."
    assert said(Shipped, [1]).startswith("Expected `object`")
    assert said(Mixed, {"order": None, "part": {"partNumber": 1, "price": 1}, "points": []}).startswith(
        "part.partNumber: "
    )


@pytest.mark.django_db
def test_what_a_library_cannot_write_is_refused_and_nothing_is_written() -> None:
    class Odd(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        value: object

    with pytest.raises(PublishError, match="JSON"):
        publish("odd", Odd(value=object()))
    with pytest.raises(PublishError, match="JSON"):
        publish("odd", msgspec.structs.replace(Part("p", Decimal(1)), price=object()))
    assert not PublishedMessage.objects.exists()


def test_neither_library_is_needed_nor_imported() -> None:
    code = """
import sys
sys.modules["pydantic"] = sys.modules["msgspec"] = None
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["messaging"], DATABASES={"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, MESSAGING={"default": {"URL": "database://"}})
django.setup()
from dataclasses import dataclass
from messaging.contracts.payloads import Contract, plain
@dataclass
class Order:
    number: int
print(Contract(Order).load(plain(Order(17)), 1))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Order(number=17)\n", "")
