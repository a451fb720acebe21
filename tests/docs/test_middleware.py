"""The middleware of docs/how-to/middleware.md, in a module as a site would have it, around real handlers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import structlog
import structlog.testing
from asgiref.sync import async_to_sync
from django.db import connection
from django.utils import translation
from pytest_django import Settings

from messaging import apublish, publish, publish_many
from messaging.checks import check_messaging
from messaging.handlers import handler, registry
from messaging.message import Message, ReceivedMessage
from messaging.models import ProcessedMessage
from messaging.testing import drain
from tests.docs.blocks import find

pytestmark = pytest.mark.django_db(transaction=True)
BLOCKS = find("middleware")
seen: list[Any] = []
Shop = Callable[..., ModuleType]


@pytest.fixture
def shop(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Makes `shop.messaging` of the page's blocks, and names what is asked for in the settings."""
    seen.clear()
    monkeypatch.setattr(registry, "_handlers", {})

    def make(around: str, publishing: str = "", **stand_ins: ModuleType) -> ModuleType:
        for name, stand_in in stand_ins.items():
            monkeypatch.setitem(sys.modules, name.replace("__", "."), stand_in)
        module = ModuleType("shop.messaging")
        monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
        monkeypatch.setitem(sys.modules, "shop.messaging", module)
        for block in BLOCKS:
            if block.title == "shop/messaging.py" and (stand_ins or "django_tenants" not in block.text):
                exec(compile(block.text, str(block), "exec"), vars(module))
        own = {"MIDDLEWARE": [f"shop.messaging.{around}"]}
        own |= {"PUBLISH_MIDDLEWARE": [f"shop.messaging.{publishing}"]} if publishing else {}
        settings.MESSAGING = {"default": own}
        assert [one.msg for one in check_messaging() if one.id in ("messaging.E018", "messaging.E019")] == []
        return module

    yield make
    from messaging.publishing import surrounding

    surrounding._around.cache_clear()  # of a module that is gone


def test_the_settings_name_what_is_there(shop: Shop) -> None:
    module = shop("tenant", "add_tenant")
    (block,) = (block for block in BLOCKS if block.title == "shop/settings.py")
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    paths = [path for key in ("MIDDLEWARE", "PUBLISH_MIDDLEWARE") for path in names["MESSAGING"]["default"][key]]
    assert [hasattr(module, path.removeprefix("shop.messaging.")) for path in paths] == [True, True]


def test_a_tenant_travels_from_the_publisher_to_the_last_handler(shop: Shop) -> None:
    module = shop("tenant", "add_tenant")

    @handler("first", "orders.placed")
    def first(message: ReceivedMessage) -> None:
        seen.append(module.current_tenant.get())
        publish("orders.billed", 1)

    @handler("second", "orders.billed")
    async def second(message: ReceivedMessage) -> None:
        seen.append(module.current_tenant.get())

    token = module.current_tenant.set("acme")
    publish("orders.placed", 1)
    module.current_tenant.reset(token)
    drain()
    assert seen == ["acme", "acme"]


def test_a_batch_is_handled_tenant_by_tenant(shop: Shop) -> None:
    module = shop("tenants")

    @handler("events", "event.#", batch=10)
    def store(messages: list[ReceivedMessage]) -> None:
        seen.append((module.current_tenant.get(), [message.payload for message in messages]))

    publish_many([Message("event", number, headers={"tenant": "ba"[number % 2]}) for number in range(4)])
    drain()
    assert seen == [("a", [1, 3]), ("b", [0, 2])]


@pytest.mark.parametrize("name", ["limited", "either"])
def test_the_async_ones_are_around_both_kinds(shop: Shop, name: str) -> None:
    shop(name)

    @handler("first", "orders")
    def first(message: ReceivedMessage) -> None:
        seen.append(connection.in_atomic_block)

    @handler("second", "orders")
    async def second(message: ReceivedMessage) -> None:
        seen.append(message.payload)

    publish("orders", 1)
    drain()
    assert sorted(seen) == [1, True]


