"""Payloads are checked against types, and become what these say: dataclasses, TypedDicts, and what they consist of.

A type is read once, into a function that takes a value and returns another, or raises Violation. Fields that a type
does not know are left out: senders may add some. Nothing is converted that JSON tells apart: "1" is no number, and
true is none either.
"""

from __future__ import annotations

import collections.abc as abstract
import dataclasses
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NewType, NotRequired, Required, Union, get_args, get_origin

from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder

from messaging.contracts import libraries
from messaging.contracts.scalars import SCALARS
from messaging.contracts.violations import Loader, Memo, Unreadable, Violation, expected, member, name_of

_LISTS = {list, abstract.Sequence, abstract.MutableSequence, abstract.Collection, abstract.Iterable}
_SETS = {set: set, abstract.Set: set, abstract.MutableSet: set, frozenset: frozenset}
_DICTS = {dict, abstract.Mapping, abstract.MutableMapping}
_MODULES = [typing]  # of annotations; the second has those of later Pythons, where a site uses it
with suppress(ImportError):
    _MODULES.append(import_module("typing_extensions"))
QUALIFIERS = {getattr(one, name, Required) for one in _MODULES for name in ("Required", "NotRequired", "ReadOnly")}
_SHOWN = 10  # values of an enumeration that a reason names
_json = DjangoJSONEncoder(sort_keys=True)


def loader_of(kind: Any) -> Loader:
    """What makes values of a type from JSON's. Raises Unreadable for a type that is not supported.

    Bytes are no part of JSON, so that they are a whole payload or nothing.
    """
    return _bytes if kind is bytes else _Reader().read(kind)


def unwrapped(kind: Any) -> Any:
    """A type without what only type checkers see: NewType, Annotated, aliases."""
    while True:
        if isinstance(kind, NewType):
            kind = kind.__supertype__
        elif get_origin(kind) is Annotated or get_origin(kind) in QUALIFIERS:
            kind = get_args(kind)[0]
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            return kind


def is_union(kind: Any) -> bool:
    """Whether a type is one of several."""
    return get_origin(kind) in (Union, UnionType)


