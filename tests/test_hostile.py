"""Hostile input: whatever arrives ends as one row that people can read and requeue; what is damaged fails alone."""

from __future__ import annotations

import codecs
import contextlib
import encodings
import functools
import pkgutil
import threading
import uuid
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from messaging import Message, publish, publish_many
from messaging.admin.processed import headline
from messaging.exceptions import PayloadError, PublishError
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.operations import Operator, requeue
from messaging.processing.processor import Processor
from messaging.publishing.rows import seal
from messaging.relaying.relay import Relay
from messaging.wire.bodies import CHARSETS, NO_CHARSETS, decode_body
from messaging.wire.envelope import EXCHANGE, KEY, QUEUE, ROUND, ROUTING_KEY, hashed
from messaging.wire.fields import encode_table
from messaging.wire.properties import Properties
from tests.admin_rows import INCOMING, OUTGOING, QUEUES
from tests.corpus import CONTENT_TYPES, FIELDS, IDS, LONGEST, TARGET, Hostile, corpus
from tests.deliveries import Arrived, arrived, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
ENDED = {State.PROCESSED, State.FAILED}
PARTS = pytest.mark.parametrize("part", [slice(0, None, 6), pytest.param(slice(None), marks=pytest.mark.slow)])


def look(message: ReceivedMessage) -> None:
    """A handler as people write them: it reads, publishes, and fails the first time."""
    publish("after.hostile", {"id": "known"}, headers={"seen": len(message.headers)})
    if message.attempt == 1:
        raise ValueError(f"not yet: {message.payload!r}"[:500])


def processor_of(function: Any = look, **options: Any) -> Processor:
    registry = Registry()
    registered(registry, function, queue=TARGET, backoff=0, max_attempts=2, **options)
    return Processor("default", "worker-1", handlers=registry)


def run(processor: Processor, delivery: Arrived) -> None:
    """Process a delivery and the rounds that follow from it, as relay and consumer do."""
    assert processor.process(delivery, lambda: None).action == "ack"
    while (row := PublishedMessage.objects.filter(inbox__isnull=False, state="pending").first()) is not None:
        PublishedMessage.objects.filter(pk=row.pk).update(state="published", due_at=None)
        assert processor.process(sent(row), lambda: None).action == "ack"


def new_row(known: set[int]) -> ProcessedMessage:
    [row] = ProcessedMessage.objects.exclude(pk__in=known)
    return row


@PARTS
def test_everything_hostile_ends_as_one_row_and_can_be_requeued(part: slice) -> None:
    processor, known = processor_of(), set[int]()
    for hostile in corpus()[part]:
        run(processor, hostile.arrived())
        row = new_row(known)
        assert row.state in ENDED, hostile.name
        assert bool(row.error) == (row.state == State.FAILED), hostile.name
        assert row.raw_body == hostile.body, hostile.name
        if row.message_id:
            run(processor, hostile.arrived(redelivered=True))
            assert new_row(known).pk == row.pk, hostile.name
        if row.state == State.FAILED:
            assert requeue(ProcessedMessage.objects.filter(pk=row.pk), Operator(name="olga")).done == [row.pk]
            run(processor, sent(next_round(row)))
            again = new_row(known)
            assert (again.state in ENDED, again.round > row.round) == (True, True), hostile.name
        known.add(row.pk)
    assert all(row.raw_body == b'"victim"' for row in ProcessedMessage.objects.filter(message_id="hostile-victim"))


def next_round(row: ProcessedMessage) -> PublishedMessage:
    found = PublishedMessage.objects.get(inbox=row, state="pending")
    PublishedMessage.objects.filter(pk=found.pk).update(state="published", due_at=None)
    return found


