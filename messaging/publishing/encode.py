"""From a row to the wire: what an outbox row puts there, and the row that sends an inbox row's message once more."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models

from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.processed import DIED
from messaging.wire import nonces
from messaging.wire.envelope import CAUSATION, NONCE, ROUTING_KEY, Envelope
from messaging.wire.ids import new_epoch
from messaging.wire.properties import encode_properties, encode_table

PERSISTENT = 2  # AMQP's delivery mode


def seal(row: PublishedMessage) -> tuple[str, str, bytes, bytes]:
    """What an outbox row puts on the wire: exchange, routing key, properties, body. Raises WireError, ValueError."""
    exchange, routing_key = row.exchange, row.routing_key
    if row.wire is None:
        properties = properties_of(row)
    else:
        envelope = Envelope.from_wire(bytes(row.wire), b"")
        exchange, routing_key, found = envelope.exchange, envelope.routing_key, envelope.properties
        if row.round == 1 and found.timestamp is None:  # it was not known before the row was in the database
            found = found.edited(timestamp=_epoch(row.created_at))
        properties = found.encode()
    if row.queue:
        exchange, routing_key = "", row.queue
    return exchange, routing_key, properties, row.raw_body


def properties_of(row: PublishedMessage) -> bytes:
    """The encoded properties of a row without an envelope of its own. Raises WireError."""
    headers = row.headers
    if row.causation_id:
        headers = {**headers, CAUSATION: row.causation_id}
    if row.queue and row.routing_key != row.queue:
        nonce = nonces.of_address(row.queue, row.routing_key, row.message_id)
        headers = {**headers, ROUTING_KEY: row.routing_key, NONCE: nonce}
    return encode_properties(
        content_type=row.content_type or None,
        raw_headers=encode_table(headers) if headers else None,
        delivery_mode=PERSISTENT,
        priority=row.priority,
        correlation_id=row.correlation_id or None,
        reply_to=row.reply_to or None,
        expiration=None if row.expiration is None else str(row.expiration),
        message_id=row.message_id or None,
        timestamp=_epoch(row.created_at),
        type=row.type or None,
    )


def compose_round(row: ProcessedMessage, due: models.expressions.Combinable) -> PublishedMessage:
    """The unsaved outbox row that sends an inbox row's message to its queue for the row's present round.

    Straight to the queue, so that no other service sees it twice. Raises WireError without a recorded envelope.
    """
    nonce, died = row.nonce or nonces.of_row(row.queue, row.key), row.exception_type == DIED
    envelope = row.envelope().for_round(row.queue, row.round, row.key, nonce, died=died)
    return PublishedMessage(
        alias=row.alias,
        state=PublishedMessage.State.PENDING,
        message_id=row.message_id,
        exchange="",
        queue=row.queue,
        routing_key=row.routing_key,
        type=row.type,
        content_type=row.content_type,
        correlation_id=row.correlation_id,
        causation_id=row.causation_id,
        reply_to=row.reply_to,
        headers=row.headers,
        body=row.body,
        body_encoding=row.body_encoding,
        wire=envelope.to_wire(),
        round=row.round,
        epoch=new_epoch(),
        inbox_id=row.pk,
        publish_at=due,
        due_at=due,
    )


def _epoch(moment: Any) -> int | None:
    # A row that was never read back has an expression here.
    return int(moment.timestamp()) if isinstance(moment, datetime) else None
