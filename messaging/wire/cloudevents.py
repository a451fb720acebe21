"""CloudEvents 1.0 on AMQP: what makes a message one, its attributes and its data, in both modes of the binding.

A *structured* event is a JSON document of its own, attributes and data in it. A *binary* one has its data as the body,
and its attributes as headers whose names begin with `cloudEvents:`. Read are also `cloudEvents_`, which that binding
allows, and `ce-`, which is Knative's for RabbitMQ.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from messaging.exceptions import PayloadError, PublishError
from messaging.wire.bodies import decode_body, is_json, text_of_body
from messaging.wire.fields import MAX_SHORT
from messaging.wire.properties import Properties

MEDIA_TYPE = "application/cloudevents+json"
PREFIX = "cloudEvents:"
PREFIXES = (PREFIX, "cloudEvents_", "ce-")
VERSION = "1.0"
REQUIRED = ("specversion", "id", "source", "type")
OPTIONAL = ("datacontenttype", "dataschema", "subject", "time")
_EXTENSION = re.compile(r"[a-z0-9]{1,100}")
_CONTENT = frozenset({*REQUIRED, *OPTIONAL, "data"})


@dataclass(frozen=True, kw_only=True)
class CloudEvent:
    """A CloudEvent, version 1.0: pass it to `publish()` as the payload, and read it as `message.cloud_event`.

    Attributes:
        type: what happened, such as `com.example.order.placed`.
        source: where it happened, as a URI reference. Two events with the same source and id are the same event.
        data: the event's content. In a received event it is the message's payload.
        id: the event's id; `""` for a new one, which is made when the event is published.
        time: when it happened. `None` stands for the time of publishing, and in a received event for an unknown time.
        subject: the part of the source that the event is about; `""` if there is none.
        datacontenttype: content type of the data; `""` to guess it from the data.
        dataschema: URI of the schema of the data; `""` if there is none.
        extensions: further attributes. Names consist of lower-case letters and digits; values are text, bytes, `True`,
            `False` or whole numbers of 32 bits.
    """

    type: str
    source: str
    data: Any = None
    id: str = ""
    time: datetime | None = None
    subject: str = ""
    datacontenttype: str = ""
    dataschema: str = ""
    extensions: Mapping[str, Any] = field(default_factory=dict)


class Found(NamedTuple):
    """What a message says as a CloudEvent.

    Attributes:
        attributes: by name, without the data.
        is_structured: whether body and attributes are one document.
        data: of a structured one, decoded; None for a binary one, whose body it is.
    """

    attributes: dict[str, Any]
    is_structured: bool
    data: Any = None


def is_structured(content_type: str | None) -> bool:
    """Whether a content type says that the body is a whole CloudEvent."""
    return (content_type or "").partition(";")[0].strip().lower() == MEDIA_TYPE


def read(properties: Properties, body: bytes) -> Found | None:
    """What a message says as a CloudEvent; None for one that is none.

    Raises PayloadError for a body that is no CloudEvent although its content type says so.
    """
    if is_structured(properties.content_type):
        return _read_structured(properties, body)
    headers, attributes = properties.headers, dict[str, Any]()
    for prefix in reversed(PREFIXES):
        found = {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}
        attributes |= {name: _as_attribute(name, value) for name, value in found.items() if value is not None}
    if _missing(attributes):
        return None
    attributes.pop("datacontenttype", None)
    if properties.content_type:
        attributes["datacontenttype"] = properties.content_type
    return Found(attributes, is_structured=False)


def identity_of(properties: Properties, body: bytes) -> str:
    """The identity of the CloudEvent that a message is; "" for a message that is none."""
    try:
        found = read(properties, body)
    except PayloadError:
        return ""
    return identity(found.attributes["source"], found.attributes["id"]) if found is not None else ""


def identity(source: str, event_id: str) -> str:
    """What tells an event from all others, in at most 255 bytes. A source has no spaces in it."""
    text = f"{source} {event_id}"
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_SHORT and text.isprintable():
        return text
    return f"cloudevent {hashlib.sha256(raw).hexdigest()}"


def data_of(found: Found, properties: Properties, body: bytes) -> Any:
    """The data of a received event. Raises PayloadError."""
    if found.is_structured or not body:
        return found.data
    if not properties.content_type:  # JSON is what publishers mean that leave it out, the official library among them
        with suppress(PayloadError):
            return decode_body(body, "application/json", properties.content_encoding)
    return decode_body(body, properties.content_type, properties.content_encoding)


def event_of(found: Found, data: Any) -> CloudEvent:
    """A received event as handlers see it."""
    known = {name: found.attributes.get(name) or "" for name in ("type", "source", "id", "subject", "dataschema")}
    extensions = {name: value for name, value in found.attributes.items() if name not in _CONTENT}
    content_type = str(found.attributes.get("datacontenttype") or "")
    time = _time_in(found.attributes.get("time"))
    return CloudEvent(**known, data=data, time=time, datacontenttype=content_type, extensions=extensions)


def attributes_of(event: CloudEvent) -> dict[str, Any]:
    """The attributes of an event to publish, without id, time and content type. Raises PublishError."""
    given = {"source": event.source, "type": event.type, "subject": event.subject, "dataschema": event.dataschema}
    for name, value in {**given, "id": event.id, "datacontenttype": event.datacontenttype}.items():
        if not isinstance(value, str):
            raise PublishError(f"The CloudEvent's {name} is {value!r}; it must be text.")
        _check_text(name, value)
    if not event.type or not event.source:
        raise PublishError("A CloudEvent needs a type and a source.")
    if any(map(str.isspace, event.source)):
        raise PublishError(f"The CloudEvent's source is {event.source!r}; a URI reference has no spaces.")
    time: Any = event.time
    if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
        raise PublishError(f"The CloudEvent's time is {event.time!r}; it must be a datetime with a time zone.")
    for name, value in event.extensions.items():
        _check_extension(name, value)
    filled = {name: value for name, value in given.items() if value}
    return {"specversion": VERSION, **filled, **event.extensions}


def named(attributes: Mapping[str, Any], event_id: str, time: datetime | None) -> dict[str, Any]:
    """The attributes of an event with its id and its time, which is now unless given."""
    moment = (time or datetime.now(UTC)).isoformat().replace("+00:00", "Z")
    return {"specversion": VERSION, "id": event_id, **attributes, "time": moment}


def as_headers(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as the headers of a binary event."""
    return {PREFIX + name: value for name, value in attributes.items()}