@PARTS
def test_dead_letters_of_all_kinds_end_as_failed(part: slice) -> None:
    processor, known = processor_of(), set[int]()
    for hostile in corpus()[part]:
        delivery = hostile.arrived()
        delivery.queue, delivery.exchange, delivery.routing_key = f"{TARGET}.dead", "", f"{TARGET}.dead"
        assert processor.record_dead(delivery).action == "ack"
        if hostile.straight:  # headers of ours are believed there, so that several can be one
            known.update(ProcessedMessage.objects.values_list("pk", flat=True))
            continue
        row = new_row(known)
        assert (row.state, bool(row.error)) == (State.FAILED, True), hostile.name
        known.add(row.pk)


@pytest.mark.parametrize(
    ("language", "part"),
    [
        ("en", slice(0, None, 20)),
        ("zh-hans", slice(1, None, 30)),
        pytest.param("en", slice(None), marks=pytest.mark.slow),
        pytest.param("zh-hans", slice(None), marks=pytest.mark.slow),
    ],
)
def test_the_console_shows_and_requeues_everything_hostile(admin_client: Client, language: str, part: slice) -> None:
    def refuse(message: ReceivedMessage) -> None:
        raise ValueError(f"refused: {message.payload!r} {message.headers!r}"[:3000])

    processor = processor_of(refuse)
    for hostile in corpus()[part]:
        processor.process(hostile.arrived(), lambda: None)
    ProcessedMessage.objects.update(state=State.FAILED)
    admin_client.cookies["django_language"] = language
    rows = list(ProcessedMessage.objects.order_by("pk"))
    assert len(rows) > 10
    for row in rows:
        headline(row)
        for page in (f"{INCOMING}{row.pk}/change/", f"{INCOMING}{row.pk}/payload/"):
            assert admin_client.get(page).status_code == 200, (page, row)
        if row.message_id:
            assert admin_client.get(INCOMING, {"q": row.message_id}).status_code == 200, row
    for number in range(1, 4):
        assert admin_client.get(f"{INCOMING}?state=failed&p={number}").status_code in (200, 302)
    data = {"action": "requeue", "_selected_action": [row.pk for row in rows], "post": "yes", "select_across": "1"}
    assert admin_client.post(INCOMING, data, follow=True).status_code == 200
    assert ProcessedMessage.objects.exclude(state=State.REQUEUED).count() == 0
    for out in PublishedMessage.objects.filter(inbox__isnull=False)[:400]:
        assert admin_client.get(f"{OUTGOING}{out.pk}/change/").status_code == 200, out


@pytest.mark.parametrize("value", ["\x00", "\udcff", "a\x00b", "💣", "x" * 5000, "'\"<>", "2147483648", "-1", "[]"])
def test_hostile_filters_are_no_error(admin_client: Client, value: str) -> None:
    for page in (INCOMING, OUTGOING):
        for name in ("q", "state", "queue", "handler", "period", "fingerprint", "origin", "alias", "p", "o"):
            quoted = value.encode("utf-8", "surrogateescape")
            assert admin_client.get(page, {name: quoted}).status_code < 500, (page, name)


def test_an_address_that_no_page_leads_to_is_refused_before_it_is_read(admin_client: Client, client: Client) -> None:
    row = ProcessedMessage.objects.create(alias="default", queue="q", key=uuid.uuid4(), digest=uuid.uuid4())
    pages = (
        INCOMING,
        OUTGOING,
        QUEUES,
        f"{INCOMING}{row.pk}/change/",
        f"{INCOMING}{row.pk}/requeue/",
        f"{OUTGOING}add/",
    )
    for page in (*pages, "/admin/messaging/worker/", "/admin/messaging/auditrecord/"):
        for user in (admin_client, client):
            answer = user.get(f"{page}?q={'x' * 1_000_000}")
            assert (answer.status_code, len(answer.content) < 100) == (414, True), page


# Whatever bytes come

