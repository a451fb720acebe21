"""A CloudEvent on its way into the outbox: first its data as a payload like any other, then the event around that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from messaging.exceptions import PayloadError, PublishError
from messaging.message import Message
from messaging.wire import cloudevents
from messaging.wire.bodies import encode_body, pack_body, unpack_body
from messaging.wire.cloudevents import CloudEvent


def opened(message: Message, event: CloudEvent) -> Message:
    """The message whose payload is the event's data, with its attributes as far as they are given. Raises PublishError.

    The content type of `message` decides the mode: that of CloudEvents means structured, anything else binary.
    """
    if message.message_id:
        raise PublishError("A CloudEvent has an id of its own: leave message_id out, and give the event an id.")
    structured = cloudevents.is_structured(message.content_type)
    attributes = cloudevents.attributes_of(event)
    if event.id:
        attributes["id"] = event.id
    return replace(
        message,
        payload=b"" if event.data is None else event.data,
        content_type=event.datacontenttype or (None if structured else message.content_type),
        content_encoding=None if structured else message.content_encoding,
        headers={**(message.headers or {}), **cloudevents.as_headers(attributes)},
    )


def closed(message: Message, event: CloudEvent, event_id: str, values: dict[str, Any]) -> Message:
    """The message as it is sent, with the event's data as its payload. Raises PublishError.

    Its identity and its body go into the `values` of its row, which have the data so far.
    """
    values["message_id"] = cloudevents.identity(event.source, event_id)
    attributes = cloudevents.named(cloudevents.attributes_of(event), event_id, event.time)
    if not cloudevents.is_structured(message.content_type):
        headers = {**(message.headers or {}), **cloudevents.as_headers(attributes)}
        return replace(message, payload=event.data, headers=headers)
    data = None if event.data is None else unpack_body(values["body"], values["body_encoding"])
    document = cloudevents.as_document(attributes, values["content_type"], data)
    try:
        body, values["content_type"] = encode_body(document, message.content_type, message.content_encoding)
    except PayloadError as error:
        raise PublishError(str(error)) from error
    values["body"], values["body_encoding"] = pack_body(body)
    return replace(message, payload=event.data)