def as_document(attributes: Mapping[str, Any], content_type: str, data: bytes | None) -> dict[str, Any]:
    """A structured event: attributes, and data that were encoded as their content type says; None for no data."""
    told = {name: _as_text(value) for name, value in attributes.items()}
    if data is None:
        return told
    told["datacontenttype"] = content_type
    try:
        if is_json(content_type):
            return {**told, "data": json.loads(data)}
        if content_type.startswith("text/"):
            return {**told, "data": text_of_body(data, content_type)}
    except (ValueError, RecursionError):  # bytes that are not what they are said to be: they go as they are
        pass
    return {**told, "data_base64": base64.b64encode(data).decode("ascii")}


def renamed(properties: Properties, body: bytes, event_id: str) -> tuple[Properties, bytes] | None:
    """The same event with another id, as a copy that is to be another event needs; None for what is no event."""
    try:
        found = read(properties, body)
    except PayloadError:
        return None
    if found is None:
        return None
    properties = properties.edited(message_id=identity(found.attributes["source"], event_id))
    if not found.is_structured:
        names = [prefix + "id" for prefix in PREFIXES if prefix + "id" in properties.headers]
        return properties.edited(add_headers=dict.fromkeys(names, event_id)), body
    document = decode_body(body, properties.content_type, properties.content_encoding)
    text = json.dumps({**document, "id": event_id}, ensure_ascii=False, separators=(",", ":"))
    plain = properties.edited(content_type=MEDIA_TYPE, content_encoding=None)
    return plain, text.encode("utf-8", "surrogatepass")


def _read_structured(properties: Properties, body: bytes) -> Found:
    document = decode_body(body, properties.content_type, properties.content_encoding)
    if not isinstance(document, dict):
        raise PayloadError("The body is no CloudEvent: it is not a JSON object.")
    attributes = {name: value for name, value in document.items() if value is not None}
    raw, has_data = attributes.pop("data_base64", None), "data" in document
    attributes.pop("data", None)
    missing = _missing(attributes)
    if missing:
        raise PayloadError(f'The body is no CloudEvent 1.0: its "{missing}" is missing, or is not what it must be.')
    if raw is None or has_data:
        return Found(attributes, is_structured=True, data=document.get("data"))
    try:
        data = base64.b64decode(raw, validate=True)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"The CloudEvent's data_base64 is not base64: {error}.") from error
    content_type = attributes.get("datacontenttype")
    is_text = isinstance(content_type, str) and content_type
    return Found(attributes, is_structured=True, data=decode_body(data, content_type) if is_text else data)


def _missing(attributes: Mapping[str, Any]) -> str:
    """The first required attribute that is not there, or not as CloudEvents 1.0 says; "" where all are."""
    for name in REQUIRED:
        value = attributes.get(name)
        if not isinstance(value, str) or not value:
            return name
    if not attributes["specversion"].startswith("1."):
        return "specversion"
    return "source" if any(map(str.isspace, attributes["source"])) else ""


def _as_attribute(name: str, value: Any) -> Any:
    """A header as an attribute: some clients send text as bytes, and times as AMQP's own."""
    if isinstance(value, bytes) and name in _CONTENT:
        return value.decode("utf-8", "surrogateescape")
    return value.isoformat() if isinstance(value, datetime) else value


def _time_in(value: Any) -> datetime | None:
    """A time as text, or as milliseconds, which AMQP 1.0 counts."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC)
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None


def _check_text(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PublishError(f"The CloudEvent's {name} is not valid Unicode text.") from error
    if "\0" in value:
        raise PublishError(f"The CloudEvent's {name} contains a NUL character.")


def _check_extension(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _EXTENSION.fullmatch(name) or name in {*_CONTENT, "data_base64"}:
        raise PublishError(f"A CloudEvent has no extension {name!r}: names consist of small letters and digits.")
    is_number = isinstance(value, int) and -(2**31) <= value < 2**31
    if not (is_number or isinstance(value, (str, bytes))):
        raise PublishError(
            f"The CloudEvent's extension {name} is {value!r}; it must be text, bytes, True, False or a whole number "
            "of 32 bits."
        )
    if isinstance(value, str):
        _check_text(name, value)


def _as_text(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
