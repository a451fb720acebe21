"""AMQP 0-9-1 field tables, the format of message headers, to and from Python values without loss.

Written here because client libraries lose data: some decode a double as an integer, cannot encode a float, or drop the
connection over a field type or a timestamp that the broker lets through. Text is `str` with surrogate escapes for bytes
that are not UTF-8, so that encoding it again gives the same bytes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from typing import Any, NamedTuple

from messaging.exceptions import WireError

MAX_DEPTH = 64  # levels of nested tables and arrays: hostile input must not exhaust the stack
MAX_SHORT = 255  # bytes of a short string

_LENGTH = Struct(">I")
_INT32, _INT64, _UINT64, _DOUBLE = Struct(">ci"), Struct(">cq"), Struct(">cQ"), Struct(">cd")
_DECIMAL_IN, _DECIMAL_OUT = Struct(">Bi"), Struct(">cBi")
_TIMESTAMP = Struct(">Q")
# RabbitMQ reads "s" as a 16-bit integer and both "l" and "L" as signed, unlike the letter of the specification.
_NUMBERS = {
    ord(kind): Struct(layout)
    for kind, layout in {
        "b": ">b", "B": ">B", "s": ">h", "U": ">h", "u": ">H", "I": ">i", "i": ">I",
        "l": ">q", "L": ">q", "f": ">f", "d": ">d", "t": ">?",
    }.items()
}  # fmt: skip
_LONG_STRING, _BYTES, _TABLE, _ARRAY, _VOID, _TIME, _DECIMAL = (ord(kind) for kind in "SxFAVTD")


UNREADABLE = object()  # the value of an entry whose end alone is known


class TableEntry(NamedTuple):
    """One entry of a table: its name, its value, and where its bytes begin and end."""

    name: str
    value: Any
    start: int
    end: int


def decode_table(raw: bytes) -> dict[str, Any]:
    """Decode a table's entries (without the length prefix); the first of equal names wins, as at the broker.

    Raises WireError for malformed bytes and unknown field types.
    """
    entries, problem = scan_table(raw)
    if problem:
        raise WireError(problem)
    return as_dict(entries)


def scan_table(raw: bytes, depth: int = 0) -> tuple[list[TableEntry], str]:
    """Read a table's entries up to the first that cannot be understood; also say what is wrong with that one.

    At the top level what follows a table or list that cannot be understood is read all the same: brokers sort headers.
    """
    entries: list[TableEntry] = []
    offset, limit, problem = 0, len(raw), ""
    while offset < limit:
        start = offset
        try:
            name, offset = decode_short(raw, offset)
        except WireError as error:
            return entries, f"The name of header number {len(entries) + 1} is malformed: {error}"
        try:
            value, offset = _decode_value(raw, offset, depth)
        except WireError as error:
            problem = problem or f'Header "{printable(name)}" cannot be decoded: {error}'
            end = _end_of_nested(raw, offset)
            if depth or end is None:
                return entries, problem
            value, offset = UNREADABLE, end
        entries.append(TableEntry(name, value, start, offset))
    return entries, problem


def as_dict(entries: list[TableEntry]) -> dict[str, Any]:
    """The entries by name; the first of equal names wins. What could not be decoded is left out."""
    result: dict[str, Any] = {}
    for entry in entries:
        if entry.value is not UNREADABLE:
            result.setdefault(entry.name, entry.value)
    return result


def encode_table(mapping: Mapping[str, Any]) -> bytes:
    """Encode a table's entries, without the length prefix. Raises WireError for what AMQP cannot carry."""
    return _encode_table(mapping, 0)


def decode_short(raw: bytes, offset: int) -> tuple[str, int]:
    """Decode a short string at `offset`; returns it and the offset behind it."""
    if offset >= len(raw):
        raise WireError("it is cut short.")
    start = offset + 1
    end = start + raw[offset]
    if end > len(raw):
        raise WireError("it is cut short.")
    return raw[start:end].decode("utf-8", "surrogateescape"), end


def encode_short(text: str, what: str) -> bytes:
    """Encode a short string; `what` names it in the error. Raises WireError beyond 255 bytes."""
    if not isinstance(text, str):
        raise WireError(f"{what} must be text, not {type(text).__name__}.")
    encoded = _encode_text(text, what)
    length = len(encoded)
    if length > MAX_SHORT:
        raise WireError(f'{what} "{printable(text)[:40]}…" has {length} bytes; AMQP allows {MAX_SHORT}.')
    return b"%c%b" % (length, encoded)