class _Reader:
    """Reads one type; those that hold themselves are read once."""

    def __init__(self) -> None:
        self._known: dict[Any, Loader] = {}

    def read(self, kind: Any) -> Loader:
        """The loader of a type."""
        kind = unwrapped(kind)
        if kind in (Any, object):
            return _anything
        if kind is None:
            kind = NoneType
        if isinstance(kind, abstract.Hashable) and kind in SCALARS:
            return SCALARS[kind]
        origin = get_origin(kind) or kind
        if is_union(kind):
            return _any_of(list(get_args(kind)), list(map(self.read, get_args(kind))))
        if origin is Literal:
            return _one_of(_table(get_args(kind), kind))
        if isinstance(origin, type):
            return self._of_class(kind, origin)
        raise Unreadable(f"{name_of(kind)} is no type that a payload can be checked against.")

    def _of_class(self, kind: Any, origin: type) -> Loader:
        arguments = get_args(kind)
        if origin in _LISTS:
            return _list_of(self._argument(arguments, 0), list)
        if origin in _SETS:
            return _list_of(self._argument(arguments, 0), _SETS[origin])
        if origin in _DICTS:
            return _dict_of(_key(self._argument(arguments, 0)), self._argument(arguments, 1))
        if origin is tuple:
            return self._tuple(arguments, is_bare=kind is tuple)
        if issubclass(origin, Enum):
            return _one_of(_table(origin.__members__.values(), kind))
        if library := libraries.of(origin):
            return library(kind)
        if is_typed_dict(origin):
            return self._remembered(kind, lambda: self._typed_dict(origin))
        if dataclasses.is_dataclass(origin) and not arguments:
            return self._remembered(kind, lambda: self._dataclass(origin))
        raise Unreadable(
            f"{name_of(kind)} is no type that a payload can be checked against: take a dataclass, a TypedDict, a model "
            "of pydantic, a struct of msgspec, or what JSON has."
        )

    def _argument(self, arguments: tuple[Any, ...], index: int) -> Loader:
        return self.read(arguments[index]) if len(arguments) > index else _anything

    def _tuple(self, arguments: tuple[Any, ...], *, is_bare: bool) -> Loader:
        if is_bare or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return _list_of(self._argument(arguments, 0), tuple)
        loaders = list(map(self.read, arguments))

        def load(value: Any, memo: Memo) -> Any:
            if not isinstance(value, list):
                raise expected("a list", value)
            if len(value) != len(loaders):
                raise Violation(f"expected {len(loaders)} items, found {len(value)}")
            return tuple(_items(zip(loaders, value, strict=True), memo))

        return load

    def _remembered(self, kind: Any, build: Callable[[], Loader]) -> Loader:
        """A loader that may be used while it is built, by a type that holds itself."""
        if kind not in self._known:
            built: list[Loader] = []

            def later(value: Any, memo: Memo) -> Any:
                return built[0](value, memo)

            self._known[kind] = later
            built.append(build())
            self._known[kind] = built[0]
        return self._known[kind]

    def _dataclass(self, kind: Any) -> Loader:
        hints = _hints_of(kind)
        if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
            raise Unreadable(f"{name_of(kind)} has an InitVar, which no payload can give.")
        fields = [one for one in dataclasses.fields(kind) if one.init]
        has_none = (dataclasses.MISSING, dataclasses.MISSING)
        required = [one.name for one in fields if (one.default, one.default_factory) == has_none]
        return _object_of(kind, self._fields(kind, {one.name: hints[one.name] for one in fields}), required)

    def _typed_dict(self, kind: Any) -> Loader:
        hints = _hints_of(kind)
        required = required_of(kind, hints)
        return _object_of(dict, self._fields(kind, hints), [name for name in hints if name in required])

    def _fields(self, kind: Any, hints: Mapping[str, Any]) -> dict[str, Loader]:
        found = {}
        for name, hint in hints.items():
            try:
                found[name] = self.read(hint)
            except Unreadable as error:
                raise Unreadable(f"{name_of(kind)}.{name}: {error}") from error
        # What tells one member of a union from another is mostly a Literal: it is looked at before what is large.
        return dict(sorted(found.items(), key=lambda item: not _is_small(unwrapped(hints[item[0]]))))


