"""What a log record says of the message that it is about, beside its text. Standard library only."""

from __future__ import annotations

from typing import Any

ABOUT = "messaging_"  # how the names begin; `logging` and its users have none that do
NAMES = ("alias", "queue", "routing_key", "message_id", "handler", "attempt", "round")
FIELDS = tuple(f"{ABOUT}{name}" for name in NAMES)  # attributes of a record
ALIAS, QUEUE = FIELDS[:2]
LEFT_OUT = f"{ABOUT}left_out"  # of a line that stands for others: for how many


def about(thing: object = None, /, **given: Any) -> dict[str, Any]:
    """What to give to a logger as `extra`: all of `FIELDS`, None for what is not known.

    Args:
        thing: a row, or whatever has some of `NAMES` as its attributes.
        given: what it has not, by those names.
    """
    found = {name: given.get(name, getattr(thing, name, None)) for name in NAMES}
    return {f"{ABOUT}{name}": _shown(value) for name, value in found.items()}


def _shown(value: Any) -> Any:
    """A text as a log may show it: strangers choose ids and routing keys, and must not begin lines of their own."""
    if not isinstance(value, str) or value.isprintable():
        return None if value == "" else value
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
