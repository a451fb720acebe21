"""Publishing writes a row in the caller's transaction, or refuses and writes nothing."""

from __future__ import annotations

import enum
import gzip
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections, router, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from messaging import Message, apublish, apublish_many, conf, publish, publish_many
from messaging.db.clock import Now, in_utc
from messaging.exceptions import ConfigurationError, PayloadError, PublishError
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import PublishedMessage
from messaging.publishing.publisher import CHANNEL
from messaging.publishing.rows import Composer, seal
from messaging.wire.bodies import MOST_DECODED, decode_body, encode_body, pack_body, storable, unpack_body
from messaging.wire.envelope import CAUSATION, Envelope, new_id
from messaging.wire.properties import Properties
from tests.settings import TEST_DB

Out = PublishedMessage.State
rows = PublishedMessage.objects
jsonable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
encodable = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def publish_and_fail() -> None:
    with transaction.atomic():
        publish("lost", 1)
        raise RuntimeError


def received(row: PublishedMessage) -> ReceivedMessage:
    exchange, routing_key, properties, body = seal(row)
    envelope = Envelope.received(exchange, routing_key, Properties.decode(properties), body, row.queue)
    return ReceivedMessage(envelope, queue="q")


class Key(str, enum.Enum):  # noqa: UP042 - StrEnum is text as it is
    PLACED = "orders.placed"


class Number(enum.IntEnum):
    FOUR = 4


class Header(str, enum.Enum):  # noqa: UP042
    OURS = "x-messaging-round"


@pytest.mark.django_db
def test_a_member_of_an_enum_is_sent_as_its_value(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"EXCHANGE": Key.PLACED}}
    text: dict[str, Any] = dict.fromkeys(("message_id", "correlation_id", "type", "reply_to"), Key.PLACED)
    row = publish(Key.PLACED, {Key.PLACED: Key.PLACED}, priority=Number.FOUR, headers={Key.PLACED: Key.PLACED}, **text)
    plain, straight = publish(Key.PLACED, Key.PLACED, content_type="text/plain"), publish("k", 1, queue=Key.PLACED)
    for one in (row, plain, straight):
        one.refresh_from_db()
    assert (row.exchange, row.routing_key, row.priority, straight.queue) == ("orders.placed", Key.PLACED, 4, Key.PLACED)
    assert {getattr(row, name) for name in text} == {"orders.placed"}
    assert row.headers == {"orders.placed": "orders.placed"}
    assert (row.body, plain.body) == ('{"orders.placed":"orders.placed"}', "orders.placed")


@pytest.mark.django_db
def test_a_line_break_at_the_end_of_a_name_is_no_part_of_it(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"EXCHANGE": "shop\r\n"}}
    row = publish("orders.placed\n", 1, reply_to="answers\n")
    assert (row.exchange, row.routing_key, row.reply_to) == ("shop", "orders.placed", "answers")
    assert publish("k", 1, queue="work\n").queue == publish("k", 1, exchange="work\n").exchange == "work"


@pytest.mark.django_db
def test_keys_that_are_not_text_are_written_as_json_does() -> None:
    assert publish("k", {1: "a", "2": [{None: "b"}], 1.5: "c"}).body == '{"1":"a","2":[{"null":"b"}],"1.5":"c"}'


@pytest.mark.django_db
def test_a_row_holds_all_that_is_sent() -> None:
    row = publish(
        "orders.placed",
        {"order": 17, "total": Decimal("1.50")},
        headers={"tenant": "acme", "n": 1},
        correlation_id="c",
        type="order",
        reply_to="answers",
        priority=4,
        expiration=1.5,
    )
    row.refresh_from_db()
    assert (row.state, row.alias, row.exchange, row.routing_key) == (
        Out.PENDING,
        "default",
        "messaging",
        "orders.placed",
    )
    uuid.UUID(row.message_id)
    exchange, routing_key, properties, body = seal(row)
    decoded = Properties.decode(properties)
    assert (exchange, routing_key, body) == ("messaging", "orders.placed", b'{"order":17,"total":"1.50"}')
    assert decoded.headers == {"tenant": "acme", "n": 1}
    assert (decoded.message_id, decoded.correlation_id, decoded.type) == (row.message_id, "c", "order")
    assert (decoded.reply_to, decoded.priority, decoded.expiration, decoded.delivery_mode) == ("answers", 4, "1500", 2)
    assert decoded.content_type == "application/json"
    assert decoded.timestamp == int(row.created_at.timestamp())


