"""Whether an installed library still has what we use of it without its documentation's promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any

# By dotted name of a module or a class: names of its own, or those that its methods give to instances.
Used = Mapping[str, Sequence[str]]


def lacking(used: Used, given: Used) -> list[str]:
    """Dotted names of what the installed version lacks: of `used` as a name of its own, of `given` in any method."""
    gone = [f"{owner}.{name}" for owner, names in used.items() for name in names if not _has(owner, name)]
    return gone + [f"{owner}.{name}" for owner, names in given.items() for name in names if not _gives(owner, name)]


def _has(owner: str, name: str) -> bool:
    try:
        return hasattr(_found(owner), name)
    except (ImportError, AttributeError):
        return False


def _gives(owner: str, name: str) -> bool:
    try:
        return name in _mentioned(_found(owner))
    except (ImportError, AttributeError):
        return False


def _found(owner: str) -> Any:
    module, _, last = owner.rpartition(".")
    return import_module(owner) if last.islower() else getattr(import_module(module), last)


@cache
def _mentioned(owner: type) -> frozenset[str]:
    methods = (one for base in owner.__mro__ for one in vars(base).values() if isinstance(one, FunctionType))
    return frozenset(name for method in methods for name in method.__code__.co_names)