short = st.binary(max_size=255).map(lambda raw: raw.decode("utf-8", "surrogateescape")) | st.sampled_from(IDS)
octet = st.none() | st.integers(0, 255)
values = st.one_of(
    st.binary(max_size=40), st.text(max_size=40), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.none(),
    st.just("x" * 70_000), st.lists(st.text(max_size=5), max_size=3),
)  # fmt: skip
names = st.sampled_from([QUEUE, KEY, ROUND, EXCHANGE, ROUTING_KEY, "x-death", "x-delivery-count", "CC", "a"])
tables = st.dictionaries(names, values, max_size=6).map(encode_table)
plausible = st.fixed_dictionaries(
    {QUEUE: st.just(TARGET), KEY: st.uuids(version=4).map(str), ROUND: st.integers(-1, 2**40)},
    optional={EXCHANGE: values, ROUTING_KEY: values},
).map(encode_table)
fields = st.builds(
    lambda kind, raw: b"\1k" + kind.encode() + raw, st.sampled_from([*FIELDS, "?"]), st.binary(max_size=20)
)
properties = st.one_of(
    st.binary(max_size=200),
    st.builds(
        Properties, message_id=st.none() | short, content_type=short | st.sampled_from([*CONTENT_TYPES.values()]),
        correlation_id=st.none() | short, type=short, priority=octet, timestamp=st.none() | st.integers(0, 2**64 - 1),
        expiration=st.none() | short, raw_headers=st.none() | st.binary(max_size=90) | tables | plausible | fields,
    ).map(Properties.encode),
)  # fmt: skip
bodies = st.binary(max_size=100) | st.sampled_from([b"[" * 5000])
hostiles = st.builds(Hostile, st.just("found"), properties, bodies, short, st.booleans())
budget = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@budget(max_examples=40)
@given(hostile=hostiles, atomic=st.booleans(), redelivered=st.booleans())
def test_whatever_arrives_is_one_row_however_often_it_comes(hostile: Hostile, atomic: bool, redelivered: bool) -> None:
    ProcessedMessage.objects.all().delete()
    PublishedMessage.objects.all().delete()
    processor, acks = processor_of(atomic=atomic), list[str]()
    delivery = hostile.arrived(redelivered=redelivered)
    settlement = processor.process(delivery, lambda: acks.append("ack"))
    assert (settlement.action, acks) in (("ack", []), ("done", ["ack"]))
    row = ProcessedMessage.objects.get()
    assert row.raw_body == hostile.body
    delivery.redelivered = True
    if row.message_id:
        processor.process(delivery, lambda: None)
        assert ProcessedMessage.objects.count() == 1
    for pending in PublishedMessage.objects.filter(inbox__isnull=False, state="pending"):
        processor.process(sent(pending), lambda: None)
    for row in ProcessedMessage.objects.filter(state__in=ENDED):
        assert bool(row.error) == (row.state == State.FAILED)


# What a stranger cannot do


@pytest.mark.parametrize("state", [State.PROCESSED, State.FAILED, State.RETRYING, State.DISCARDED])
@pytest.mark.parametrize("round_", [1, 2, 3, 10**9, 2**31 - 1])
def test_a_stranger_who_knows_a_key_changes_no_row_and_loses_nothing(state: str, round_: int) -> None:
    processor = processor_of(lambda message: None)
    assert processor.process(arrived("real", queue=TARGET, message_id="real"), lambda: None).action == "ack"
    ProcessedMessage.objects.update(state=state, round=2)
    before = ProcessedMessage.objects.values().get()
    headers = {QUEUE: TARGET, KEY: str(hashed(b"real")), ROUND: round_, EXCHANGE: "messaging", ROUTING_KEY: "work.do"}
    for exchange, key in (("", TARGET), ("messaging", "work.do")):
        forged = arrived(f"forged {exchange}", queue=TARGET, headers=headers, routing_key=key)
        forged.exchange = exchange
        assert processor.process(forged, lambda: None).action == "ack"
    assert ProcessedMessage.objects.values().get(pk=before["id"]) == before
    assert ProcessedMessage.objects.count() == 3


