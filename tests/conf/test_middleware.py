"""What can be put around something is told from what cannot: by the system checks, and in the same words in use."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import MiddlewareNotUsed
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from pytest_django import Settings

from messaging.checks import check_messaging
from messaging.conf.middleware import build
from messaging.exceptions import ConfigurationError

number = 5


def fine(get_outcome: Any) -> Any:
    return lambda message: get_outcome(f"{message}, fine")


def with_argument(prefix: str, get_outcome: Any) -> Any:
    return lambda message: get_outcome(prefix + message)


partial = functools.partial(with_argument, "partial ")


class Fine:
    def __init__(self, get_outcome: Any) -> None:
        self.get_outcome = get_outcome

    def __call__(self, message: Any) -> Any:
        return self.get_outcome(f"{message}, an object")


class Sharing:
    def around(self, get_outcome: Any) -> Any:
        return fine(get_outcome)


method = Sharing().around


@async_only_middleware
def fine_async(get_outcome: Any) -> Any:
    async def around(message: Any) -> Any:
        return await get_outcome(message)

    return around


def unused(get_outcome: Any) -> Any:
    raise MiddlewareNotUsed


def without_return(get_outcome: Any) -> Any:
    def around(message: Any) -> Any:
        return get_outcome(message)


def of_a_message(message: Any) -> Any:
    return message.headers


def takes_both(get_outcome: Any, message: Any) -> Any:
    return get_outcome(message)


def takes_nothing() -> Any:
    return fine


def returns_text(get_outcome: Any) -> Any:
    return "around"


def generates(get_outcome: Any) -> Any:
    def around(message: Any) -> Iterator[Any]:
        yield get_outcome(message)

    return around


def is_generator(get_outcome: Any) -> Iterator[Any]:
    yield get_outcome


async def is_async(get_outcome: Any) -> Any:
    return get_outcome


def async_unsaid(get_outcome: Any) -> Any:
    async def around(message: Any) -> Any:
        return await get_outcome(message)

    return around


class AsyncUnsaid(Fine):
    async def __call__(self, message: Any) -> Any:
        return await self.get_outcome(message)


@async_only_middleware
def async_in_word_only(get_outcome: Any) -> Any:
    return lambda message: get_outcome(message + 1)


@sync_and_async_middleware
def never_sync(get_outcome: Any) -> Any:
    async def around(message: Any) -> Any:
        return await get_outcome(message)

    return around


class Neither(Fine):
    sync_capable = False


FINE = ["fine", "partial", "Fine", "method", "fine_async", "unused"]
NO_FORM = [
    ("without_return", "returned None instead of a function"),
    ("of_a_message", "raised AttributeError"),
    ("takes_both", "raised TypeError"),
    ("takes_nothing", "raised TypeError"),
    ("returns_text", "returned str"),
    ("generates", "generator function"),
    ("is_generator", "no plain function"),
    ("is_async", "no plain function"),
    ("async_unsaid", "async_only_middleware or sync_and_async_middleware"),
    ("AsyncUnsaid", "async_only_middleware or sync_and_async_middleware"),
    ("async_in_word_only", "return one as well"),
    ("never_sync", "for a get_outcome that is none"),
    ("Neither", "neither sync_capable nor async_capable"),
]
NOT_THERE = [
    ("no.such.module", "cannot be imported: ModuleNotFoundError"),
    (f"{__name__}.absent", "cannot be imported"),
]
NOT_THERE += [(f"{__name__}.number", "is int, not a function")]
WRONG = [(f"{__name__}.{name}", "messaging.E019", text) for name, text in NO_FORM]
WRONG += [(path, "messaging.E018", text) for path, text in NOT_THERE]


@pytest.mark.parametrize("key", ["MIDDLEWARE", "PUBLISH_MIDDLEWARE"])
@pytest.mark.parametrize("name", FINE)
def test_what_can_be_used_passes_the_checks(settings: Settings, name: str, key: str) -> None:
    settings.MESSAGING = {"default": {key: [f"{__name__}.{name}"]}}
    assert [one for one in check_messaging() if one.id in ("messaging.E018", "messaging.E019")] == []


@pytest.mark.parametrize("key", ["MIDDLEWARE", "PUBLISH_MIDDLEWARE"])
@pytest.mark.parametrize(("path", "identity", "text"), WRONG)
def test_what_cannot_is_an_error_in_words(settings: Settings, key: str, path: str, identity: str, text: str) -> None:
    settings.MESSAGING = {"default": {key: [f"{__name__}.fine", path]}}
    (found,) = (one for one in check_messaging() if one.id in ("messaging.E018", "messaging.E019"))
    assert found.id == identity
    assert text in found.msg
    assert f'["{key}"] names "{path}", which' in found.msg
    with pytest.raises(ConfigurationError) as raised:
        build(f'MESSAGING["default"]["{key}"]', [path], lambda _: None)
    assert str(raised.value) == found.msg


def test_the_first_is_the_outermost() -> None:
    paths = [f"{__name__}.{name}" for name in ("fine", "fine_async", "unused", "Fine", "partial")]
    assert build("here", paths, str)("message") == "partial message, fine, an object"
