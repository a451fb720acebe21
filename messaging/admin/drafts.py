"""Drafts in the form that writes messages: which ones it can hold, and what it shows of them."""

from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import ValidationError

from messaging import conf
from messaging.admin.forms import JSON, TEXT, parse_json, usual_exchange
from messaging.db.clock import Now
from messaging.models import PublishedMessage

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


def _lies_ahead(row: PublishedMessage) -> bool:
    """By the clock that it is sent by: by a host's own that is ahead, the moment would be lost."""
    return PublishedMessage.objects.using(row._state.db).filter(pk=row.pk, publish_at__gt=Now()).exists()


def _is_json(text: str) -> bool:
    try:
        parse_json(text, "")
    except ValidationError:
        return False
    return True