def test_a_routing_key_cannot_be_forged_through_an_exchange() -> None:
    seen: list[str] = []
    processor = processor_of(lambda message: seen.append(message.routing_key))
    headers = {ROUTING_KEY: "admin.delete", EXCHANGE: "admin", QUEUE: TARGET, KEY: str(uuid.uuid4()), ROUND: 2}
    for forged in (headers, {ROUTING_KEY: "admin.delete"}):
        processor.process(arrived(queue=TARGET, routing_key="public.hello", headers=forged), lambda: None)
    assert seen == ["public.hello", "public.hello"]


def test_another_queues_retry_that_was_forwarded_goes_round_and_ends() -> None:
    processor = processor_of()
    headers = {QUEUE: "other", KEY: str(uuid.uuid4()), ROUND: 2, EXCHANGE: "theirs", ROUTING_KEY: "their.key"}
    forwarded = arrived("x", queue=TARGET, headers=headers)
    run(processor, forwarded)
    row = ProcessedMessage.objects.get()
    assert (row.state, row.exchange, row.routing_key) == (State.PROCESSED, "messaging", "work.do")


@pytest.mark.parametrize("round_", [10**9, 2**31 - 1])
def test_a_forged_round_cannot_send_a_message_beyond_the_last_one(round_: int) -> None:
    headers = {QUEUE: TARGET, KEY: str(uuid.uuid4()), ROUND: round_}
    delivery = arrived("x", queue=TARGET, headers=headers)
    delivery.exchange, delivery.routing_key = "", TARGET
    run(processor_of(), delivery)
    assert ProcessedMessage.objects.get().state == State.PROCESSED


def test_a_handler_can_publish_whatever_id_its_message_has() -> None:
    for identity in (LONGEST, "\x00" * 255, "é" * 127):
        processor_of(lambda message: publish("k", 1)).process(arrived(queue=TARGET, message_id=identity), lambda: None)
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 3
    for row in PublishedMessage.objects.all():
        seal(row)


def test_a_text_in_punycode_is_refused_at_once() -> None:
    body = b"a" * 2_000_000
    run(processor_of(), arrived(body, queue=TARGET, content_type="text/plain; charset=PUNYCODE"))
    row = ProcessedMessage.objects.get()
    assert (row.state, "unknown encoding" in row.error) == (State.FAILED, True)


@pytest.mark.parametrize("charset", ["UTF-8", "utf8", "Latin-1", "ISO_8859-1:1987", '"cp1252"', "koi8-u", "gb18030"])
def test_a_text_is_read_in_every_charset_that_python_knows(charset: str) -> None:
    text = "дом" if charset.startswith("koi") else "Grüße"
    assert decode_body(text.encode(charset.strip('"')), f"text/plain; charset={charset}") == text


def test_charsets_that_nobody_knows_are_not_remembered() -> None:
    looked_up: list[str] = []

    def find(name: str) -> None:
        looked_up.append(name)

    codecs.register(find)
    try:
        for number in range(100):
            for charset in (f"unknown-{number}", f"utf{'-' * number}-8", "rot13", "hex", "x" * 1000):
                with contextlib.suppress(PayloadError):
                    decode_body(b"a", f"text/plain; charset={charset}")
    finally:
        codecs.unregister(find)
    assert looked_up == []
    assert not [name for name in encodings._cache if "unknown" in name]  # type: ignore[attr-defined]


def test_every_charset_of_pythons_is_known_or_refused_on_purpose() -> None:
    there = {module.name for module in pkgutil.iter_modules(encodings.__path__)} - {"aliases"}
    assert there - set(CHARSETS) - NO_CHARSETS == set()


# What goes out

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
    | st.datetimes() | st.decimals() | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
texts = st.text(max_size=300) | st.text(alphabet=st.characters(), min_size=250, max_size=260) | st.characters()
messages = st.fixed_dictionaries(
    {"routing_key": texts, "payload": anything},
    optional={
        "headers": st.dictionaries(texts | st.sampled_from(["CC", "BCC"]), anything, max_size=3),
        "message_id": texts, "correlation_id": texts,
        "content_type": texts | st.sampled_from([*CONTENT_TYPES.values()]), "type": texts, "reply_to": texts,
        "priority": anything, "expiration": anything, "delay": anything,
        "at": st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-14))])) | anything,
        "queue": texts, "exchange": texts,
    },
)  # fmt: skip


