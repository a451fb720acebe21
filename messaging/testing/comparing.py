"""How a published message differs from the one that a test wants, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any
from unittest.mock import ANY
from uuid import UUID

from messaging.contracts import payloads
from messaging.exceptions import PayloadError, WireError
from messaging.handlers import topic_matches
from messaging.models import PublishedMessage
from messaging.wire.bodies import decode_body, encode_body
from messaging.wire.fields import to_json

SHOWN = 20  # messages that a failed assertion lists
WIDTH = 120  # characters of a value


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a message should be.

    Attributes:
        routing_key: or a pattern; None for any.
        payload: compared as it arrives, so that a date equals its text; `unittest.mock.ANY` for any, in parts too.
        headers: those that must be there; others may be there as well.
        fields: other fields of the row by name.
    """

    routing_key: str | None
    payload: Any
    headers: Mapping[str, Any]
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        parts = [] if self.routing_key is None else [f'routing key "{self.routing_key}"']
        parts += [] if self.payload is ANY else [f"payload {_short(_plain(self.payload))}"]
        parts += [f"headers {_short(dict(self.headers))}"] if self.headers else []
        parts += [f"{name} {_short(value)}" for name, value in self.fields.items()]
        return f" with {', '.join(parts)}" if parts else ""


def differences(row: PublishedMessage, wanted: Wanted) -> list[str]:
    """What is not as wanted; empty for a match."""
    found: list[str] = []
    if wanted.routing_key is not None and not topic_matches(wanted.routing_key, row.routing_key):
        found.append(f'routing_key is "{row.routing_key}", not "{wanted.routing_key}"')
    if wanted.payload is not ANY:
        found += _between("payload", _payload(row), _plain(wanted.payload))
    for name, value in wanted.headers.items():
        if name not in row.headers:
            found.append(f"headers[{name!r}] is missing")
        else:
            found += _between(f"headers[{name!r}]", row.headers[name], _plain_header(name, value))
    for name, value in wanted.fields.items():
        found += _between(name, getattr(row, name), str(value) if isinstance(value, UUID) else value)
    return found


def report(rows: Sequence[PublishedMessage], wanted: Wanted) -> str:
    """What was published, and how the nearest message differs from the wanted one."""
    if not rows:
        return "Nothing was published."
    lines = []
    number, nearest = min(enumerate(rows, 1), key=lambda pair: _distance(pair[1], wanted))
    if problems := differences(nearest, wanted):
        lines.append(f"The nearest is number {number}:")
        lines += [f"    {problem}" for problem in problems[:SHOWN]]
    return "\n".join([*lines, f"Published {'was' if len(rows) == 1 else 'were'}:", *listing(rows)])


def listing(rows: Sequence[PublishedMessage]) -> list[str]:
    """One line for each message, the first of them if they are many."""
    lines = [f"    {number}. {_line(row)}" for number, row in enumerate(rows[:SHOWN], 1)]
    return lines if len(rows) <= SHOWN else [*lines, f"    and {len(rows) - SHOWN} more"]


def _distance(row: PublishedMessage, wanted: Wanted) -> tuple[int, float]:
    likeness = SequenceMatcher(None, row.routing_key, wanted.routing_key or "").ratio()
    return len(differences(row, wanted)), -likeness


def _line(row: PublishedMessage) -> str:
    place = f' (queue "{row.queue}")' if row.queue else ""
    state = "" if row.state in ("pending", "published") else f" ({row.get_state_display()}: {row.error})"
    return f"{row.routing_key}{place}{state}: {_short(_payload(row))}"


def _payload(row: PublishedMessage) -> Any:
    try:
        return row.payload
    except PayloadError:
        return row.raw_body


def _plain(value: Any) -> Any:
    """A payload as its handler sees it; what cannot be encoded, such as `ANY`, stays as it is."""
    try:
        return decode_body(*encode_body(value, None))
    except PayloadError:
        if isinstance(value, Mapping):
            return {name: _plain(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(part) for part in value]
        instance = payloads.plain(value)
        return value if instance is value else _plain(instance)


def _plain_header(name: str, value: Any) -> Any:
    try:
        return value if value is ANY else to_json({name: value})[name]
    except WireError:
        return value


def _between(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            if key not in found:
                yield f"{name}[{key!r}] is missing; it should be {_short(wanted[key])}"
            elif key not in wanted:
                yield f"{name}[{key!r}] is {_short(found[key])}; it should not be there"
            else:
                yield from _between(f"{name}[{key!r}]", found[key], wanted[key])
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            yield from _between(f"{name}[{index}]", one, other)
    else:
        yield f"{name} is {_short(found)}, not {_short(wanted)}"


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