def test_a_language_travels_and_an_unknown_one_does_not(shop: Shop) -> None:
    shop("language", "add_language")

    @handler("mails", "mail")
    def send(message: ReceivedMessage) -> None:
        seen.append(translation.get_language())

    with translation.override("zh-hans"):
        publish("mail", 1)
    drain()
    for wrong in ("../../etc", "xx", 5, "\0"):
        publish("mail", 1, headers={"language": wrong})
    drain()
    assert seen == ["zh-hans", *["en"] * 4]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_request_id_is_in_each_log_line(shop: Shop, is_async: bool) -> None:
    shop("log_context", "add_request_id")
    lines = structlog.testing.LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines])
    try:
        log = structlog.get_logger()

        @handler("first", "orders.placed")
        def first(message: ReceivedMessage) -> None:
            log.info("first")
            publish("orders.billed", 1)

        @handler("second", "orders.billed")
        async def second(message: ReceivedMessage) -> None:
            log.info("second")

        async def view() -> str:
            return (await apublish("orders.placed", 1)).message_id

        with structlog.contextvars.bound_contextvars(request_id="r-1"):
            asked = async_to_sync(view)() if is_async else publish("orders.placed", 1).message_id
        drain()
        log.info("after")
    finally:
        structlog.configure(**before)
    assert [(line["event"], line.get("request_id")) for line in lines.entries] == [
        ("first", "r-1"),
        ("second", "r-1"),
        ("after", None),
    ]
    assert lines.entries[0]["message_id"] == asked


# Schemas, switched as django-tenants does it


def tenants_library() -> dict[str, ModuleType]:
    """The two functions of django-tenants that the page uses, which do what they do there."""
    connection.schema_name = "public"  # type: ignore[attr-defined]

    def switch(name: str) -> None:
        connection.schema_name = name  # type: ignore[attr-defined]
        with connection.cursor() as cursor:
            cursor.execute(f'SET LOCAL search_path TO "{name}", public')

    @contextmanager
    def schema_context(name: str) -> Iterator[None]:
        before = connection.schema_name  # type: ignore[attr-defined]
        switch(name)
        try:
            yield
        finally:
            if not connection.needs_rollback:
                switch(before)

    class Tenants:
        @classmethod
        def filter(cls, schema_name: str) -> type[Tenants]:
            cls.name = schema_name
            return cls

        @classmethod
        def exists(cls) -> bool:
            return cls.name in ("acme", "umbrella")

        objects: Any

    Tenants.objects = Tenants
    package, module = ModuleType("django_tenants"), ModuleType("django_tenants.utils")
    vars(module).update(schema_context=schema_context, get_tenant_model=lambda: Tenants)
    return {"django_tenants": package, "django_tenants__utils": module}


@pytest.fixture
def schemas() -> Iterator[None]:
    """A table `note` in the schema of each of two tenants."""
    with connection.cursor() as cursor:
        for name in ("acme", "umbrella"):
            cursor.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.note (text text)")
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA acme CASCADE; DROP SCHEMA umbrella CASCADE")


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="PostgreSQL has schemas within a database")
def test_each_message_is_handled_in_its_tenants_schema(shop: Shop, schemas: None) -> None:
    shop("schema", "add_schema", **tenants_library())

    def note(text: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO note VALUES (%s)", [text])

    @handler("first", "orders.placed")
    def first(message: ReceivedMessage) -> None:
        note(message.payload)
        publish("orders.billed", message.payload)
        if message.payload == "fails":
            raise ValueError

    @handler("second", "orders.billed")
    def second(message: ReceivedMessage) -> None:
        note(f"billed {message.payload}")

    for name in ("acme", "umbrella"):
        publish("orders.placed", name, headers={"schema": name})
    publish("orders.placed", "fails", headers={"schema": "acme"})
    publish("orders.placed", "stranger's", headers={"schema": "acme; DROP SCHEMA acme"})
    drain(raise_errors=False)
    with connection.cursor() as cursor:
        for name in ("acme", "umbrella"):
            cursor.execute(f"SELECT text FROM {name}.note")
            assert {text for (text,) in cursor.fetchall()} == {name, f"billed {name}"}
    states = dict(ProcessedMessage.objects.filter(queue="first").values_list("body", "state"))
    assert states == {"acme": "processed", "umbrella": "processed", "fails": "retrying", "stranger's": "failed"}
