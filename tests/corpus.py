"""Messages that no friend would send: bodies, properties, headers, keys and ids, each with a name."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from messaging.wire.envelope import EXCHANGE, KEY, QUEUE, ROUND, ROUTING_KEY, ROW, hashed
from messaging.wire.fields import encode_table
from messaging.wire.properties import Properties
from tests.deliveries import Arrived

TARGET = "hostile"  # the queue that gets them, by a topic exchange or straight
HUGE = 16 * 1024 * 1024
LONE = b"\xff\xfe".decode("utf-8", "surrogateescape")
LONGEST = (b"\xff" * 255).decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Hostile:
    """One message.

    Attributes:
        name: says what is hostile about it.
        properties: property flags and list, as on the wire.
        straight: whether it goes through the default exchange, where headers of ours are believed.
    """

    name: str
    properties: bytes
    body: bytes = b"{}"
    routing_key: str = "hostile.key"
    straight: bool = False

    def arrived(self, *, redelivered: bool = False) -> Arrived:
        """Its delivery, without a broker."""
        exchange, key = ("", TARGET) if self.straight else ("messaging", self.routing_key)
        return Arrived(TARGET, exchange, key, Properties.decode(self.properties), self.body, redelivered)


def corpus() -> list[Hostile]:
    """All of them, in the order in which they are to be sent."""
    return [*_bodies(), *_properties(), *_ids(), *_keys(), *_headers(), *_forged(), *_malformed()]


def huge() -> Hostile:
    """The largest body that RabbitMQ 4 takes; in base64 it is larger still."""
    return _hostile("a huge body", b"\xff" * HUGE)


_numbers = itertools.count(1)


def _hostile(name: str, body: bytes = b"{}", /, **values: Any) -> Hostile:
    straight, key = values.pop("straight", False), values.pop("key", "hostile.key")
    given = {"message_id": f"hostile-{next(_numbers)}", "delivery_mode": 2} | values
    return Hostile(name, Properties(**given).encode(), body, key, straight)


BODIES = {
    "nothing": b"",
    "half an object": b'{"a":',
    "no UTF-8": b"\xff\xfe\xfd",
    "NUL": b'{"a":"\x00"}',
    "an escaped NUL": b'{"a":"\\u0000"}',
    "half a character": b'{"a":"\\ud800"}',
    "a deep nest": b"[" * 100_000,
    "a deep nest that is closed": b"[" * 20_000 + b"]" * 20_000,
    "an infinite number": b"[1e999, NaN, -Infinity, -0.0]",
    "a long number": b"9" * 10_000,
    "equal names": b'{"a":1,"a":2,"__proto__":{},"constructor":1}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "compressed": gzip.compress(b"{}", mtime=0),
    "a page": b"<script>alert(1)</script>{{ 7|add:7 }}{% csrf_token %}",
    "right to left": "\u202e\u2066\ufeff\U0001f4a3\u0301".encode(),
}
CONTENT_TYPES: dict[str, str | None] = {
    "none": None,
    "JSON": "application/json",
    "UTF-16": "application/json; charset=utf-16",
    "an unknown charset": "application/json; charset=no-such",
    "a codec": "text/plain; charset=rot13",
    "punycode": "text/plain; charset=punycode",
    "a charset with NUL": "text/plain; charset=u\x00",
    "no UTF-8": "text/plain; charset=" + LONE,
    "a long one": "x" * 255,
    "an image": "image/png",
    "odd syntax": ' TEXT/JSON ;;=;charset="";charset',
}


def _bodies() -> Iterator[Hostile]:
    for (what, body), (kind, content_type) in itertools.product(BODIES.items(), CONTENT_TYPES.items()):
        yield _hostile(f"{what} as {kind}", body, content_type=content_type)
    for encoding in ("gzip", "deflate", "UTF-8", "base64", LONGEST, "\x00"):
        yield _hostile(f"encoding {encoding!r}", BODIES["compressed"], content_encoding=encoding)


def _properties() -> Iterator[Hostile]:
    for octet in (0, 1, 3, 255):
        yield _hostile(f"priority {octet}", priority=octet)
        yield _hostile(f"delivery mode {octet}", delivery_mode=octet)
    for moment in (0, 2**31, 253_402_300_799, 253_402_300_800, 2**63, 2**64 - 1):
        yield _hostile(f"timestamp {moment}", timestamp=moment)
    for expiration in ("600000", "4294967295", "-1", "never", "1e3", LONE, ""):
        yield _hostile(f"expiration {expiration!r}", expiration=expiration)
    names = ("content_type", "correlation_id", "reply_to", "type", "user_id", "app_id", "cluster_id")
    for name, value in itertools.product(names, ("", LONGEST, "é" * 127, "\x00\n\x1b[31m", "<b onclick=x>")):
        given: dict[str, Any] = {name: value}
        yield _hostile(f"{name} {value[:9]!r}", **given)
    yield _hostile("a reply to a consumer that is not there", reply_to="amq.rabbitmq.reply-to.x")


IDS = (
    "\U0001f4a3", "id", "ID", "Id", "id ", "id  ", " id", "id\x00", "\x00", "é", "e\u0301", LONGEST, LONGEST[:254],
    "x" * 255, "\U0001f4a3" * 63, "../../etc/passwd", "'; DROP TABLE messaging_processedmessage; --", "\u202eid",
    "2026-01-01 00:00:00 ERROR forged\nline\r\x1b[2J", "{{ 7|add:7 }}", "<img src=x onerror=alert(1)>", "%s%n", "None",
)  # fmt: skip


def _ids() -> Iterator[Hostile]:
    for identity in IDS:
        yield _hostile(f"id {identity[:20]!r}", message_id=identity)
    for body in (b"1", b"2", b"3"):
        yield _hostile(f"an id taken before, body {body!r}", body, message_id="taken")
    for number in range(3):
        yield _hostile(f"no id, {number}", message_id=None)
        yield _hostile(f"an empty id, {number}", message_id="")


def _keys() -> Iterator[Hostile]:
    for key in ("", "." * 255, "x" * 255, LONGEST, "é" * 127, "\x00", "*.#", "#", "\n", "a..b", "\U0001f4a3"):
        yield _hostile(f"routing key {key[:9]!r}", key=key)


FIELDS = {
    "t": b"\x02", "b": b"\xff", "B": b"\xff", "s": b"\xff\xff", "u": b"\xff\xff", "U": b"\xff\xff", "I": b"\xff" * 4,
    "i": b"\xff" * 4, "l": b"\x80" + b"\0" * 7, "L": b"\xff" * 8, "f": b"\x7f\xc0\0\0", "d": b"\x7f\xf0" + b"\0" * 6,
    "D": b"\xff\x80\0\0\0", "T": b"\xff" * 8, "V": b"", "S": b"\0\0\0\2\xff\0", "x": b"\0\0\0\2\xff\0",
    "F": b"\0\0\0\0", "A": b"\0\0\0\0",
}  # fmt: skip


def _raw(name: str, raw: bytes, body: bytes = b"{}", **values: Any) -> Hostile:
    return _hostile(name, body, raw_headers=raw, **values)


def _headers() -> Iterator[Hostile]:
    for kind, value in FIELDS.items():
        yield _raw(f"field type {kind}", b"\1k" + kind.encode() + value)
        yield _raw(f"field type {kind} in a list", b"\1kA" + struct.pack(">I", len(value) + 1) + kind.encode() + value)
    nest = b"V"
    for depth in range(1, 101):
        nest = b"A" + struct.pack(">I", len(nest)) + nest
        if depth in (50, 63, 64, 65, 100):
            yield _raw(f"{depth} levels", b"\1k" + nest)
    yield _raw("equal names", encode_table({"a": 1}) + encode_table({"a": 2}) + encode_table({"A": 3}))
    odd = ("", LONGEST, "\x00", "\n", "é" * 127, "__class__")
    yield _raw("names of all kinds", encode_table(dict.fromkeys(odd, 1)))
    yield _raw("many", encode_table({f"h{number}": number for number in range(5000)}))
    yield _raw("a long text", encode_table({"text": "\x00" * 100_000}))
    yield _raw("as long as a frame takes", encode_table({"text": "x" * 130_000}))
    yield _raw("copies to itself", encode_table({"CC": [TARGET, "hostile.b"], "BCC": ["hostile.c"]}))
    for count in (-1, 0, 3, 99, 2**62):
        yield _raw(f"x-delivery-count {count}", encode_table({"x-delivery-count": count}))


def _forged() -> Iterator[Hostile]:
    victim = str(hashed(b"hostile-victim"))
    yield _hostile("the victim", b'"victim"', message_id="hostile-victim")
    ours = {QUEUE: TARGET, KEY: victim, ROUND: 2, EXCHANGE: "messaging", ROUTING_KEY: "hostile.key"}
    changes: list[dict[str, Any]] = [
        {}, {ROUND: 1}, {ROUND: 10**9}, {ROUND: 2**31 - 1}, {ROUND: 2**63 - 1}, {ROUND: -1}, {ROUND: 0}, {ROUND: True},
        {ROUND: "2"}, {ROUND: 2.5}, {ROUND: [2]}, {ROUND: None}, {KEY: "no uuid"}, {KEY: 7}, {KEY: None},
        {KEY: b"\xff"}, {KEY: "0" * 32}, {KEY: f"urn:uuid:{victim}"}, {QUEUE: "other"}, {QUEUE: b"\xff"}, {QUEUE: 1},
        {QUEUE: None}, {EXCHANGE: "x" * 70_000}, {EXCHANGE: ""}, {EXCHANGE: b"\xff\0"}, {EXCHANGE: {"a": 1}},
        {EXCHANGE: None}, {ROUTING_KEY: "y" * 70_000}, {ROUTING_KEY: "y" * 256}, {ROUTING_KEY: b"\xff\0"},
        {ROUTING_KEY: [1]}, {ROW: "1.1"}, {ROW: 7},
        {"x-messaging-causation-id": {"a": [1]}}, {"x-messaging-unknown": "?"},
    ]  # fmt: skip
    for (number, change), straight in itertools.product(enumerate(changes), (True, False)):
        headers, body = ours | change, f'"forged {number} {straight}"'.encode()
        yield _raw(f"forged {str(change)[:60]}, {straight}", encode_table(headers), body=body, straight=straight)
    for round_ in (2, 10**9, 2**31 - 1):  # keys of no row: it becomes one, and has to go round
        headers = ours | {KEY: str(hashed(b"nobody", str(round_).encode())), ROUND: round_}
        yield _raw(f"round {round_} of nothing", encode_table(headers), straight=True)
    yield _raw("a key without an id", encode_table(ours), body=b"9", straight=True, message_id=None)
    yield _raw("a key alone", encode_table({ROUTING_KEY: "admin.delete"}), straight=True)
    deaths: list[Any] = [
        "text", 1, [], [1], {}, [{}], [{"queue": TARGET}],
        [{"queue": TARGET, "exchange": {"a": 1}, "routing-keys": "x"}],
        [{"queue": TARGET, "reason": ["x"], "exchange": "x" * 70_000, "routing-keys": ["y" * 70_000]}],
        [{"queue": TARGET, "reason": "expired", "count": -1, "exchange": b"\xff", "routing-keys": [b"\xff"]}],
        [{"queue": TARGET, "reason": "<b>\0", "exchange": "", "routing-keys": [{"a": 1}], "time": "never"}],
    ]  # fmt: skip
    for death in deaths:
        yield _raw(f"x-death {str(death)[:50]}", encode_table({"x-death": death, "x-first-death-reason": death}))


def _malformed() -> Iterator[Hostile]:
    """What a broker may refuse: then it never arrives."""
    for kind in "?ZmN\x00\xff":
        yield _raw(f"unknown field type {kind!r}", b"\1aI\0\0\0\1\1k" + kind.encode("latin-1") + b"\0\0\0\0\1zV")
    table = encode_table({"a": "text", "b": [1, {"c": 2}]})
    for end in range(1, len(table), 3):
        yield _raw(f"a table cut at {end}", table[:end])
    whole = Properties(message_id="cut", type="type", raw_headers=table).encode()
    for end in (0, 1, 2, 5, len(whole) - 1):
        yield Hostile(f"properties cut at {end}", whole[:end])
    yield Hostile("properties with flags that are not defined", b"\xff\xff" + whole[2:])
    yield Hostile("properties with a tail", whole + b"tail")