def _hints_of(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise Unreadable(
            f"The annotations of {name_of(kind)} cannot be read ({type(error).__name__}: {error}): what they name has "
            "to be there at run time, in its module."
        ) from error


def is_typed_dict(kind: Any) -> bool:
    """Whether a type is one, of `typing` or of `typing_extensions`."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def required_of(kind: Any, hints: Mapping[str, Any]) -> frozenset[str]:
    """The keys that a TypedDict requires; where annotations are postponed, it does not know itself."""
    usual = kind.__required_keys__
    return frozenset(name for name, hint in hints.items() if _is_required(hint, is_usual=name in usual))


def _is_required(hint: Any, *, is_usual: bool) -> bool:
    while (origin := get_origin(hint)) is not None:
        if origin in (Required, NotRequired):
            return origin is Required
        if origin is not Annotated and origin not in QUALIFIERS:
            break
        hint = get_args(hint)[0]
    return is_usual


def _is_small(kind: Any) -> bool:
    return get_origin(kind) is Literal or (isinstance(kind, abstract.Hashable) and kind in SCALARS)


# What the parts of a type do


def _anything(value: Any, _memo: Memo) -> Any:
    return value


def _bytes(value: Any, _memo: Memo) -> Any:
    if not isinstance(value, bytes):
        raise expected("bytes", value)
    return value


def _items(pairs: Any, memo: Memo) -> list[Any]:
    found = []
    for index, (loader, one) in enumerate(pairs):
        try:
            found.append(loader(one, memo))
        except Violation as violation:
            raise violation.under(member(index)) from None
    return found


def _list_of(loader: Loader, make: Callable[[list[Any]], Any]) -> Loader:
    def load(value: Any, memo: Memo) -> Any:
        if not isinstance(value, list):
            raise expected("a list", value)
        found = _items(((loader, one) for one in value), memo)
        try:
            return found if make is list else make(found)
        except TypeError:
            raise Violation("holds what cannot be in a set") from None

    return load


def _dict_of(key: Loader, loader: Loader) -> Loader:
    def load(value: Any, memo: Memo) -> Any:
        if not isinstance(value, dict):
            raise expected("an object", value)
        found = {}
        for name, one in value.items():
            try:
                found[key(name, memo)] = loader(one, memo)
            except Violation as violation:
                raise violation.under(member(name)) from None
        return found

    return load


def _key(loader: Loader) -> Loader:
    """A key of a dict: JSON has text there, also for what is a number elsewhere."""

    def load(value: Any, memo: Memo) -> Any:
        try:
            return loader(value, memo)
        except Violation as violation:
            with suppress(ValueError, RecursionError, Violation):
                scalar = json.loads(value)
                if not isinstance(scalar, (str, list, dict)):
                    return loader(scalar, memo)
            raise Violation(f"the key: {violation.reason}") from None

    return load


def _table(values: Iterable[Any], kind: Any) -> dict[str, Any]:
    """Values by how they are written in JSON, which tells 1 from true and from 1.0."""
    try:
        return {_json.encode(one.value if isinstance(one, Enum) else one): one for one in values}
    except (TypeError, ValueError) as error:
        raise Unreadable(f"{name_of(kind)} has a value that cannot be written as JSON: {error}.") from error


def _one_of(values: Mapping[str, Any]) -> Loader:
    wanted = "one of " + ", ".join(list(values)[:_SHOWN]) + (" …" if len(values) > _SHOWN else "")
    has_large = any(text[0] in "[{" for text in values)

    def load(value: Any, _memo: Memo) -> Any:
        if has_large or not isinstance(value, (dict, list)):
            with suppress(TypeError, ValueError, RecursionError, KeyError):
                return values[_json.encode(value)]
        raise expected(wanted, value, as_text=True)

    return load


def _any_of(kinds: list[Any], loaders: list[Loader]) -> Loader:
    """A value of a union: of the first type that takes it, those first whose values JSON tells apart."""
    pairs = sorted(zip(kinds, loaders, strict=True), key=lambda pair: unwrapped(pair[0]) not in _TOLD_APART)

    def attempt(value: Any, memo: Memo) -> Any:
        found = []
        for kind, loader in pairs:
            try:
                return loader(value, memo)
            except Violation as violation:
                found.append((kind, violation))
        others = [(kind, violation) for kind, violation in found if kind is not NoneType]
        if len(others) == 1:
            raise others[0][1]
        raise Violation("fits none of: " + "; ".join(f"{name_of(kind)} ({violation})" for kind, violation in others))

    def load(value: Any, memo: Memo) -> Any:
        if not isinstance(value, (dict, list)):
            return attempt(value, memo)
        key = id(value), id(pairs)
        if key not in memo:
            try:
                memo[key] = attempt(value, memo)
            except Violation as violation:
                memo[key] = violation.copy()
        known = memo[key]
        if isinstance(known, Violation):
            raise known.copy()
        return known

    return load


_TOLD_APART = (NoneType, None, bool, int)


def _object_of(make: Any, loaders: Mapping[str, Loader], required: list[str]) -> Loader:
    def load(value: Any, memo: Memo) -> Any:
        if not isinstance(value, dict):
            raise expected("an object", value)
        for name in required:
            if name not in value:
                raise Violation("is missing", member(name))
        found = {}
        for name, loader in loaders.items():
            if name in value:
                try:
                    found[name] = loader(value[name], memo)
                except Violation as violation:
                    raise violation.under(member(name)) from None
        return found if make is dict else _made(make, found)

    return load


def _made(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:  # its __post_init__ has rules of its own
        reason = "; ".join(error.messages)
    except ValueError as error:
        reason = str(error) or type(error).__name__
    raise Violation(reason)