def printable(text: str) -> str:
    """Text without surrogates and NUL, which databases and terminals refuse: they are shown as escapes."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def to_json(value: Any) -> Any:
    """A version of decoded headers for JSON columns and pages: one-way, readable, accepted by every database."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else ("NaN" if math.isnan(value) else str(value).replace("inf", "Infinity"))
        )
    if isinstance(value, (bytes, bytearray)):
        return {"!bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {printable(name if isinstance(name, str) else str(name)): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return printable(str(value))


def _decode_value(raw: bytes, offset: int, depth: int) -> tuple[Any, int]:
    if offset >= len(raw):
        raise WireError("it is cut short.")
    kind = raw[offset]
    offset += 1
    if kind == _LONG_STRING:
        data, offset = _take_long(raw, offset)
        return data.decode("utf-8", "surrogateescape"), offset
    number = _NUMBERS.get(kind)
    if number is not None:
        return _unpack(number, raw, offset)[0], offset + number.size
    if kind == _VOID:
        return None, offset
    reader = _READERS.get(kind)
    if reader is None:
        raise WireError(f"its field type {chr(kind)!r} is unknown.")
    return reader(raw, offset, depth)


def _end_of_nested(raw: bytes, offset: int) -> int | None:
    """Where the table or list that begins at `offset` ends; None where there is none, or its end is not there."""
    if raw[offset : offset + 1] not in (b"F", b"A"):
        return None
    try:
        return _take_long(raw, offset + 1)[1]
    except WireError:
        return None


def _unpack(layout: Struct, raw: bytes, offset: int) -> tuple[Any, ...]:
    if offset + layout.size > len(raw):
        raise WireError("it is cut short.")
    return layout.unpack_from(raw, offset)


def _take_long(raw: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = _unpack(_LENGTH, raw, offset)
    start = offset + _LENGTH.size
    end = start + length
    if end > len(raw):
        raise WireError("it is cut short.")
    return raw[start:end], end


def _read_bytes(raw: bytes, offset: int, _depth: int) -> tuple[bytes, int]:
    return _take_long(raw, offset)


def _read_table(raw: bytes, offset: int, depth: int) -> tuple[dict[str, Any], int]:
    data, offset = _take_long(raw, offset)
    entries, problem = scan_table(data, _deeper(depth))
    if problem:
        raise WireError(problem)
    return as_dict(entries), offset


def _read_array(raw: bytes, offset: int, depth: int) -> tuple[list[Any], int]:
    data, offset = _take_long(raw, offset)
    values, position, depth = [], 0, _deeper(depth)
    while position < len(data):
        value, position = _decode_value(data, position, depth)
        values.append(value)
    return values, offset


def _read_decimal(raw: bytes, offset: int, _depth: int) -> tuple[Decimal, int]:
    scale, unscaled = _unpack(_DECIMAL_IN, raw, offset)
    return Decimal(f"{unscaled}E-{scale}"), offset + _DECIMAL_IN.size


def _read_time(raw: bytes, offset: int, _depth: int) -> tuple[datetime | int, int]:
    (seconds,) = _unpack(_TIMESTAMP, raw, offset)
    try:
        return datetime.fromtimestamp(seconds, UTC), offset + _TIMESTAMP.size
    except (OverflowError, ValueError, OSError):  # often milliseconds; their sender's mistake is kept as it is
        return seconds, offset + _TIMESTAMP.size


_READERS: dict[int, Callable[[bytes, int, int], tuple[Any, int]]] = {
    _BYTES: _read_bytes,
    _TABLE: _read_table,
    _ARRAY: _read_array,
    _DECIMAL: _read_decimal,
    _TIME: _read_time,
}


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise WireError(f"it is nested more than {MAX_DEPTH} levels deep.")
    return depth + 1


def _encode_table(mapping: Mapping[str, Any], depth: int) -> bytes:
    pieces = []
    for name, value in mapping.items():
        pieces.append(encode_short(name, "The header name"))
        try:
            pieces.append(_encode_value(value, depth))
        except WireError as error:
            raise WireError(f'Header "{printable(name)}" cannot be sent: {error}') from None
    return b"".join(pieces)


def _encode_value(value: Any, depth: int) -> bytes:
    if isinstance(value, str):
        return _long("S", _encode_text(value, "the text"))
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _encode_int(value)
    if isinstance(value, float):
        return _encode_float(value)
    if value is None:
        return b"V"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _long("x", bytes(value))
    if isinstance(value, Decimal):
        return _encode_decimal(value)
    if isinstance(value, datetime):
        return _encode_time(value)
    return _encode_nested(value, depth)


def _encode_nested(value: Any, depth: int) -> bytes:
    if isinstance(value, Mapping):
        return _long("F", _encode_table(value, _deeper(depth)))
    if isinstance(value, (list, tuple)):
        depth = _deeper(depth)
        return _long("A", b"".join([_encode_value(item, depth) for item in value]))
    raise WireError(f"AMQP has no field type for {type(value).__name__}; give text, a number or a list of them.")


def _long(kind: str, data: bytes) -> bytes:
    return kind.encode() + _LENGTH.pack(len(data)) + data


def _encode_text(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise WireError(f"{what} holds a lone surrogate, which UTF-8 cannot carry: {error.reason}.") from None


def _encode_int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return _INT32.pack(b"I", value)
    if -(2**63) <= value < 2**63:
        return _INT64.pack(b"l", value)
    raise WireError("the integer does not fit 64 bits; send it as text.")


def _encode_float(value: float) -> bytes:
    if not math.isfinite(value):
        raise WireError(f"RabbitMQ closes the connection over {value}; send it as text.")
    return _DOUBLE.pack(b"d", value)


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if isinstance(exponent, int) and -255 <= exponent <= 10 and len(digits) <= 10:
        unscaled = int("".join(map(str, digits))) * 10 ** max(exponent, 0) * (-1 if sign else 1)
        if -(2**31) <= unscaled < 2**31:
            return _DECIMAL_OUT.pack(b"D", max(-exponent, 0), unscaled)
    raise WireError(f"the decimal {value} does not fit AMQP's 32-bit decimals; send it as text.")


def _encode_time(value: datetime) -> bytes:
    if value.tzinfo is None:
        raise WireError("the datetime has no time zone; AMQP carries points in time.")
    seconds = math.floor(value.timestamp())
    if seconds < 0:
        raise WireError("the datetime lies before 1970, where AMQP's timestamps begin.")
    return _UINT64.pack(b"T", seconds)
