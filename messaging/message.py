"""A message as users publish it, and as a handler receives it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic

from django.utils.functional import cached_property

from messaging import conf
from messaging.exceptions import PayloadError
from messaging.wire.bodies import decode_body, one_line
from messaging.wire.envelope import CAUSATION, LATEST_VERSION, OURS, VERSION, Envelope, header_text, new_id

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from messaging.wire.cloudevents import CloudEvent, Found

    Payload = TypeVar("Payload", default=Any)
else:
    from typing import TypeVar

    Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish with `publish_many()`. Its fields are the arguments of `publish()`.

    Attributes:
        routing_key: up to 255 bytes; or an `Event`.
        payload: bytes, text, a `CloudEvent`, or anything that can be encoded as JSON.
        exchange: `None` for the alias's `EXCHANGE`; `""` for the default exchange.
        queue: sends the message straight to this queue, past all exchanges.
        headers: plain values.
        message_id: `None` for a new UUID.
        correlation_id: `None`, inside a handler, for the correlation id of the message that it handles.
        content_type: `None` to guess it from the payload.
        content_encoding: `"gzip"` or `"deflate"` compresses a payload that is not bytes.
        type: the message type.
        reply_to: the queue that expects an answer.
        priority: 0 to 255.
        expiration: seconds after which the broker may drop the message from a queue.
        mandatory: whether it is an error if no queue takes the message.
        delay: seconds to wait before the message is sent.
        at: when to send the message, instead of `delay`.
    """

    routing_key: str
    payload: Any
    exchange: str | None = field(default=None, kw_only=True)
    queue: str | None = field(default=None, kw_only=True)
    headers: Mapping[str, Any] | None = field(default=None, kw_only=True)
    message_id: str | uuid.UUID | None = field(default=None, kw_only=True)
    correlation_id: str | uuid.UUID | None = field(default=None, kw_only=True)
    content_type: str | None = field(default=None, kw_only=True)
    content_encoding: str | None = field(default=None, kw_only=True)
    type: str | None = field(default=None, kw_only=True)
    reply_to: str | None = field(default=None, kw_only=True)
    priority: int | None = field(default=None, kw_only=True)
    expiration: float | timedelta | None = field(default=None, kw_only=True)
    mandatory: bool = field(default=True, kw_only=True)
    delay: float | timedelta | None = field(default=None, kw_only=True)
    at: datetime | None = field(default=None, kw_only=True)


