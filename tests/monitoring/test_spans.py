"""Traces: which spans there are, how they belong together, and that nothing is sent for what rolled back."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import transaction
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.semconv._incubating.attributes import (
    code_attributes,
    error_attributes,
    messaging_attributes,
    server_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode
from pytest_django import Settings

from messaging import Message, Reject, publish, publish_many, signals
from messaging.conf import problems
from messaging.handlers import Registry, registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring import spans, traces
from messaging.operations import Operator, requeue
from messaging.processing.processor import Processor
from messaging.publishing.rows import seal
from messaging.wire.properties import Properties
from tests.consumers import consuming
from tests.deliveries import arrived, registered, sent
from tests.docs.blocks import find
from tests.options import set_options
from tests.relays import Desk, burst, relaying
from tests.site import ROOT
from tests.waiting import wait_until

OWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    """A tracer provider of the test's own, which this app makes its spans with, and all that has ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    @contextmanager
    def request(self) -> Iterator[int]:
        """A span as a web framework makes it; yields its trace id."""
        with self.tracer.start_as_current_span("request", Context()) as span:
            yield span.get_span_context().trace_id

    def of(self, kind: str = "", target: str = "") -> list[ReadableSpan]:
        """Ended spans of this app in the order of their beginning: of an operation, at a queue or an exchange."""
        ours = [one for one in self.exporter.get_finished_spans() if attributes(one).get(spans.OPERATION_TYPE)]
        found = [one for one in ours if kind in ("", attributes(one)[spans.OPERATION_TYPE])]
        found = [one for one in found if target in ("", attributes(one)[spans.TEMPLATE])]
        return sorted(found, key=lambda one: one.start_time or 0)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_ids(found: Sequence[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in found}


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == parent.context.span_id


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    traces.begin(traced.provider)
    yield traced
    traces.end()
    traces.watch()
    assert signals.tracing is None
    traced.provider.shutdown()


@pytest.fixture
def processor() -> Callable[..., Processor]:
    def build(function: Callable[..., Any], **options: Any) -> Processor:
        own = Registry()
        registered(own, function, **{"backoff": 0, **options})
        return Processor("default", "worker-1", handlers=own)

    return build


def here() -> int:
    """The span that is current."""
    return trace.get_current_span().get_span_context().span_id


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_one_trace_leads_from_a_request_to_the_second_handler_through_a_retry_and_a_requeue(
    vhost_url: str, settings: Settings, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "POLL_INTERVAL": 0.05, "LEASE": 600}}
    monkeypatch.setattr(registry, "_handlers", {})
    seen: list[int] = []

    def first(message: ReceivedMessage) -> None:
        seen.append(here())
        if message.attempt == 1 and message.round == 1:
            raise ValueError("not yet")
        publish("second.do", {}, message_id="second")

    async def second(message: ReceivedMessage) -> None:
        seen.append(here())
        if message.round == 1:
            raise Reject("no")

    registered(registry, first, queue="first", routing_keys=("first.do",), backoff=0)
    registered(registry, second, queue="second", routing_keys=("second.do",))
    with relaying(), consuming("first", "second", concurrency=2):
        with traced.request() as request, transaction.atomic():
            publish("first.do", {}, message_id="first")
        failed = ProcessedMessage.objects.filter(queue="second", state="failed")
        wait_until(failed.exists)
        with traced.request() as other:
            requeue(failed, Operator(name="test"))
        wait_until(ProcessedMessage.objects.filter(queue="second", state="processed").exists)
        wait_until(lambda: len(traced.of("settle")) == 4, what="the acknowledgements")
        wait_until(lambda: len(traced.of("send")) == 4, what="the confirms")

    assert trace_ids(traced.of()) == {request} != {other}
    created, created_second = traced.of("create")
    assert (created.name, created.kind) == ("create messaging", SpanKind.PRODUCER)
    assert attributes(created)[spans.DESTINATION] == "messaging:first.do"
    retried, done = traced.of("process", "first")
    refused, mended = traced.of("process", "second")
    assert [span.context.span_id for span in (retried, done, refused, mended)] == seen
    assert is_child(retried, created)
    assert is_child(done, created)
    assert is_child(created_second, done)
    assert is_child(refused, created_second)
    assert [link.context.span_id for link in mended.links] == [created_second.context.span_id]
    assert [span.status.status_code for span in (retried, done, refused, mended)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert [event.name for event in retried.events] == ["exception"]
    said = attributes(retried)
    assert (said[spans.ERROR_TYPE], said[spans.ATTEMPT], said[spans.ROUND]) == ("ValueError", 1, 1)
    assert (attributes(done)[spans.ATTEMPT], attributes(done)[spans.ROUND]) == (2, 2)
    assert said[spans.DESTINATION] == "messaging:first.do:first"
    assert (said[spans.SYSTEM], said[spans.MESSAGE_ID], said[spans.ROUTING_KEY]) == ("rabbitmq", "first", "first.do")
    assert {span.kind for span in traced.of("send")} == {SpanKind.CLIENT}
    assert all(is_child(span, created) for span in traced.of("send", "first") + traced.of("settle", "first"))


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_a_try_to_send_that_comes_to_nothing_says_why(desk: Desk, settings: Settings, traced: Traced) -> None:
    set_options(settings, UNROUTABLE=[], LEASE=600)  # never tried again
    row = publish("nobody.cares", {})
    burst()
    row.refresh_from_db()
    assert row.state == "failed"
    (span,) = traced.of("send")
    assert (span.status.status_code, attributes(span)[spans.ERROR_TYPE]) == (StatusCode.ERROR, "unroutable")
    assert "No queue takes it" in (span.status.description or "")


def publish_in_vain() -> None:
    with transaction.atomic():
        publish("a.b", {})
        raise RuntimeError


@pytest.mark.django_db(transaction=True)
def test_nothing_is_sent_for_what_rolled_back(traced: Traced) -> None:
    with pytest.raises(RuntimeError):
        publish_in_vain()
    with transaction.atomic():
        kept = publish("a.b", {})
        with pytest.raises(RuntimeError):
            publish_in_vain()
        assert traced.of() == []
    (span,) = traced.of()
    assert kept.headers["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"
    assert PublishedMessage.objects.get().headers == kept.headers


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_by_hand_a_message_is_published_without_a_span(traced: Traced) -> None:
    transaction.set_autocommit(False)
    try:
        publish("a.b", {})
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert PublishedMessage.objects.get().headers["traceparent"]
    assert traced.of() == []


@pytest.mark.django_db(transaction=True)
def test_a_context_that_the_publisher_gave_stays(traced: Traced, processor: Callable[..., Processor]) -> None:
    with traced.request():
        row = publish("work.do", {}, queue="work", headers={"traceparent": OWN})
    assert row.headers == {"traceparent": OWN}
    assert traced.of() == []
    processor(lambda message: None).process(sent(row), lambda: None)
    (span,) = traced.of("process")
    assert f"{span.context.trace_id:032x}" == OWN.split("-")[1]


@pytest.mark.django_db(transaction=True)
def test_what_json_cannot_hold_is_sent_with_the_context(traced: Traced) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    row = publish("work.do", {}, headers={"at": moment})
    headers = Properties.decode(seal(row)[2]).headers
    assert headers["traceparent"] == row.headers["traceparent"]
    assert headers["at"] == moment


@pytest.mark.django_db(transaction=True)
def test_spans_are_linked_where_the_setting_says_so(
    traced: Traced, settings: Settings, processor: Callable[..., Processor]
) -> None:
    settings.MESSAGING = {"default": {"TRACES": "link"}}
    with traced.request() as request:
        row = publish("work.do", {}, queue="work")
    processor(lambda message: None).process(sent(row), lambda: None)
    (created,), (done,) = traced.of("create"), traced.of("process")
    assert created.context.trace_id == request != done.context.trace_id
    assert done.parent is None
    assert [link.context.span_id for link in done.links] == [created.context.span_id]


@pytest.mark.django_db(transaction=True)
def test_an_alias_may_have_no_traces(traced: Traced, settings: Settings, processor: Callable[..., Processor]) -> None:
    settings.MESSAGING = {"default": {"TRACES": False}}
    row = publish("work.do", {}, queue="work")
    processor(lambda message: None).process(sent(row), lambda: None)
    assert (row.headers, traced.of()) == ({}, [])
    (problem,) = problems.of_alias("default", {"TRACES": "yes"})
    assert problem.hint == 'It is "parent", "link", or False for no spans.'


@pytest.mark.django_db(transaction=True)
def test_a_batch_is_one_span_that_is_linked_to_each_message(
    traced: Traced, processor: Callable[..., Processor]
) -> None:
    fails = [True]

    def many(messages: list[ReceivedMessage]) -> None:
        if len(messages) > 1 and fails.pop():
            raise ValueError("not together")

    handlers = processor(many, batch=10)
    (handler,) = handlers._station.handlers.all()
    rows = publish_many([Message("work.do", {"n": number}, queue="work") for number in range(3)])
    assert len({row.headers["traceparent"] for row in rows}) == 3
    foreign = arrived("from elsewhere")
    handlers.process_batch(handler, [*map(sent, rows), foreign])
    together, *alone = traced.of("process")
    created = {span.context.span_id for span in traced.of("create")}
    assert {link.context.span_id for link in together.links} == created
    assert attributes(together)[spans.BATCH_COUNT] == 4
    assert together.status.status_code is StatusCode.ERROR
    assert [span.status.status_code for span in alone] == [StatusCode.UNSET] * 4
    assert all(spans.BATCH_COUNT not in attributes(span) for span in alone)
    assert alone[-1].parent is None  # who sent it gave no context


@pytest.mark.django_db(transaction=True)
def test_a_handler_without_a_transaction_has_a_span_and_no_rerun_makes_another_message(
    traced: Traced, processor: Callable[..., Processor]
) -> None:
    def acts(message: ReceivedMessage) -> None:
        publish("next.do", {})
        if message.attempt == 1:
            raise ValueError("halfway")

    handlers = processor(acts, atomic=False)
    handlers.process(sent(publish("work.do", {}, queue="work", message_id="one")), lambda: None)
    retry = PublishedMessage.objects.get(round=2)
    handlers.process(sent(retry), lambda: None)
    first, again = traced.of("process")
    assert trace_ids([first, again]) == trace_ids(traced.of("create"))
    assert [span.status.status_code for span in (first, again)] == [StatusCode.ERROR, StatusCode.UNSET]
    row = PublishedMessage.objects.get(routing_key="next.do")
    (created,) = traced.of("create", "messaging")
    assert is_child(created, first)
    assert row.headers["traceparent"].split("-")[2] == f"{created.context.span_id:016x}"


@pytest.mark.django_db(transaction=True)
def test_the_line_about_a_failed_attempt_is_written_within_its_span(
    traced: Traced, processor: Callable[..., Processor]
) -> None:
    written: list[int] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(here())

    def fails(message: ReceivedMessage) -> None:
        raise ValueError("no")

    noting, logger = Noting(), logging.getLogger("messaging.consumer")
    logger.addHandler(noting)
    try:
        processor(fails).process(arrived("x"), lambda: None)
    finally:
        logger.removeHandler(noting)
    (span,) = traced.of("process")
    assert written == [span.context.span_id]


class Broken(Sampler):
    """One of the site's that raises."""

    def should_sample(self, *_args: Any, **_options: Any) -> SamplingResult:
        raise RuntimeError("no sample")

    def get_description(self) -> str:
        return "broken"


@pytest.mark.django_db(transaction=True)
def test_a_tracer_that_raises_changes_nothing_and_is_told_once(
    processor: Callable[..., Processor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "_complained", False)
    traces.begin(TracerProvider(sampler=Broken()))
    try:
        row = publish("work.do", {}, queue="work", message_id="one")
        processor(lambda message: None).process(sent(row), lambda: None)
    finally:
        traces.end()
        traces.watch()
    assert ProcessedMessage.objects.get().state == "processed"
    assert caplog.text.count("A span could not be made") == 1


class OfOdd(Sampler):
    """One that raises over the span of one routing key."""

    def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
        if "odd" in str((args, options)):
            raise RuntimeError("no sample")
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "of odd"


@pytest.mark.django_db(transaction=True)
def test_a_span_that_cannot_be_made_costs_the_other_messages_none() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=OfOdd())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.begin(provider)
    try:
        publish_many([Message(key, {}, queue=key) for key in ("first", "odd", "last")])
    finally:
        traces.end()
        traces.watch()
    assert PublishedMessage.objects.count() == 3
    assert [span.name for span in exporter.get_finished_spans()] == ["create first", "create last"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("text", [b"\xff", "00-zz-zz-01", "", 7, None])
def test_what_a_stranger_wrote_as_a_context_begins_a_trace(
    text: object, traced: Traced, processor: Callable[..., Processor]
) -> None:
    processor(lambda message: None).process(arrived("x", headers={"traceparent": text}), lambda: None)
    (span,) = traced.of("process")
    assert (span.parent, list(span.links)) == (None, [])
    assert ProcessedMessage.objects.get().state == "processed"


def test_the_names_are_those_of_the_conventions() -> None:
    modules = (messaging_attributes, server_attributes, error_attributes, code_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    ours = {value for name, value in vars(spans).items() if name.isupper() and isinstance(value, str)}
    named = {value for value in ours if "." in value and value != spans.DEFAULT_EXCHANGE and "://" not in value}
    assert {name for name in named if not name.startswith("durable_messaging.")} <= known
    assert len(named) > 12


NOTHING = """
import sys
{before}
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "messaging"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
)
django.setup()
from messaging import signals
{after}
from django.db import connection
connection.ensure_connection()
loaded = [name for name in sys.modules if name.startswith("opentelemetry")]
print(signals.tracing is not None, "messaging.monitoring.spans" in sys.modules, bool(loaded))
"""
PROVIDER = "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider"
SET = f"{PROVIDER}; trace.set_tracer_provider(TracerProvider())"


SHOWN = find("tracing")[0].text


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param("", "", "False False False", id="not asked for"),
        pytest.param("sys.modules['opentelemetry'] = None", "", "False False True", id="absent"),
        pytest.param("import opentelemetry.trace", "", "False False True", id="no provider"),
        pytest.param(SHOWN, "", "True True True", id="a provider before Django"),
        pytest.param("", SET, "True True True", id="a provider after it"),
    ],
)
def test_nothing_is_imported_before_there_is_a_tracer_provider(before: str, after: str, said: str) -> None:
    code = NOTHING.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (said, "")


def test_a_provider_that_cannot_be_used_is_told_and_keeps_no_connection_from_being_made() -> None:
    code = NOTHING.format(before="", after="from opentelemetry import trace; trace._TRACER_PROVIDER = object()")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "False True True"
    assert done.stderr.startswith("No spans are made: ")
    assert done.stderr.count("Traceback") == 1
