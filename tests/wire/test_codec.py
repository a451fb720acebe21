"""The wire codec: nothing is lost, nothing is invented, and nothing that arrives makes it raise."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import data as pika_data
from pika import spec

from messaging.exceptions import WireError
from messaging.wire.fields import MAX_DEPTH, decode_table, encode_table, to_json
from messaging.wire.properties import Properties, prepend_header

names = st.text(max_size=40).filter(lambda name: len(name.encode()) <= 255)
moments = st.integers(0, 253_402_214_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
decimals = st.builds(
    lambda raw, scale: Decimal(raw).scaleb(-scale), st.integers(-(2**31), 2**31 - 1), st.integers(0, 9)
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(), st.binary(), decimals, moments,
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
tables = st.dictionaries(names, values, max_size=6)
short = st.none() | st.binary(max_size=255).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
octets = st.none() | st.integers(0, 255)
properties = st.builds(
    Properties,
    content_type=short, content_encoding=short, delivery_mode=octets, priority=octets, correlation_id=short,
    reply_to=short, expiration=short, message_id=short, timestamp=st.none() | st.integers(0, 2**64 - 1), type=short,
    user_id=short, app_id=short, cluster_id=short, raw_headers=st.none() | tables.map(encode_table),
)  # fmt: skip


@given(tables)
def test_a_table_comes_back_as_it_was(table: dict[str, Any]) -> None:
    assert decode_table(encode_table(table)) == table


@given(tables)
def test_encoding_what_was_decoded_gives_the_same_bytes(table: dict[str, Any]) -> None:
    raw = encode_table(table)
    assert encode_table(decode_table(raw)) == raw


def encoded_anew(decoded: Properties) -> bytes:
    """From the values that were read, not from the bytes that they were read from."""
    return replace(decoded).encode()


@given(properties)
def test_properties_come_back_to_the_byte(original: Properties) -> None:
    payload = original.encode()
    decoded = Properties.decode(payload)
    assert decoded == original
    assert decoded.problem == ""
    assert decoded.encode() == encoded_anew(decoded) == payload


@given(st.binary(max_size=400))
def test_decoding_never_raises(payload: bytes) -> None:
    decoded = Properties.decode(payload)
    assert isinstance(decoded.headers, dict)
    decoded.edited(drop_headers={"a"}, add_headers={"b": 1}, expiration=None)
    if not decoded.problem:
        assert decoded.encode() == encoded_anew(decoded) == payload


@given(st.binary(max_size=400))
def test_hostile_headers_never_raise_and_keep_their_bytes(raw: bytes) -> None:
    payload = Properties(raw_headers=raw, message_id="kept").encode()
    decoded = Properties.decode(payload)
    assert decoded.message_id == "kept"
    assert decoded.encode() == encoded_anew(decoded) == payload
    json.dumps(to_json(decoded.headers), allow_nan=False)


@given(tables, st.binary(max_size=30), st.sets(names, max_size=3))
def test_editing_keeps_the_bytes_of_other_headers(table: dict[str, Any], tail: bytes, dropped: set[str]) -> None:
    hostile = b"\x01z?" + tail  # a field type that nobody knows: all that follows is kept as it is
    original = Properties(raw_headers=encode_table(table) + hostile)
    edited = original.edited(drop_headers=dropped, add_headers={"ours": "new"}, user_id=None)
    kept = {name: value for name, value in table.items() if name not in dropped and name != "ours"}
    assert edited.raw_headers == encode_table({"ours": "new"}) + encode_table(kept) + hostile
    assert Properties.decode(edited.encode()).headers["ours"] == "new"


@given(properties, st.text(max_size=50))
def test_a_prepended_header_comes_first_and_disturbs_nothing(original: Properties, value: str) -> None:
    decoded = Properties.decode(prepend_header(original.encode(), "x-row", value))
    assert decoded.headers["x-row"] == value
    assert decoded.raw_headers == encode_table({"x-row": value}) + (original.raw_headers or b"")
    assert decoded.edited(raw_headers=original.raw_headers) == original


@given(st.binary(max_size=60))
def test_prepending_to_malformed_properties_is_a_wire_error_or_works(payload: bytes) -> None:
    try:
        result = prepend_header(payload, "x-row", "1")
    except WireError:
        return
    assert len(result) > len(payload)


pika_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(), decimals, moments
)
pika_values = st.recursive(
    pika_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


@given(st.dictionaries(names, pika_values, max_size=5))
def test_pika_reads_what_we_write(table: dict[str, Any]) -> None:
    raw = encode_table(table)
    decoded, _ = pika_data.decode_table(struct.pack(">I", len(raw)) + raw, 0)
    assert decoded == table


@given(st.dictionaries(names, pika_values, max_size=5))
def test_we_read_what_pika_writes(table: dict[str, Any]) -> None:
    pieces: list[bytes] = []
    pika_data.encode_table(pieces, table)
    assert decode_table(b"".join(pieces)[4:]) == table
    payload = b"".join(spec.BasicProperties(headers=table, message_id="m", timestamp=17, priority=3).encode())
    decoded = Properties.decode(payload)
    assert (decoded.headers, decoded.message_id, decoded.timestamp, decoded.priority) == (table, "m", 17, 3)


@pytest.mark.parametrize(
    "field, value",
    [
        (b"b\xff", -1), (b"B\xff", 255), (b"s\xff\xfe", -2), (b"U\xff\xfe", -2), (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xff", -1), (b"i\xff\xff\xff\xff", 2**32 - 1), (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1), (b"f" + struct.pack(">f", 1.5), 1.5), (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"t\x01", True), (b"V", None), (b"D\x02\x00\x00\x00\x96", Decimal("1.50")), (b"x\0\0\0\1\xff", b"\xff"),
        (b"S\0\0\0\1\xff", "\udcff"), (b"T" + struct.pack(">Q", 1_700_000_000_000_000), 1_700_000_000_000_000),
        (b"T" + struct.pack(">Q", 0), datetime(1970, 1, 1, tzinfo=UTC)), (b"F\0\0\0\3\1aV", {"a": None}),
        (b"A\0\0\0\3VB\7", [None, 7]),
    ],
)  # fmt: skip
def test_every_field_type_of_the_broker_is_read(field: bytes, value: Any) -> None:
    assert decode_table(b"\x01k" + field) == {"k": value}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01",
        b"\x05ab",
        b"\x01k",
        b"\x01kI\0",
        b"\x01kS\0\0\0\5ab",
        b"\x01k?",
        b"\x01kA\0\0\0\2I\0",
        b"\x01kF\0\0\0\1\1",
    ],
)
def test_malformed_tables_are_wire_errors(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_table(raw)


@pytest.mark.parametrize(
    "value, text",
    [
        (2**63, "64 bits"), (Decimal("1e20"), "decimal"), (Decimal("NaN"), "decimal"), ({1, 2}, "set"),
        (Decimal("0.12345678901"), "decimal"), (datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None), "time zone"),
        (datetime(1969, 1, 1, tzinfo=UTC), "1970"), (math.nan, "nan"), (-math.inf, "inf"), ("\ud800", "surrogate"),
        ({1: 2}, "header name"), ([{"deep": object()}], "deep"),
    ],
)  # fmt: skip
def test_what_amqp_cannot_carry_is_refused_by_name(value: Any, text: str) -> None:
    with pytest.raises(WireError, match=text) as caught:
        encode_table({"the-header": value})
    assert "the-header" in str(caught.value)


def test_depth_is_limited_in_both_directions() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode_table(encode_table({"k": value})) == {"k": value}
    with pytest.raises(WireError, match="deep"):
        encode_table({"k": [value]})
    raw = b"V"
    for _ in range(5000):
        raw = b"A" + struct.pack(">I", len(raw)) + raw
    decoded = Properties.decode(Properties(raw_headers=b"\x01k" + raw).encode())
    assert "deep" in decoded.problem
    assert decoded.headers == {}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"message_id": "é" * 128}, "message_id"), ({"priority": 256}, "priority"), ({"priority": -1}, "-1"),
        ({"delivery_mode": "2"}, "delivery_mode"), ({"timestamp": 2**64}, "timestamp"), ({"type": 5}, "type"),
        ({"colour": "red"}, "colour"),
    ],
)  # fmt: skip
def test_impossible_properties_are_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        Properties.build(**changes)


def test_the_first_of_equal_names_wins_and_editing_drops_them_all() -> None:
    properties = Properties(raw_headers=encode_table({"a": 1}) + encode_table({"a": 2, "b": 3}))
    assert properties.headers == {"a": 1, "b": 3}
    assert properties.edited(add_headers={"a": 4}).raw_headers == encode_table({"a": 4, "b": 3})


def test_time_zones_are_converted() -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert decode_table(encode_table({"at": moment}))["at"] == datetime(2024, 5, 1, 10, tzinfo=UTC)


def test_truncated_properties_keep_what_came_before() -> None:
    payload = Properties(content_type="text/plain", message_id="id").encode()
    decoded = Properties.decode(payload[:-1])
    assert decoded.content_type == "text/plain"
    assert decoded.message_id is None
    assert "message_id" in decoded.problem


def test_json_version_of_headers_is_accepted_everywhere() -> None:
    shown = to_json(
        {"nan": math.nan, "low": -math.inf, "raw": b"\xff", "bad": "\udcff\x00", "n\x00": 2**80, "d": Decimal("1.5"),
         "at": datetime(2024, 1, 1, tzinfo=UTC), "list": [(1, True)]}
    )  # fmt: skip
    assert shown == {
        "nan": "NaN", "low": "-Infinity", "raw": {"!bytes": "/w=="}, "bad": "\\xff\\x00", "n\\x00": 2**80, "d": "1.5",
        "at": "2024-01-01T00:00:00+00:00", "list": [[1, True]],
    }  # fmt: skip


@pytest.mark.parametrize("hostile", [b"A\0\0\0\1?", b"F\0\0\0\2\1a"])
def test_headers_behind_a_list_that_cannot_be_read_are_read(hostile: bytes) -> None:
    entry = b"\1k" + hostile
    properties = Properties(raw_headers=encode_table({"a": 1}) + entry + encode_table({"z": 2}))
    decoded = Properties.decode(properties.encode())
    assert (decoded.headers, "k" in decoded.problem) == ({"a": 1, "z": 2}, True)
    assert decoded.edited(drop_headers={"a"}).raw_headers == entry + encode_table({"z": 2})
    assert decoded.edited(drop_headers={"k"}).raw_headers == encode_table({"a": 1, "z": 2})