def test_new_ids_are_in_the_order_of_time_and_never_the_same() -> None:
    ids = []
    for _ in range(3):
        before = time.time_ns() // 1_000_000
        some = [uuid.UUID(new_id()) for _ in range(1000)]
        after = time.time_ns() // 1_000_000
        assert all(before <= one.int >> 80 <= after for one in some)
        assert {(one.version, one.variant) for one in some} == {(7, uuid.RFC_4122)}
        ids += some
    assert len(set(ids)) == 3000


@pytest.mark.django_db
def test_straight_to_a_queue_the_consumer_still_sees_the_routing_key() -> None:
    row = publish("hello.world", "Hello World", queue="hello")
    assert seal(row)[:2] == ("", "hello")
    assert received(row).routing_key == "hello.world"
    assert received(publish("hello", "x", queue="hello")).routing_key == "hello"
    assert seal(publish("k", "x", exchange=""))[:2] == ("", "k")


@pytest.mark.django_db
def test_headers_that_json_cannot_hold_arrive_as_they_were() -> None:
    headers = {"raw": b"\x00\xff", "when": datetime(2026, 1, 2, tzinfo=UTC), "plain": "x"}
    row = publish("k", 1, headers=headers)
    row.refresh_from_db()
    message = received(row)
    assert message.headers["raw"] == b"\x00\xff"
    assert message.headers["plain"] == "x"
    assert message.headers["when"] == headers["when"]
    assert message.id == row.message_id


@pytest.mark.django_db
@pytest.mark.parametrize("value", [b"\x00", datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.5"), 1e20, "plain"])
def test_whatever_its_headers_hold_a_message_says_when_it_was_published(value: Any) -> None:
    for row in (publish("k", 1, headers={"h": value}), publish_many([Message("k", 1, headers={"h": value})] * 2)[0]):
        row.refresh_from_db()
        assert received(row).properties.timestamp == int(row.created_at.timestamp())
        copy = row.copied()
        copy.save()
        copy.refresh_from_db()
        assert received(copy).properties.timestamp == int(copy.created_at.timestamp())


@pytest.mark.django_db
def test_the_round_of_a_message_without_a_timestamp_has_none_either() -> None:
    properties = Properties.build(message_id="theirs", headers={"h": b"x"})
    row = publish("k", 1, queue="q")
    row.wire, row.round = Envelope("", "q", properties, b"").to_wire(), 2
    assert received(row).properties.timestamp is None


@pytest.mark.django_db
@pytest.mark.parametrize("number", [1e16, 1e20, -1e300, -0.0, 0.0, 1.5])
def test_a_float_in_a_header_stays_that_float(number: float) -> None:
    headers = {"n": number, "list": [number], "table": {"n": number}}
    row = publish("k", 1, headers=headers)
    row.refresh_from_db()
    found = received(row).headers
    assert repr({name: found[name] for name in headers}) == repr(headers)


@pytest.mark.parametrize(
    "options",
    [
        {"routing_key": "x" * 256},
        {"routing_key": "ä" * 128},
        {"routing_key": "a\x00b"},
        {"routing_key": "\ud800"},
        {"payload": object()},
        {"payload": float("nan")},
        {"payload": {"x"}},
        {"payload": {"a": 1}, "content_type": "text/plain"},
        {"payload": "ä", "content_type": "text/plain; charset=ascii"},
        {"payload": "ä", "content_type": "text/plain; charset=klingon"},
        {"content_encoding": "x" * 256, "payload": b""},
        {"content_encoding": 5},
        {"content_encoding": "br"},
        {"message_id": "x" * 256},
        {"correlation_id": "x" * 256},
        {"type": "x" * 256},
        {"reply_to": "x" * 256},
        {"content_type": "x" * 256, "payload": b""},
        {"exchange": "x" * 256},
        {"queue": "x" * 256},
        {"queue": "q", "exchange": "e"},
        {"queue": "q\nq"},
        {"exchange": "e\re"},
        {"routing_key": "k\nk"},
        {"reply_to": "ans\nwers"},
        {"headers": {"CC": ["k\nk"]}},
        {"headers": {Header.OURS: 1}},
        {"payload": {1: "a", "1": "b"}},
        {"payload": [{"deep": ({None: 1, "null": 2},)}]},
        {"payload": {True: 1, "true": 2}},
        {"payload": {"a": {False: 1, "false": 2}}},
        {"payload": {-1.5: 1, "-1.5": 2}},
        {"payload": {1e300: 1, "1e+300": 2}},
        {"payload": {1.5: 1, "1.5": 2}},
        {"priority": -1},
        {"priority": 256},
        {"priority": True},
        {"priority": "high"},
        {"expiration": -1},
        {"expiration": float("nan")},
        {"expiration": "60"},
        {"delay": -1},
        {"delay": float("inf")},
        {"delay": timedelta(days=5000)},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"at": "tomorrow"},
        {"at": datetime(2026, 1, 1, tzinfo=UTC), "delay": 1},
        {"headers": {"x-messaging-round": 3}},
        {"headers": {"x-messaging-causation-id": "a"}},
        {"headers": {"x" * 256: 1}},
        {"headers": {"n": 2**64}},
        {"headers": {"o": object()}},
    ],
)
@pytest.mark.django_db
def test_what_can_never_be_sent_is_refused_and_nothing_written(options: dict[str, Any], settings: Settings) -> None:
    settings.USE_TZ = True  # without it a moment needs no time zone
    arguments = {"routing_key": "k", "payload": 1, **options}
    with pytest.raises(PublishError) as caught:
        publish(**arguments)
    assert str(caught.value)
    assert not rows.exists()


@pytest.mark.django_db
def test_an_unknown_alias_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no alias"):
        publish("k", 1, using="nowhere")


@pytest.mark.django_db
def test_an_outbox_that_no_relay_serves_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "another", {})
    settings.MESSAGING = {"default": {"DATABASES": ["another"]}}
    with pytest.raises(ConfigurationError, match='No relay serves the outbox of the database "default"'):
        publish("orders.placed", 1)
    assert not PublishedMessage.objects.exists()