class ReceivedMessage(Generic[Payload]):
    """What a handler receives. The app makes it; you only read it.

    Annotate the handler's first parameter with `ReceivedMessage[OrderPlaced]` to have the payload checked and converted
    to that type before the handler is called.

    Attributes:
        id (str): the message id; `""` if the publisher gave none. The id of a CloudEvent consists of its source and id.
        queue (str): the queue that it was consumed from.
        exchange (str): the exchange that it was published to. A retry shows the original one.
        routing_key (str): its routing key. A retry shows the original one.
        payload (Payload): the body, decoded by its content type; the data of a CloudEvent; or, where the handler
            declares a type for it, an object of that type. Reading it raises `PayloadError` if the body cannot be
            decoded, which fails the message for good unless the handler catches it.
        body (bytes): the body as it arrived.
        headers (dict[str, Any]): the publisher's headers, as plain values; those that this app added are left out.
        attempt (int): 1 for the first attempt. It counts every attempt that was started since an operator last
            requeued the message.
        round (int): 1 for the first round, one more per retry or requeue.
        redelivered (bool): whether the message may have run before: the broker says that it delivered it before, or a
            database went away meanwhile.
        version (int): the version of the payload that the publisher declared, or 1. Reading it raises `PayloadError` if
            the header is not a version.
        cloud_event (CloudEvent | None): the CloudEvent that the message is, with the payload as its data; `None` if it
            is not a CloudEvent. Reading it raises `PayloadError` if the body claims to be one and is not.
        type (str): the message type that the publisher gave, or `""`.
        content_type (str): the content type, or `""`.
        reply_to (str): the queue that expects an answer, or `""`.
        correlation_id (str): the id that all messages of one conversation share, or `""`.
        causation_id (str): the id of the message whose handler published this one, or `""`.
        properties (Properties): every AMQP property.
    """

    def __init__(self, envelope: Envelope, *, queue: str, attempt: int = 1, redelivered: bool = False) -> None:
        self.envelope = envelope
        self.properties = envelope.properties
        self.id = envelope.message_id
        self.queue = queue
        self.exchange = envelope.exchange
        self.routing_key = envelope.routing_key
        self.body = envelope.body
        self.round = envelope.round
        self.attempt = attempt
        self.redelivered = redelivered

    def __repr__(self) -> str:
        name = one_line(self.id) if self.id else "without id"
        return f"<message {name} of queue {self.queue!r}, attempt {self.attempt}>"

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The publisher's headers."""
        return {name: value for name, value in self.properties.headers.items() if name not in OURS}

    @cached_property
    def payload(self) -> Payload:
        """The body decoded by its content type; a CloudEvent's data; or what the handler says that it is.

        Raises PayloadError, which fails the message.
        """
        decoded: Payload = self._decoded()
        return decoded

    def _decoded(self) -> Any:
        if self.envelope.may_be_cloud_event and self._found_event is not None:
            from messaging.wire.cloudevents import data_of

            return data_of(self._found_event, self.properties, self.body)
        return decode_body(self.body, self.properties.content_type, self.properties.content_encoding)

    @property
    def version(self) -> int:
        """The version of its payload, as its publisher says, 1 where it says none. Raises PayloadError for nonsense."""
        given = self.properties.headers.get(VERSION, 1)
        if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 10:
            given = int(given)
        if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= LATEST_VERSION:
            raise PayloadError(f"The header {VERSION} is not a version: it has to be a whole number, at least 1.")
        return given

    @cached_property
    def cloud_event(self) -> CloudEvent | None:
        """Its attributes as a CloudEvent, with the payload as data; None if it is none. Raises PayloadError."""
        found = self._found_event if self.envelope.may_be_cloud_event else None
        if found is None:
            return None
        from messaging.wire.cloudevents import event_of

        return event_of(found, self.payload)

    @cached_property
    def _found_event(self) -> Found | None:
        from messaging.wire.cloudevents import read

        return read(self.properties, self.body)

    @property
    def type(self) -> str:
        """The message type its publisher named, or ""."""
        return self.properties.type or ""

    @property
    def content_type(self) -> str:
        """Its content type, or ""."""
        return self.properties.content_type or ""

    @property
    def reply_to(self) -> str:
        """The queue that expects an answer, or ""."""
        return self.properties.reply_to or ""

    @property
    def correlation_id(self) -> str:
        """The id that ties a conversation together, or ""."""
        return self.properties.correlation_id or ""

    @property
    def causation_id(self) -> str:
        """The id of the message whose handler published this one, or ""."""
        return header_text(self.properties.headers.get(CAUSATION), "")


@dataclass
class HandlerContext:
    """What `publish()` needs to know of the handler that calls it.

    Attributes:
        message: what it handles; None for a batch.
        database: where its transaction runs, if it is `atomic`.
        cause: what the ids of its messages derive from; None where a transaction takes them back with the rest.
        derivation: what else they derive from: 1 for all that a message is; None, as the release before did it, for its
            address alone.
        using: alias of `MESSAGING` whose message it handles.
        rehearsed: what it publishes is noted here, where it is run as a rehearsal.
        has_run: whether it has returned or raised; noted where middleware is around it.
        worker: the name under which its process records what it does.
    """

    message: ReceivedMessage | None
    database: str
    atomic: bool
    cause: uuid.UUID | None
    derivation: int | None = 1
    using: str = conf.DEFAULT_ALIAS
    published: dict[str, int] = field(default_factory=dict)
    rehearsed: list[Any] | None = None
    has_run: bool = False
    worker: str = ""

    def next_id(self, what: str) -> str:
        """An id for the next message of its kind, so that a rerun of a handler without a transaction does not double.

        It derives from the cause, `what` tells that kind from others, and how many of it were published before.
        """
        count = self.published[what] = self.published.get(what, 0) + 1
        return str(uuid.uuid5(self.cause, f"{count}:{what}")) if self.cause is not None else new_id()


handler_context: ContextVar[HandlerContext | None] = ContextVar("messaging_running", default=None)
