"""A span for each step of a message, by OpenTelemetry's conventions for messaging. Imported once there are traces.

The headers `traceparent`, `tracestate` and `baggage` (W3C) are written into the outbox row, and stay in the message on
every retry and requeue. What goes wrong here is logged once, and changes nothing for the message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from django.db import transaction
from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

from messaging.conf import AliasSettings
from messaging.models import PublishedMessage
from messaging.wire.envelope import Envelope

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("messaging.traces")

HEADERS = ("traceparent", "tracestate", "baggage")
LONGEST = 1024  # bytes of one of these headers: they share a frame with the message's own
SCHEMA = "https://opentelemetry.io/schemas/1.40.0"
# By the conventions; those that begin with `durable_messaging` are our own.
SYSTEM, DESTINATION, TEMPLATE = "messaging.system", "messaging.destination.name", "messaging.destination.template"
OPERATION, OPERATION_TYPE = "messaging.operation.name", "messaging.operation.type"
MESSAGE_ID, CONVERSATION_ID = "messaging.message.id", "messaging.message.conversation_id"
BODY_SIZE, BATCH_COUNT = "messaging.message.body.size", "messaging.batch.message_count"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
SERVER, PORT, ERROR_TYPE, FUNCTION = "server.address", "server.port", "error.type", "code.function.name"
ALIAS, ROUND, ATTEMPT = "durable_messaging.alias", "durable_messaging.round", "durable_messaging.attempt"
EMBEDDED = "django_durable_messaging"  # the system, where that is the embedded broker
DEFAULT_EXCHANGE = "amq.default"

_running: ContextVar[Span | None] = ContextVar("messaging_span", default=None)  # of the attempt that is under way
_complained = False


def _harmless(function: Callable[P, T]) -> Callable[P, T | None]:
    """Have it return None where it fails, as over a sampler or a processor of the site's."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        global _complained
        try:
            return function(*args, **kwargs)
        except Exception:
            level = logging.DEBUG if _complained else logging.WARNING
            logger.log(level, "A span could not be made; further ones are told at the level DEBUG.", exc_info=True)
            _complained = True
            return None

    return guarded


