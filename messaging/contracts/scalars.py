"""Single values of a payload: what JSON has, and what Django's encoder writes as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

from django.utils.dateparse import parse_duration

from messaging.contracts.violations import Loader, Memo, Violation, expected

_DECIMAL = re.compile(r"[-+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]{1,4})?")
_UUID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DURATION = re.compile(r"[-+]?P")
_LONGEST = 400  # characters of a text that stands for a single value


def _kind(wanted: str, *kinds: type) -> Loader:
    """What JSON has itself. A bool is no int."""

    def load(value: Any, _memo: Memo) -> Any:
        if type(value) not in kinds:
            raise expected(wanted, value)
        return value

    return load


def _float(value: Any, _memo: Memo) -> Any:
    if type(value) not in (int, float):
        raise expected("a number", value)
    try:
        return float(value)
    except OverflowError:
        raise Violation("is a number too large") from None


def _decimal(value: Any, _memo: Memo) -> Any:
    if type(value) in (int, float, str):
        text = str(value)  # of a float, whose own digits are many
        if len(text) <= _LONGEST and _DECIMAL.fullmatch(text):
            return Decimal(text)
    raise expected("a decimal number", value, as_text=True)


def _text_of(wanted: str, parse: Callable[[str], Any]) -> Loader:
    """What is written as text. `parse` raises ValueError, or returns None, for what is not."""

    def load(value: Any, _memo: Memo) -> Any:
        found = None
        if type(value) is str and len(value) <= _LONGEST:
            with suppress(ValueError, OverflowError):
                found = parse(value)
        if found is None:
            raise expected(wanted, value, as_text=True)
        return found

    return load


def _datetime(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if len(text) > len("2026-01-01") else None


def _date(text: str) -> date | None:
    return date.fromisoformat(text) if len(text) == len("2026-01-01") else None


def _duration(text: str) -> timedelta | None:
    return parse_duration(text) if _DURATION.match(text) else None


def _uuid(text: str) -> UUID | None:
    return UUID(text) if _UUID.fullmatch(text) else None


SCALARS: dict[Any, Loader] = {
    NoneType: _kind("null", NoneType),
    bool: _kind("true or false", bool),
    int: _kind("a whole number", int),
    float: _float,
    str: _kind("text", str),
    Decimal: _decimal,
    datetime: _text_of("a date and time as ISO 8601 has it", _datetime),
    date: _text_of("a date as ISO 8601 has it", _date),
    time: _text_of("a time as ISO 8601 has it", time.fromisoformat),
    timedelta: _text_of("a duration as ISO 8601 has it", _duration),
    UUID: _text_of("a UUID", _uuid),
}