@pytest.mark.django_db
def test_many_are_all_or_none() -> None:
    with pytest.raises(PublishError):
        publish_many([Message("k", 1), Message("k", object())])
    assert not rows.exists()
    assert publish_many([]) == []
    with CaptureQueriesContext(connection) as queries:
        saved = publish_many(Message("k", n) for n in range(50))
    assert len([query for query in queries if "INSERT" in query["sql"]]) < 5  # SQLite limits the values of one
    assert [row.pk for row in saved] == list(rows.order_by("pk").values_list("pk", flat=True))


@pytest.mark.django_db(transaction=True)
@pytest.mark.mode(1)
def test_a_rollback_takes_the_row_along() -> None:
    with pytest.raises(RuntimeError):
        publish_and_fail()
    with transaction.atomic():
        kept = publish("kept", 1)
        with pytest.raises(RuntimeError):
            publish_and_fail()
    assert list(rows.values_list("pk", flat=True)) == [kept.pk]


@pytest.mark.django_db
def test_delays_are_by_the_clock_of_the_database() -> None:
    publish("k", 1, delay=timedelta(minutes=5))
    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    timed = publish("k", 1, at=moment)
    assert rows.filter(
        publish_at=F("due_at"),
        publish_at__gt=Now() + timedelta(seconds=100),
        publish_at__lte=Now() + timedelta(seconds=300),
    ).exists()
    timed.refresh_from_db()
    assert in_utc(timed.publish_at) == in_utc(timed.due_at) == moment
    publish("past", 1, at=datetime(2001, 1, 1, tzinfo=UTC))
    assert rows.due("default").get().routing_key == "past"


def cause(*, atomic: bool) -> HandlerContext:
    properties = Properties.build(message_id="the-cause", correlation_id="talk")
    message = ReceivedMessage(Envelope("messaging", "k", properties, b""), queue="q")
    return HandlerContext(message=message, database="default", atomic=atomic, cause=uuid.UUID(int=7))


@pytest.mark.django_db
def test_inside_a_handler_the_cause_is_recorded() -> None:
    token = handler_context.set(cause(atomic=True))
    try:
        one, other = publish("k", 1), publish("k", 1, correlation_id="own")
    finally:
        handler_context.reset(token)
    assert (one.causation_id, one.correlation_id, other.correlation_id) == ("the-cause", "talk", "own")
    assert one.message_id != other.message_id
    assert Properties.decode(seal(one)[2]).headers[CAUSATION] == "the-cause"
    assert received(one).causation_id == "the-cause"