class Spans:
    """Makes the spans of one process. `signals.tracing` is one of these, or None.

    Args:
        provider: of the tracer.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("messaging", schema_url=SCHEMA)

    # Publishing

    @_harmless
    def create(self, rows: Sequence[PublishedMessage], settings: AliasSettings) -> Callable[..., None] | None:
        """Begin a span for each of these rows, which are about to be saved, and write its context into the headers.

        A row whose publisher gave it a context of its own keeps that, and has no span. Returns what is to be called
        with the rows that were saved, and their database: it has the spans end now, and leave once that is committed.
        Those of what is rolled back never end, and so never leave this process.
        """
        made = [(row, span) for row in rows if settings.traces and (span := self._create(row, settings)) is not None]
        return partial(_leave_with_commit, made) if made else None

    @_harmless
    def _create(self, row: PublishedMessage, settings: AliasSettings) -> Span | None:
        if any(name.lower() == HEADERS[0] for name in row.headers):
            return None
        target = _target(row, settings)
        span = self._tracer.start_span(
            f"create {target[TEMPLATE]}", kind=SpanKind.PRODUCER, attributes={**target, **_operation("create")}
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        headers = {name: carrier[name] for name in HEADERS if 0 < len(carrier.get(name, "")) <= LONGEST}
        if headers:
            row.headers = {**row.headers, **headers}
        if headers and row.wire is not None:
            found = Envelope.from_wire(bytes(row.wire), b"")
            properties = found.properties.edited(add_headers=headers)
            row.wire = Envelope(found.exchange, found.routing_key, properties, b"").to_wire()
        return span

    # Relaying

    @_harmless
    def send(self, row: PublishedMessage, settings: AliasSettings) -> Callable[[str, str], None] | None:
        """Begin the span of a row that is about to be sent.

        Returns what ends it, called with "" or the kind of what went wrong, and why.
        """
        if not settings.traces:
            return None
        attributes = {**_target(row, settings), **_operation("send"), BODY_SIZE: row.size, ROUND: row.round}
        name = f"send {attributes[TEMPLATE]}"
        span, _ = self._start(name, SpanKind.CLIENT, attributes, row.headers, settings)
        return partial(_end_sending, span)

    # Processing

    def process(self, work: Any, settings: AliasSettings) -> AbstractContextManager[None]:
        """The span of an attempt, which is the current one in the block; of one that never began, none."""
        begun = self._process(work, settings) if settings.traces else None
        return nullcontext() if begun is None else _current(*begun, work)

    @_harmless
    def _process(self, work: Any, settings: AliasSettings) -> tuple[Span, Context]:
        envelope = work.envelope
        attributes = {
            **_source(envelope, work.queue, settings),
            **_operation("process"),
            FUNCTION: work.handler.name,
            BODY_SIZE: len(envelope.body),
            ROUND: envelope.round,
            ATTEMPT: work.attempt,
        }
        headers = envelope.properties.headers
        return self._start(f"process {work.queue}", SpanKind.CONSUMER, attributes, headers, settings)

    def process_batch(self, works: Sequence[Any], settings: AliasSettings) -> AbstractContextManager[None]:
        """The same of many messages that run together; it begins a trace, which is linked to those of all of them."""
        begun = self._process_batch(works, settings) if settings.traces else None
        return nullcontext() if begun is None else _current(*begun, works[0])

    @_harmless
    def _process_batch(self, works: Sequence[Any], settings: AliasSettings) -> tuple[Span, Context]:
        work, links = works[0], []
        for one in works:
            origin = trace.get_current_span(_extracted(one.envelope.properties.headers)).get_span_context()
            if origin.is_valid:
                links.append(Link(origin, {MESSAGE_ID: one.envelope.message_id}))
        attributes = {
            **_system(settings),
            **_operation("process"),
            DESTINATION: work.queue,
            TEMPLATE: work.queue,
            FUNCTION: work.handler.name,
            BATCH_COUNT: len(works),
        }
        kind = SpanKind.CONSUMER
        span = self._tracer.start_span(f"process {work.queue}", Context(), kind, attributes, links)
        return span, Context()

    # Settling

    def settle(self, item: Any, settings: AliasSettings) -> None:
        """Acknowledge what a consumer holds, within a span of its own."""
        span = self._settle(item.delivery, settings) if settings.traces and not item.is_acked else None
        reached = item.ack()
        if span is not None:
            _end_sending(span, "" if reached else "channel-lost", "" if reached else "Its channel was lost before.")

    @_harmless
    def _settle(self, delivery: Any, settings: AliasSettings) -> Span:
        envelope = delivery.envelope
        attributes = {**_source(envelope, delivery.queue, settings), **_operation("settle", "ack")}
        headers = envelope.properties.headers
        return self._start(f"ack {delivery.queue}", SpanKind.CLIENT, attributes, headers, settings)[0]

    def _start(
        self, name: str, kind: SpanKind, attributes: dict[str, Any], headers: Mapping[str, Any], settings: AliasSettings
    ) -> tuple[Span, Context]:
        """A span, linked to the creation of its message and perhaps its child; and the context of that."""
        context = _extracted(headers)
        origin = trace.get_current_span(context).get_span_context()
        links = [Link(origin)] if origin.is_valid else []
        parent = context if settings.traces == "parent" else Context()
        return self._tracer.start_span(name, parent, kind, attributes, links), context


def note_failure(error: BaseException | None = None, **_facts: Any) -> None:
    """Record what went wrong in the span of the attempt; a receiver of signals, called in the attempt's own thread."""
    span = _running.get()
    if span is not None and error is not None:
        _fail(span, error)


