"""What is wrong with a payload: the place in it, and the reason in words. Nothing of its content is repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from messaging.exceptions import ConfigurationError
from messaging.wire.bodies import storable

LONGEST_KEY = 40  # characters of a key that a path shows: strangers choose the keys of a dict
LONGEST_REASON = 200  # characters of what a class of the site's says
_WORDS = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}

# What a union made of a value of this message, by the identities of both: each is looked at once, however often it is
# tried, or a small payload could take for ever.
Memo = dict[tuple[int, int], Any]
Loader = Callable[[Any, Memo], Any]


class Violation(Exception):
    """A value is not what its type says.

    Args:
        reason: why, without a full stop.
        path: where, from the value that the one who raises this was given: ".price", "[2]".
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason, self.path = storable(reason, LONGEST_REASON), path

    def under(self, part: str) -> Violation:
        """The same, seen from what holds the value: put before its path."""
        self.path = part + self.path
        return self

    def copy(self) -> Violation:
        """Another one, for another path to the same place."""
        return Violation(self.reason, self.path)

    def __str__(self) -> str:
        path = self.path.removeprefix(".")
        return f"{path}: {self.reason}" if path else self.reason


class Unreadable(ConfigurationError):
    """A type that no payload can be checked against. The text says which, and what to do."""


def expected(wanted: str, value: Any, *, as_text: bool = False) -> Violation:
    """The violation that another value was found; `as_text` where some texts would do."""
    found = _WORDS.get(type(value), type(value).__name__)
    return Violation(f"expected {wanted}, found {'other text' if as_text and found == 'text' else found}")


def member(name: object) -> str:
    """How a path names an item of a list, a field, or a key of a dict."""
    if isinstance(name, int):
        return f"[{name}]"
    text = str(name)
    if text.isidentifier() and text.isascii() and len(text) <= LONGEST_KEY:
        return f".{text}"
    return f"[{json.dumps(storable(text, LONGEST_KEY), ensure_ascii=False)}]"


def name_of(kind: Any) -> str:
    """A type as people call it."""
    return kind.__qualname__ if isinstance(kind, type) and not hasattr(kind, "__origin__") else str(kind)