@pytest.mark.django_db
def test_a_rerun_of_a_handler_without_a_transaction_does_not_double() -> None:
    def run() -> list[PublishedMessage]:
        token = handler_context.set(cause(atomic=False))
        try:
            return [publish("k", 1), publish("k", 2), publish("other", 1), *publish_many([Message("k", 3)] * 2)]
        finally:
            handler_context.reset(token)

    first, second = run(), run()
    assert len({row.message_id for row in first}) == 5
    assert [row.pk for row in first] == [row.pk for row in second]
    assert rows.count() == 5


def test_a_handler_that_moved_to_another_database_and_names_it_gives_the_same_ids() -> None:
    def made(lives_in: str, named: str | None) -> str:
        current = replace(cause(atomic=False), database=lives_in, published={})
        return Composer(conf.get("default"), current, named).compose(Message("k", 1)).message_id

    assert made("default", "default") == made("other", "other") == made("default", None)
    assert made("default", "other") != made("default", "default")


@pytest.mark.parametrize("atomic", [True, False])
def test_headers_without_an_end_are_refused_in_any_handler(atomic: bool) -> None:
    headers: dict[str, Any] = {}
    headers["again"] = headers
    with pytest.raises(PublishError, match="headers cannot be sent"):
        Composer(conf.get("default"), cause(atomic=atomic)).compose(Message("k", 1, headers=headers))


@pytest.mark.django_db(transaction=True)
def test_async_code_publishes_too() -> None:
    assert async_to_sync(apublish)("k", 1).pk
    assert len(async_to_sync(apublish_many)([Message("k", 1), Message("k", 2)])) == 2
    assert rows.count() == 3


@pytest.mark.django_db(transaction=True)
def test_async_code_needs_no_query_for_what_the_database_filled_in() -> None:
    async def look() -> list[Any]:
        published = [await apublish("k", 1), *await apublish_many([Message("k", 1)])]
        return [value for row in published for value in (row.created_at, row.publish_at, row.due_at)]

    assert None not in async_to_sync(look)()


@pytest.mark.django_db
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
@pytest.mark.parametrize("payload", [{"order": [17] * 100}, "text " * 100, {"order": [17] * 100, "odd": 1.5}])
def test_a_payload_is_compressed_and_arrives_as_it_was(encoding: str, payload: Any) -> None:
    row = publish("k", payload, content_encoding=encoding, headers={"tenant": "acme"}, correlation_id="talk")
    row.refresh_from_db()
    message = received(row)
    assert (message.payload, row.payload) == (payload, payload)
    assert (message.properties.content_encoding, message.correlation_id) == (encoding, "talk")
    assert message.headers == row.headers == {"tenant": "acme"}
    assert (len(message.body) < 150) is (encoding != "identity")


@pytest.mark.django_db
def test_bytes_are_sent_as_they_are_whatever_encoding_is_named() -> None:
    message = received(publish("k", b"as it is", content_encoding="br"))
    assert (message.body, message.properties.content_encoding) == (b"as it is", "br")
    with pytest.raises(PayloadError, match="encoded as 'br', which is not decoded here"):
        _ = message.payload


def test_a_compressed_body_is_the_same_each_time() -> None:
    made = {Composer(conf.get("default"), cause(atomic=False)).compose(Message("k", 1, content_encoding=one)).message_id
            for one in ("gzip", "gzip", "deflate", None)}  # fmt: skip
    assert len(made) == 3