@contextmanager
def _current(span: Span, context: Context, work: Any) -> Iterator[None]:
    """Have a span be the current one, also for what the handler publishes, and for the threads that it runs in."""
    token = contexts.attach(trace.set_span_in_context(span, context))
    before = _running.set(span)
    try:
        yield
    except BaseException as error:
        if work.has_begun:  # else nothing ran, and it comes again
            _fail(span, error)
            _end([span])
        raise
    else:
        _end([span])
    finally:
        _running.reset(before)
        contexts.detach(token)


@_harmless
def _fail(span: Span, error: BaseException) -> None:
    kind = type(error)
    named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.record_exception(error)
    span.set_attribute(ERROR_TYPE, named)
    span.set_status(Status(StatusCode.ERROR, named))


@_harmless
def _end_sending(span: Span, fate: str, reason: str) -> None:
    if fate:
        span.set_attribute(ERROR_TYPE, fate)
        span.set_status(Status(StatusCode.ERROR, reason or fate))
    span.end()


@_harmless
def _leave_with_commit(made: list[tuple[PublishedMessage, Span]], saved: Sequence[Any], database: str) -> None:
    ended, kept = time.time_ns(), {id(row) for row in saved}  # a run before may have saved one
    spans = [span for row, span in made if id(row) in kept]
    connection = transaction.get_connection(database)
    is_told = connection.in_atomic_block or connection.get_autocommit()  # else nobody says when it is committed
    if spans and is_told:
        transaction.on_commit(partial(_end, spans, ended), using=database, robust=True)


def _end(spans: list[Span], ended: int | None = None) -> None:
    for span in spans:
        _end_one(span, ended)


@_harmless
def _end_one(span: Span, ended: int | None) -> None:
    span.end(ended)


def _extracted(headers: Mapping[str, Any]) -> Context:
    """The context that a message has in its headers, which may be anybody's."""
    carrier = {name: text for name in HEADERS if isinstance(text := headers.get(name), str)}
    return propagate.extract(carrier, Context()) if carrier else Context()


def _operation(kind: str, name: str = "") -> dict[str, Any]:
    return {OPERATION_TYPE: kind, OPERATION: name or kind}


def _system(settings: AliasSettings) -> dict[str, Any]:
    """The broker; its address where only one can be meant."""
    if settings.broker_database:
        return {SYSTEM: EMBEDDED, ALIAS: settings.alias}
    known = {SYSTEM: "rabbitmq", ALIAS: settings.alias}
    if len(settings.hosts) != 1:
        return known
    [(host, port)] = settings.hosts
    return {**known, SERVER: host, PORT: port}


def _target(row: PublishedMessage, settings: AliasSettings) -> dict[str, Any]:
    """What a message is sent to: an exchange and a routing key, or one queue."""
    names = (row.queue,) if row.queue else (row.exchange, row.routing_key)
    template = row.queue or row.exchange or DEFAULT_EXCHANGE  # routing keys may be many
    return _described(names, template, row.routing_key, row.message_id, row.correlation_id, settings)


def _source(envelope: Envelope, queue: str, settings: AliasSettings) -> dict[str, Any]:
    """What a message came from."""
    names = (envelope.exchange, envelope.routing_key, queue)
    correlation_id = envelope.properties.correlation_id or ""
    return _described(names, queue, envelope.routing_key, envelope.message_id, correlation_id, settings)


def _described(
    names: Sequence[str], template: str, routing_key: str, message_id: str, correlation_id: str, settings: AliasSettings
) -> dict[str, Any]:
    optional = {ROUTING_KEY: routing_key, MESSAGE_ID: message_id, CONVERSATION_ID: correlation_id}
    return {
        **_system(settings),
        DESTINATION: ":".join(dict.fromkeys(filter(None, names))) or DEFAULT_EXCHANGE,
        TEMPLATE: template,
        **{name: text for name, text in optional.items() if text},
    }
