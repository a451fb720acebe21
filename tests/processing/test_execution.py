"""Calling handlers: what they give back, and what counts as having run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.utils import timezone, translation

from messaging.db import session
from messaging.exceptions import ConfigurationError
from messaging.handlers import Registry, handler, is_generator
from messaging.message import HandlerContext
from messaging.models import ProcessedMessage
from messaging.processing.execution import call
from messaging.processing.processor import Processor
from tests.deliveries import arrived, registered

State = ProcessedMessage.State
done: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


async def work(message: Any) -> None:
    await asyncio.sleep(0)
    done.append(message)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """As a decorator that knows nothing of coroutines leaves it."""

    def inner(message: Any) -> Any:
        return function(message)

    return inner


async def nested(message: Any) -> Any:
    return work(message)


def deferred(message: Any) -> Future[None]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(done.append, message)


class Importer:
    def __call__(self, message: Any) -> None:
        done.append(message)

    def method(self, message: Any) -> None:
        done.append(message)


class AsyncImporter:
    async def __call__(self, message: Any) -> None:
        await work(message)


def with_prefix(prefix: str, message: Any) -> None:
    done.append(message)


async def with_prefix_async(prefix: str, message: Any) -> None:
    await work(message)


def other_value(message: Any) -> list[int]:
    done.append(message)
    return [1, 2]


RUN: dict[str, Callable[..., Any]] = {
    "async": work,
    "decorated": decorated(work),
    "nested": nested,
    "future": deferred,
    "object": Importer(),
    "async object": AsyncImporter(),
    "method": Importer().method,
    "partial": functools.partial(with_prefix, "a"),
    "async partial": functools.partial(with_prefix_async, "a"),
    "partial of a partial": functools.partial(functools.partial(with_prefix, "a")),
    "other value": other_value,
}


def _run(function: Callable[..., Any]) -> None:
    call(registered(Registry(), function), "the message", HandlerContext(None, "default", True, None))  # type: ignore[arg-type]


@pytest.mark.mode(48)
@pytest.mark.parametrize("name", RUN)
def test_what_a_handler_gives_back_is_awaited(name: str) -> None:
    _run(RUN[name])
    assert done == ["the message"]


def generator(message: Any) -> Iterator[None]:
    done.append(message)
    yield


async def async_generator(message: Any) -> AsyncIterator[None]:
    done.append(message)
    yield


LAZY: dict[str, Callable[..., Any]] = {
    "generator": decorated(generator),
    "async generator": decorated(async_generator),
    "generator of a coroutine": lambda message: _give(generator(message)),
    "map": lambda message: map(done.append, [message]),
    "filter": lambda message: filter(done.append, [message]),
}


async def _give(value: Any) -> Any:
    return value


@pytest.mark.mode(48)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("name", LAZY)
def test_a_handler_of_which_nothing_ran_has_failed(name: str, atomic: bool) -> None:
    registry = Registry()
    registered(registry, LAZY[name], atomic=atomic)
    assert Processor("default", "worker-1", handlers=registry).process(arrived(), lambda: None).action != "set_aside"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts, done) == (State.RETRYING, 1, [])
    assert "of which nothing has run" in row.error


@pytest.mark.django_db(transaction=True)
def test_what_an_awaited_handler_raises_is_a_failed_attempt() -> None:
    async def fail(message: Any) -> None:
        raise ValueError("no such order")

    registry = Registry()
    registered(registry, decorated(fail))
    Processor("default", "worker-1", handlers=registry).process(arrived(), lambda: None)
    assert ProcessedMessage.objects.get().error == "ValueError: no such order"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", RUN)
def test_whatever_can_be_called_is_processed_under_a_name(name: str) -> None:
    registry = Registry()
    registered(registry, RUN[name])
    processor = Processor("default", "worker-1", handlers=registry)
    assert processor.process(arrived(), lambda: None).action == "ack"
    row = ProcessedMessage.objects.get()
    assert row.state == State.PROCESSED
    assert row.handler.startswith(f"{__name__}.")
    assert "0x" not in row.handler


def test_names_say_what_is_called() -> None:
    names = {name: registered(Registry(), function).name.rpartition(".")[2] for name, function in RUN.items()}
    assert (names["object"], names["method"], names["partial"]) == ("Importer", "method", "with_prefix")


def test_handlers_of_one_name_with_other_keys_stand_side_by_side() -> None:
    registry = Registry()
    first = registered(registry, functools.partial(with_prefix, "a"), routing_keys=("a",))
    second = registered(registry, functools.partial(with_prefix, "b"), routing_keys=("b",))
    assert registry.find("default", "work", "a") is first
    assert registry.find("default", "work", "b") is second


def test_a_class_is_no_handler() -> None:
    with pytest.raises(ConfigurationError, match="register one of its objects"):
        handler("test-execution")(Importer)


def test_an_object_whose_call_is_a_generator_is_found_beforehand() -> None:
    class Lazy:
        def __call__(self, message: Any) -> Iterator[None]:
            yield

    assert is_generator(Lazy())
    assert is_generator(functools.partial(generator))
    assert not is_generator(Importer())


def test_what_a_handler_activates_ends_with_it() -> None:
    def activate(message: Any) -> None:
        translation.activate("zh-hans")
        timezone.activate("Asia/Kolkata")
        done.append(translation.get_language())

    before = translation.get_language(), timezone.get_current_timezone_name()
    _run(activate)
    _run(decorated(activate))
    assert (translation.get_language(), timezone.get_current_timezone_name()) == before
    assert done == ["zh-hans", "zh-hans"]


class Tenants:
    """A connection of a backend that has a schema for each tenant: django-tenants' makes it so."""

    tenant: str = "public"
    include_public_schema = True

    def set_tenant(self, tenant: str, include_public: bool = True) -> None:
        self.tenant, self.include_public_schema = tenant, include_public


def test_the_tenant_that_a_handler_chooses_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Tenants()
    monkeypatch.setattr(session, "_aliases_with_tenants", lambda: ("default",))
    monkeypatch.setattr(session, "connections", {"default": connection})

    def choose(message: Any) -> None:
        done.append(connection.tenant)
        connection.set_tenant("acme", include_public=False)

    def fail(message: Any) -> None:
        choose(message)
        raise ValueError

    _run(choose)
    with pytest.raises(ValueError):  # noqa: PT011
        _run(fail)
    _run(choose)
    connection.set_tenant("globex")  # as a test of a site has it, which drains the queue
    _run(choose)
    assert done == ["public", "public", "public", "globex"]
    assert (connection.tenant, connection.include_public_schema) == ("globex", True)


def test_connections_without_tenants_are_asked_for_none() -> None:
    session._aliases_with_tenants.cache_clear()
    assert session.tenants() == []