@budget(max_examples=150)
@given(options=messages)
def test_what_is_published_can_be_sent_or_is_refused(options: dict[str, Any]) -> None:
    with transaction.atomic():
        try:
            row = publish_many([Message(**options)])[0]
        except PublishError:
            pass
        else:
            row.refresh_from_db()
            _exchange, _key, raw, _body = seal(row)
            assert Properties.decode(raw).problem == ""
            assert len(raw) < 128 * 1024 - 200
        transaction.set_rollback(True)


def endless() -> dict[str, Any]:
    headers: dict[str, Any] = {}
    headers["again"] = headers
    return headers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"headers": endless()}, "deep"), ({"headers": {"a": "x" * 130_000}}, "bytes"),
        ({"headers": {"CC": "work"}}, "CC"), ({"headers": {"BCC": [1]}}, "BCC"),
        ({"reply_to": "amq.rabbitmq.reply-to"}, "reply_to"), ({"content_type": 5}, "content_type"),
        ({"payload": endless()}, "JSON"),
        ({"content_type": "application/json; charset=ascii", "payload": ["é"]}, "JSON"),
    ],
)  # fmt: skip
def test_what_could_never_be_sent_is_refused_by_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PublishError, match=text):
        publish("k", options.pop("payload", 1), **options)
    assert PublishedMessage.objects.count() == 0


def test_json_is_written_in_the_charset_that_it_names() -> None:
    row = publish("k", {"a": "é"}, content_type="application/json; charset=utf-16")
    assert row.payload == {"a": "é"}


# Rows that someone damaged

DAMAGE: list[dict[str, Any]] = [
    {"body": "!no base64!", "body_encoding": "base64"}, {"body": "YQ", "body_encoding": "base64"},
    {"body_encoding": "gzip"}, {"wire": b""}, {"wire": b"\0\1"}, {"wire": b"\xff\xff\xff"},
    {"wire": b"\0\0\0\0\xff\xff"},
    {"wire": b"\0\0\0\0\x20\0\0\0\0\xffS"}, {"headers": [1, 2]}, {"headers": "text"}, {"headers": 7},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_outgoing_row_fails_alone_and_is_shown(admin_client: Client, damage: dict[str, Any]) -> None:
    rows = publish_many([Message(key, 1, headers={"h": b"\0"}, mandatory=False) for key in "abc"])
    PublishedMessage.objects.filter(pk=rows[1].pk).update(**({"wire": None} if "headers" in damage else {}) | damage)
    Relay("default").run(threading.Event(), burst=True)
    states = dict(PublishedMessage.objects.order_by("pk").values_list("pk", "state"))
    assert list(states.values()) == ["published", "failed", "published"]
    assert "cannot be encoded" in PublishedMessage.objects.get(pk=rows[1].pk).error
    shown(admin_client, OUTGOING, rows[1].pk)


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_incoming_row_fails_alone_and_is_shown(admin_client: Client, damage: dict[str, Any]) -> None:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError("no")

    processor = processor_of(fail)
    processor.process(arrived("x", queue=TARGET, message_id="m"), lambda: None)
    retry = next_round(ProcessedMessage.objects.get())
    ProcessedMessage.objects.update(**damage)
    registry = Registry()
    registered(registry, fail, queue=TARGET, max_attempts=9, backoff=0)
    again = Processor("default", "worker-1", handlers=registry).process(sent(retry), lambda: None)
    assert again.action == "ack"
    row = ProcessedMessage.objects.get()
    assert row.state == (State.RETRYING if "headers" in damage else State.FAILED)
    requeue(ProcessedMessage.objects.all(), Operator(name="olga"))
    shown(admin_client, INCOMING, row.pk)


def shown(client: Client, base: str, pk: int) -> None:
    for page in (base, f"{base}{pk}/change/", f"{base}{pk}/payload/"):
        assert client.get(page).status_code == 200, page
