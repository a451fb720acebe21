"""Another content for a failed message: what of it can be edited, how that differs, and the row of the copy.

What tells who a message is, or where it came from, stays: its properties, the headers of brokers and tracers, and ours.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from messaging.db.clock import Now
from messaging.exceptions import PayloadError, WireError
from messaging.models import ProcessedMessage
from messaging.models.processed import DERIVATION
from messaging.wire import nonces
from messaging.wire.bodies import COMPRESSED, PLAIN, body_of_text, text_of_body
from messaging.wire.envelope import NOT_RETRIED, OUR_PREFIX, VERSION, Envelope, key_of, new_id
from messaging.wire.fields import to_json

LARGEST = 512 * 1024  # bytes of a body that a page can hold twice, as it was and as it is to be
DETAILS = 64 * 1024  # characters of a difference that the audit keeps

_LOCKED = {
    *("cc", "bcc", "traceparent", "tracestate", "baggage", "b3", "sentry-trace", "uber-trace-id", "timestamp_in_ms"),
    *("cloudevents:id", "cloudevents:source", "cloudevents_id", "cloudevents_source"),
    *("x-delivery-count", "x-acquired-count", "x-death", "x-request-id", "x-correlation-id", "x-cloud-trace-context"),
}
_LOCKED_PREFIXES = (OUR_PREFIX, "x-opt-", "x-first-death-", "x-last-death-", "x-b3-", "x-amzn-trace-", "x-datadog-")


class Edit(NamedTuple):
    """What is to be another in the copy.

    Attributes:
        text: the whole body.
        headers: those that are new or have another value.
        dropped: names of headers that go.
        seen: the round of the message that was edited: if it has gone round since, nothing is done.
    """

    text: str
    headers: Mapping[str, Any]
    dropped: Collection[str]
    seen: int


class Content(NamedTuple):
    """A message's content, as far as it can be edited.

    Attributes:
        text: its body.
        headers: by name.
        locked: headers that stay, as pages show them.
    """

    text: str
    headers: dict[str, Any]
    locked: dict[str, Any]


def is_locked(name: str) -> bool:
    """Whether a header says who a message is or how it travelled; its version belongs to its content."""
    folded = name.lower()
    return folded != VERSION and (folded in _LOCKED or folded.startswith(_LOCKED_PREFIXES))


def content_of(row: ProcessedMessage) -> Content:
    """What can be edited. Raises PayloadError, which says in the reader's language why nothing can."""
    if row.wire is None:
        raise PayloadError(_("Its content was never received."))
    try:
        return content_in(row.envelope())
    except WireError as error:
        raise PayloadError(_("Its stored content is damaged: %(error)s") % {"error": error}) from error


def content_in(envelope: Envelope) -> Content:
    """What can be edited of a message; see `content_of()`."""
    properties = envelope.properties
    if properties.problem:
        raise PayloadError(
            _("Its properties cannot be read to their end: %(problem)s") % {"problem": properties.problem}
        )
    encoding = (properties.content_encoding or "").strip().lower()
    if encoding in COMPRESSED:
        text = _("Its body is compressed (%(encoding)s), and cannot be edited here.")
        raise PayloadError(text % {"encoding": encoding})
    if encoding not in PLAIN:
        text = _("Its body is encoded or encrypted (%(encoding)s), and cannot be edited here.")
        raise PayloadError(text % {"encoding": encoding})
    headers = properties.headers
    editable = {name: value for name, value in headers.items() if not is_locked(name) and _is_plain(value)}
    locked = {name: to_json(value) for name, value in headers.items() if name not in editable}
    return Content(_text_of(envelope), editable, {name: locked[name] for name in locked if name not in NOT_RETRIED})


def _text_of(envelope: Envelope) -> str:
    if len(envelope.body) > LARGEST:
        raise PayloadError(_("Its body is too large to be edited here."))
    try:
        text = text_of_body(envelope.body, envelope.properties.content_type)
    except PayloadError as error:
        raise PayloadError(_("Its body is no text, and cannot be edited here.")) from error
    if "\r" in text:
        raise PayloadError(_("Its body has line ends that a browser would change, and cannot be edited here."))
    return text


def difference(before: Content, text: str, headers: Mapping[str, Any]) -> str:
    """How another content differs, line by line; "" where it does not."""
    told = [
        ("headers", _lines(before.headers), _lines(headers)),
        ("body", before.text.splitlines(), text.splitlines()),
    ]
    pieces = ["\n".join(difflib.unified_diff(was, now, name, name, lineterm="")) for name, was, now in told]
    return "\n".join(filter(None, pieces))


def for_audit(details: str) -> str:
    """A difference as the audit keeps it."""
    return details if len(details) <= DETAILS else details[: DETAILS - 2] + "\n…"


def changed_headers(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Which headers are new or another, and which go. A value of another type is another: 1, 1.0 and True differ."""
    known = {name: _exactly(value) for name, value in before.items()}
    changed = {name: value for name, value in after.items() if known.get(name) != _exactly(value)}
    return changed, set(before) - set(after)


def copied(row: ProcessedMessage, edit: Edit) -> ProcessedMessage:
    """The unsaved row of the edited copy: requeued, under an id of its own, in the queue where the message failed.

    Raises PayloadError and WireError for what cannot be sent.
    """
    envelope, message_id = row.envelope(), new_id()
    properties = envelope.properties.edited(
        drop_headers={*edit.dropped, *NOT_RETRIED}, add_headers=edit.headers, message_id=message_id
    )
    body = body_of_text(edit.text, properties.content_type)
    copy = Envelope(envelope.exchange, envelope.routing_key, properties, body)
    key = key_of(message_id)
    return ProcessedMessage(
        **copy.columns,
        alias=row.alias,
        queue=row.queue,
        key=key,
        nonce=nonces.of_row(row.queue, key),
        state=ProcessedMessage.State.REQUEUED,
        round=2,  # a first round has no headers of ours that lead to its row
        received_at=Now(),
        derivation=DERIVATION,
        edited_from_id=row.pk,
    )


def _is_plain(value: Any) -> bool:
    """Whether a header is the same once it was written as JSON and read again."""
    try:
        return _exactly(json.loads(json.dumps(value, allow_nan=False))) == _exactly(value)
    except (TypeError, ValueError, RecursionError):
        return False


def _exactly(value: Any) -> str:
    return (
        repr(value) if not isinstance(value, dict) else repr(sorted((key, _exactly(one)) for key, one in value.items()))
    )


def _lines(headers: Mapping[str, Any]) -> list[str]:
    return [f"{json.dumps(name)}: {json.dumps(headers[name], ensure_ascii=False)}" for name in sorted(headers)]
