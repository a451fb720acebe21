"""What the form that writes messages is filled with: a draft, another message, a template."""

from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from messaging import conf
from messaging.admin.forms import JSON, TEXT, parse_json, usual_exchange
from messaging.db.clock import Now
from messaging.exceptions import MessagingError, PayloadError
from messaging.models import MessageTemplate, ProcessedMessage, PublishedMessage
from messaging.operations.editing import content_in, content_of, is_locked
from messaging.publishing.rows import seal
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

LARGEST = 1024 * 1024  # bytes of a body in the form: a server takes 2.5 MB of a form, and a browser grows slow


def is_editable(row: PublishedMessage) -> bool:
    """Whether the form can hold a draft without changing what it does not show."""
    return (
        row.state == PublishedMessage.State.DRAFT
        and _octets(row) <= LARGEST
        and row.wire is None
        and row.inbox_id is None
        and not row.body_encoding
        and bool(row.exchange or row.queue)
        and row.alias in conf.aliases()
        and "\r" not in row.body
    )


def _octets(row: PublishedMessage) -> int:
    """The length of its body, which the page of a message knows without reading it."""
    known = vars(row).get("body_octets")
    return len(row.body) if known is None else known


def initial(row: PublishedMessage) -> dict[str, Any]:
    """A draft as the form's first values."""
    names = ("queue", "routing_key", "body", "message_id", "correlation_id", "type", "content_type", "reply_to")
    return {
        **{name: getattr(row, name) for name in names},
        "using": row.alias,
        "exchange": "" if row.exchange == usual_exchange(row.alias) else row.exchange,
        "format": JSON if _is_json(row.body) else TEXT,
        "headers": json.dumps(row.headers, ensure_ascii=False, indent=2) if row.headers else "",
        "priority": row.priority,
        "expiration": None if row.expiration is None else row.expiration / 1000,
        "publish_at": row.publish_at if _lies_ahead(row) else None,
        "mandatory": row.mandatory,
    }


def cloned(row: ProcessedMessage | PublishedMessage) -> tuple[dict[str, Any], list[str]]:
    """Any message as the form's first values for a new one, and the headers that the form cannot hold.

    A received one goes straight to the queue that it came from: other services do not see it again. All that the form
    takes from a message comes from here: what is to be hidden of it is to be refused here. Raises PayloadError, which
    says why it cannot be.
    """
    if isinstance(row, ProcessedMessage):
        content, expiration = content_of(row), None
    else:
        content, expiration = content_in(_sealed(row)), row.expiration
    names = ("queue", "routing_key", "correlation_id", "type", "content_type", "reply_to")
    values = {
        **{name: getattr(row, name) for name in names},
        "using": row.alias,
        "exchange": "" if row.queue or row.exchange == usual_exchange(row.alias) else row.exchange,
        "format": JSON if _is_json(content.text) else TEXT,
        "body": content.text,
        "headers": json.dumps(content.headers, ensure_ascii=False, indent=2) if content.headers else "",
        "priority": getattr(row, "priority", None),
        "expiration": None if expiration is None else expiration / 1000,
        "mandatory": getattr(row, "mandatory", True),
    }
    return values, [name for name in content.locked if not is_locked(name)]


def _sealed(row: PublishedMessage) -> Envelope:
    try:
        exchange, routing_key, properties, body = seal(row)
    except (MessagingError, ValueError) as error:
        raise PayloadError(_("Its stored content is damaged: %(error)s") % {"error": error}) from error
    return Envelope(exchange, routing_key, Properties.decode(properties), body)


def of_template(template: MessageTemplate) -> dict[str, Any]:
    """A template as the form's first values."""
    names = ("queue", "routing_key", "exchange", "type", "content_type", "body")
    return {
        **{name: getattr(template, name) for name in names},
        "using": template.alias,
        "format": JSON if _is_json(template.body) else TEXT,
        "headers": json.dumps(template.headers, ensure_ascii=False, indent=2) if template.headers else "",
        "mandatory": True,
    }


def _lies_ahead(row: PublishedMessage) -> bool:
    """By the clock that it is sent by: by a host's own that is ahead, the moment would be lost."""
    return PublishedMessage.objects.using(row._state.db).filter(pk=row.pk, publish_at__gt=Now()).exists()


def _is_json(text: str) -> bool:
    try:
        parse_json(text, "")
    except ValidationError:
        return False
    return True
