"""The payload that a handler's annotation names: `message: ReceivedMessage[OrderPlaced]`."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, get_args, get_origin

from messaging.contracts.violations import Unreadable
from messaging.message import ReceivedMessage

# What reads a signature whose annotations name what is there for type checkers alone.
_LAZILY: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    from annotationlib import Format

    _LAZILY["annotation_format"] = Format.FORWARDREF


def annotated_payload(function: Callable[..., Any]) -> Any:
    """The payload's type as the first parameter's annotation says it; None where it says none, or any.

    For a batch that is `list[ReceivedMessage[OrderPlaced]]`. Raises Unreadable for one that cannot be read.
    """
    annotation = _first_annotation(function)
    if annotation is None:
        return None
    try:
        holder = SimpleNamespace(__annotations__={"message": annotation})
        hints = typing.get_type_hints(holder, globalns=dict(_globals_of(function)), include_extras=True)
    except Exception as error:  # whatever the names in it stand for
        if "ReceivedMessage[" not in str(annotation):
            return None  # it says nothing to us, and may well be for type checkers alone
        raise Unreadable(
            f"its annotation {annotation!s} cannot be read ({type(error).__name__}: {error}): what it names has to be "
            "there at run time, in its module; or say payload= as well."
        ) from error
    found: list[Any] = []
    for kind in _payloads_in(hints["message"]):
        if kind not in found:
            found.append(kind)
    if len(found) > 1:
        raise Unreadable(f"its annotation names several payloads: {', '.join(map(str, found))}.")
    return found[0] if found else None


def _first_annotation(function: Callable[..., Any]) -> Any:
    try:
        parameters = inspect.signature(function, **_LAZILY).parameters
    except (TypeError, ValueError):
        return None  # it is written in C
    first = next(iter(parameters.values()), None)
    return None if first is None or first.annotation is inspect.Parameter.empty else first.annotation


def _globals_of(function: Any) -> Mapping[str, Any]:
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__") and not hasattr(function, "__func__"):
        function = type(function).__call__
    function = getattr(function, "__func__", function)
    return getattr(function, "__globals__", {})


def _payloads_in(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, ReceivedMessage):
        kind = get_args(annotation)[0]
        if kind not in (Any, object) and not isinstance(kind, TypeVar):
            yield kind
    elif origin is Annotated:
        yield from _payloads_in(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            yield from _payloads_in(part)
