"""Middleware in Django's own form: what the settings name, each around the next, with the real work innermost.

A factory takes `get_outcome` and returns what is called in its place. Whether that is a function, an `async def` or
either it says as Django's middleware does, with the decorators of `django.utils.decorators`. `get_outcome` is of the
same kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import MiddlewareNotUsed
from django.utils.module_loading import import_string

from messaging.exceptions import ConfigurationError

Outcome = Callable[[Any], Any]
Factory = Callable[[Outcome], Any]
Watch = Callable[[str, Outcome, bool], Outcome]  # given a middleware's path, what it made, and whether that is async

SAY_SO = (
    "decorate it with async_only_middleware or sync_and_async_middleware of django.utils.decorators, as Django's own "
    "middleware"
)


def build(where: str, paths: Sequence[str], innermost: Outcome, watch: Watch | None = None) -> Outcome:
    """One function that calls the innermost through all of them, the first of them outermost.

    Args:
        where: the setting, for errors.
        paths: dotted paths of factories.
        innermost: takes a message; may be an `async def`.
        watch: put around what each factory makes.

    Returns a synchronous function. Raises ConfigurationError for what the system checks call an error.
    """
    outcome, is_async = innermost, iscoroutinefunction(innermost)
    for path in reversed(paths):
        try:
            layer = put_around(load(path), outcome, is_async=is_async)
        except ConfigurationError as error:
            raise ConfigurationError(f'{where} names "{path}", which {error}') from error
        if layer is not None:
            outcome, is_async = layer
            outcome = outcome if watch is None else watch(path, outcome, is_async)
    return async_to_sync(outcome) if is_async else outcome


def load(path: str) -> Factory:
    """The factory at a dotted path. Raises ConfigurationError, whose text goes on after "which"."""
    try:
        found: Any = import_string(path)
    except Exception as error:  # whatever the site's own module raises
        raise ConfigurationError(f"cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"is {type(found).__name__}, not a function.")
    factory: Factory = found
    return factory


def put_around(factory: Factory, outcome: Outcome, *, is_async: bool) -> tuple[Outcome, bool] | None:
    """What a factory makes of the next outcome, and whether that is async; None where it is not to be used.

    Raises ConfigurationError, whose text goes on after "which", for a factory of another form.
    """
    can_sync, can_async = getattr(factory, "sync_capable", True), getattr(factory, "async_capable", False)
    if not (can_sync or can_async):
        raise ConfigurationError("says that it is neither sync_capable nor async_capable.")
    if _is_async(factory) or _is_generator(factory):
        raise ConfigurationError("is no plain function: it takes get_outcome and returns a function at once.")
    becomes_async = can_async and (is_async or not can_sync)
    try:
        made = factory(_adapted(outcome, is_async=is_async, becomes_async=becomes_async))
    except MiddlewareNotUsed:
        return None
    except Exception as error:  # whatever the site's own code raises
        kind = type(error).__name__
        raise ConfigurationError(f"raised {kind} when it was called with get_outcome: {error}") from error
    _refuse_other_form(made, is_async=becomes_async)
    return made, becomes_async


def _refuse_other_form(made: Any, *, is_async: bool) -> None:
    if not callable(made):
        kind = "None" if made is None else type(made).__name__
        raise ConfigurationError(f"returned {kind} instead of a function that takes the message.")
    if _is_generator(made):
        raise ConfigurationError("returned a generator function, of which a call would run nothing.")
    if _is_async(made) and not is_async:
        raise ConfigurationError(f"returned an `async def` for a get_outcome that is none: {SAY_SO}.")
    if is_async and not _is_async(made):
        raise ConfigurationError("returned a function for a get_outcome that is an `async def`: return one as well.")


def _adapted(outcome: Outcome, *, is_async: bool, becomes_async: bool) -> Outcome:
    """The outcome as the next middleware calls it; what is not async stays in the thread, and so in its transaction."""
    if is_async == becomes_async:
        return outcome
    return sync_to_async(outcome, thread_sensitive=True) if becomes_async else async_to_sync(outcome)


def _is_async(function: Any) -> bool:
    return any(map(iscoroutinefunction, _codes(function)))


def _is_generator(function: Any) -> bool:
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in _codes(function))


def _codes(function: Any) -> tuple[Any, ...]:
    """A function, and what calling it runs where it is an object."""
    is_plain = inspect.isroutine(function) or isinstance(function, type)
    return (function,) if is_plain else (function, type(function).__call__)
