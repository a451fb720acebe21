"""The properties of an AMQP 0-9-1 message, to and from the wire without loss.

The headers stay the bytes they arrived as; they are decoded for reading only, and edited entry by entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any

from messaging.exceptions import WireError
from messaging.wire.fields import TableEntry, as_dict, decode_short, encode_short, encode_table, scan_table

_FLAGS, _LENGTH, _UINT64 = Struct(">H"), Struct(">I"), Struct(">Q")
_HEADERS = 1 << 13
_OCTETS = frozenset({"delivery_mode", "priority"})
# In the order of the wire; the first has the highest flag bit. The two lowest bits are not properties.
_ORDER = tuple(
    (name, 1 << (15 - position))
    for position, name in enumerate((
        "content_type", "content_encoding", "raw_headers", "delivery_mode", "priority", "correlation_id", "reply_to",
        "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
    ))
)  # fmt: skip
_NAMES = frozenset(name for name, _ in _ORDER)


@dataclass(frozen=True, slots=True)
class Properties:
    """Every property of a message; None where it is absent.

    Short strings carry surrogate escapes for bytes that are not UTF-8.

    Attributes:
        timestamp: the number on the wire, by convention seconds since 1970.
        raw_headers: the exact bytes of the headers table, without its length prefix.
        problem: what could not be decoded, in words; "" when all of it could.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    raw_headers: bytes | None = None
    problem: str = ""
    _entries: list[TableEntry] | None = field(default=None, init=False, repr=False, compare=False)
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def decode(cls, payload: bytes) -> Properties:
        """Decode a content header's property flags and list. Never raises: `problem` says what was not understood."""
        values: dict[str, Any] = {}
        problem = _decode_list(payload, values)
        entries, trouble = scan_table(values.get("raw_headers") or b"")
        properties = cls(**values, problem=" ".join(filter(None, (trouble, problem))))
        object.__setattr__(properties, "_entries", entries)
        object.__setattr__(properties, "_encoded", None if problem else payload)
        return properties

    @classmethod
    def build(cls, *, headers: Mapping[str, Any] | None = None, **properties: Any) -> Properties:
        """Make properties from plain values. Raises WireError for what AMQP cannot carry."""
        unknown = sorted(properties.keys() - _NAMES)
        if unknown:
            raise WireError(f"AMQP has no property {', '.join(unknown)}.")
        if headers is not None:
            properties["raw_headers"] = encode_table(headers)
        built = cls(**properties)
        built.encode()
        return built

    def encode(self) -> bytes:
        """Encode flags and property list. Raises WireError naming the property that cannot be carried."""
        if self._encoded is not None:
            return self._encoded
        return encode_properties(**{name: getattr(self, name) for name, _ in _ORDER})

    @property
    def headers(self) -> dict[str, Any]:
        """The headers as far as they can be decoded; a new dict each time."""
        return as_dict(self._scan())

    def edited(
        self,
        *,
        drop_headers: Collection[str] = (),
        add_headers: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Properties:
        """A copy with other headers and properties; the entries that stay keep their bytes.

        New headers replace those of the same name, and go first so that they survive a tail that cannot be decoded.
        Raises WireError for what AMQP cannot carry.
        """
        added = encode_table(add_headers or {})
        dropped = {*drop_headers, *(add_headers or ())}
        raw = changes.pop("raw_headers", self.raw_headers)
        base = replace(self, raw_headers=raw, **changes)
        if raw is None:
            return replace(base, raw_headers=added) if add_headers else base
        entries = base._scan()
        tail = entries[-1].end if entries else 0
        kept = [raw[entry.start : entry.end] for entry in entries if entry.name not in dropped]
        return replace(base, raw_headers=b"".join([added, *kept, raw[tail:]]))

    @property
    def entries(self) -> Sequence[TableEntry]:
        """The entries of the headers table up to where it can be read, with their places in `raw_headers`."""
        return self._scan()

    def _scan(self) -> list[TableEntry]:
        if self._entries is None:
            object.__setattr__(self, "_entries", scan_table(self.raw_headers or b"")[0])
        return self._entries or []


def encode_properties(**values: Any) -> bytes:
    """Encode properties given by name, `raw_headers` among them; None for those that are absent.

    Raises WireError naming the property that cannot be carried.
    """
    flags, pieces, get = 0, [b""], values.get
    for name, flag, encode in _ENCODERS:
        value = get(name)
        if value is not None:
            flags |= flag
            pieces.append(encode(value))
    pieces[0] = _FLAGS.pack(flags)
    return b"".join(pieces)


def prepend_header(payload: bytes, name: str, value: str) -> bytes:
    """Put a text header in front of an encoded property list without decoding the rest: for every message sent.

    Raises WireError for a property list that is malformed, or a name that is too long.
    """
    text = value.encode("utf-8", "surrogateescape")
    entry = b"%b%c%b%b" % (encode_short(name, "The header name"), b"S", _LENGTH.pack(len(text)), text)
    try:
        (flags,) = _FLAGS.unpack_from(payload)
        if flags & 1:
            raise WireError("The properties use a flag word that AMQP 0-9-1 does not define.")
        offset = _FLAGS.size
        if flags & 0x8000:
            offset += 1 + payload[offset]
        if flags & 0x4000:
            offset += 1 + payload[offset]
        if not flags & _HEADERS:
            start = _FLAGS.pack(flags | _HEADERS) + payload[_FLAGS.size : offset]
            return b"".join((start, _LENGTH.pack(len(entry)), entry, payload[offset:]))
        (length,) = _LENGTH.unpack_from(payload, offset)
    except (IndexError, struct.error) as error:
        raise WireError("The properties are cut short.") from error
    return b"".join((payload[:offset], _LENGTH.pack(length + len(entry)), entry, payload[offset + _LENGTH.size :]))


def _decode_list(payload: bytes, values: dict[str, Any]) -> str:
    """Fill `values` from a property list; returns what is wrong with it."""
    if len(payload) < _FLAGS.size:
        return "The properties are cut short."
    (flags,) = _FLAGS.unpack_from(payload)
    offset = _FLAGS.size
    problem = "The properties use flags that AMQP 0-9-1 does not define." if flags & 3 else ""
    word = flags
    while word & 1 and offset + _FLAGS.size <= len(payload):
        (word,) = _FLAGS.unpack_from(payload, offset)
        offset += _FLAGS.size
    for name, flag in _ORDER:
        if flags & flag:
            try:
                values[name], offset = _decode_property(name, payload, offset)
            except WireError:
                if name == "raw_headers":
                    values[name] = payload[offset + _LENGTH.size :]
                return f"The properties are cut short at {_label(name)}."
    if offset != len(payload) and not problem:
        problem = f"The properties are followed by {len(payload) - offset} bytes that belong to none."
    return problem


def _decode_property(name: str, payload: bytes, offset: int) -> tuple[Any, int]:
    if name in _OCTETS:
        if offset >= len(payload):
            raise WireError("cut short")
        return payload[offset], offset + 1
    if name == "timestamp":
        if offset + 8 > len(payload):
            raise WireError("cut short")
        return _UINT64.unpack_from(payload, offset)[0], offset + 8
    if name == "raw_headers":
        start = offset + _LENGTH.size
        end = start + int.from_bytes(payload[offset:start])
        if end > len(payload) or start > len(payload):
            raise WireError("cut short")
        return payload[start:end], end
    return decode_short(payload, offset)


def _encoder(name: str) -> Callable[[Any], bytes]:
    """What encodes a property of that name."""
    if name == "raw_headers":
        return lambda value: _LENGTH.pack(len(value)) + bytes(value)
    if name in _OCTETS:
        return lambda value: bytes((_number(name, value, 255),))
    if name == "timestamp":
        return lambda value: _UINT64.pack(_number(name, value, 2**64 - 1))
    what = f"The property {name}"
    return lambda value: encode_short(value, what)


def _number(name: str, value: Any, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise WireError(f"The property {name} is {value!r}; it must be a whole number from 0 to {highest}.")
    return value


def _label(name: str) -> str:
    return "headers" if name == "raw_headers" else name


_ENCODERS = tuple((name, flag, _encoder(name)) for name, flag in _ORDER)