@pytest.mark.parametrize(
    ("body", "encoding", "decoded"),
    [
        (gzip.compress(b'{"a"', mtime=0) + gzip.compress(b":1}", mtime=0) + bytes(64), "gzip", {"a": 1}),
        (gzip.compress(b"7", mtime=0), "X-GZIP", 7),
        (zlib.compress(b"7"), "deflate", 7),
        (zlib.compress(b"7")[2:-4], "deflate", 7),
        (b"7", "UTF-8", 7),
    ],
)
def test_what_others_compress_is_decoded(body: bytes, encoding: str, decoded: Any) -> None:
    assert decode_body(body, "application/json", encoding) == decoded


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (gzip.compress(b"7", mtime=0)[:-6], "gzip", "cut short"),
        (b"7", "gzip", "not gzip"),
        (b"\xff\xff", "deflate", "not deflate"),
        (gzip.compress(bytes(MOST_DECODED + 1), mtime=0), "gzip", "more than 16 MiB once it is decompressed"),
        (b"7", "zstd", "'zstd', which is not decoded here"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_words(body: bytes, encoding: str, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        decode_body(body, "application/json", encoding)


class Elsewhere:
    """A router that reads from where nothing has arrived yet, as with a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.django_db
def test_what_the_database_filled_in_is_read_where_the_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "routers", [Elsewhere()])
    row = publish("k", 1)
    assert isinstance(row.created_at, datetime)


@pytest.mark.skipif(TEST_DB != "postgres", reason="NOTIFY is PostgreSQL's")
@pytest.mark.django_db(transaction=True)
def test_relays_are_notified_once_per_transaction() -> None:
    def notifications(queries: CaptureQueriesContext) -> int:
        return len([query for query in queries if "pg_notify" in query["sql"]])

    arrived: list[Any] = []
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
    raw: Any = connection.connection
    raw.add_notify_handler(arrived.append)
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        publish("k", 1)
        publish("k", 2)
        with transaction.atomic():
            publish("k", 3)
    assert notifications(queries) == 1
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        with pytest.raises(RuntimeError):
            publish_and_fail()
        publish("k", 2)
    assert notifications(queries) == 2  # the first one was rolled back with its savepoint
    with connection.cursor() as cursor:
        cursor.execute("UNLISTEN *")
    raw.remove_notify_handler(arrived.append)
    assert [notification.payload for notification in arrived] == ["default", "default"]


@pytest.mark.skipif(TEST_DB != "postgres", reason="NOTIFY is PostgreSQL's")
@pytest.mark.django_db(transaction=True)
def test_the_relays_of_each_alias_are_notified(settings: Settings) -> None:
    settings.MESSAGING = {"default": {}, "second": {}}
    arrived: list[Any] = []
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
    raw: Any = connection.connection
    raw.add_notify_handler(arrived.append)
    with transaction.atomic():
        publish("k", 1)
        publish("k", 1, using="second")
        publish("k", 1)
    with connection.cursor() as cursor:
        cursor.execute("UNLISTEN *")
    raw.remove_notify_handler(arrived.append)
    assert sorted(notification.payload for notification in arrived) == ["default", "second"]


@given(payload=jsonable)
@hypothesis_settings(deadline=None)
def test_json_payloads_survive(payload: Any) -> None:
    try:
        body, content_type = encode_body(payload, "application/json")
    except PayloadError:
        assert "\\ud" in repr(payload)  # lone surrogates are no text
        return
    assert decode_body(body, content_type) == payload


@given(payload=encodable)
def test_text_survives(payload: str) -> None:
    assert decode_body(*encode_body(payload, None)) == payload


@given(payload=st.binary())
def test_bytes_survive_the_wire_and_the_database(payload: bytes) -> None:
    assert decode_body(*encode_body(payload, None)) == payload
    text, encoding = pack_body(payload)
    assert "\x00" not in text
    assert unpack_body(text, encoding) == payload


@given(body=st.binary(), content_type=st.none() | encodable, encoding=st.none() | encodable)
def test_any_body_decodes_or_is_a_payload_error(body: bytes, content_type: str | None, encoding: str | None) -> None:
    with suppress(PayloadError):
        decode_body(body, content_type, encoding)


@given(
    charset=st.sampled_from(["utf-16", "base64", "rot13", "hex", "idna", "\x00", "undefined", "punycode"]),
    body=st.binary(),
)
def test_odd_charsets_are_payload_errors_at_worst(charset: str, body: bytes) -> None:
    for kind in ("application/json", "text/plain"):
        with suppress(PayloadError):
            decode_body(body, f"{kind}; charset={charset}")
    with suppress(PayloadError):
        encode_body("text", f"text/plain; charset={charset}")


@given(text=st.text(), limit=st.none() | st.integers(1, 20))
def test_shown_text_can_be_stored(text: str, limit: int | None) -> None:
    shown = storable(text, limit)
    shown.encode()
    assert "\x00" not in shown
    assert limit is None or len(shown) <= limit


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"routing_key": None}, "routing_key is None"),
        ({"headers": [1]}, "headers is list"),
        ({"headers": {"x-messaging-id": "1"}}, "is for this app alone"),
        ({"mandatory": "no"}, "mandatory is 'no'"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_in_words(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(PublishError, match=problem):
        publish(**{"routing_key": "orders.placed", "payload": 1, **arguments})
    assert not PublishedMessage.objects.exists()


def test_publish_many_takes_messages_alone() -> None:
    with pytest.raises(PublishError, match="takes Message objects, not int"):
        publish_many([1])  # type: ignore[list-item]
