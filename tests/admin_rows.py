"""Rows and users for the tests of the admin."""

from __future__ import annotations

import uuid
from html.parser import HTMLParser
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from messaging.models import ProcessedMessage, PublishedMessage
from messaging.wire.bodies import pack_body
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

INCOMING = "/admin/messaging/processedmessage/"
OUTGOING = "/admin/messaging/publishedmessage/"
QUEUES = "/admin/messaging/queuecontrol/"


def incoming(state: str = "failed", *, body: bytes = b'{"order": 17}', queue: str = "billing", **values: Any) -> Any:
    """An inbox row."""
    message_id = values.pop("message_id", str(uuid.uuid4()))
    routing_key = values.pop("routing_key", "orders.placed")
    content_type = values.pop("content_type", "application/json")
    properties = Properties.build(headers={"tenant": "acme"}, message_id=message_id, content_type=content_type)
    text, encoding = pack_body(body)
    values.setdefault("wire", Envelope("messaging", routing_key, properties, body).to_wire())
    values.setdefault("headers", {"tenant": "acme"})
    return ProcessedMessage.objects.using(values.pop("database", None)).create(
        state=state,
        key=values.pop("key", None) or uuid.uuid4(),
        digest=uuid.uuid4(),
        message_id=message_id,
        queue=queue,
        exchange="messaging",
        routing_key=routing_key,
        content_type=content_type,
        body=text,
        body_encoding=encoding,
        **values,
    )


def outgoing(state: str = "published", *, body: bytes = b'{"order": 17}', **values: Any) -> Any:
    """An outbox row."""
    text, encoding = pack_body(body)
    values.setdefault("message_id", str(uuid.uuid4()))
    values.setdefault("exchange", "messaging")
    values.setdefault("routing_key", "orders.placed")
    values.setdefault("content_type", "application/json")
    values.setdefault("headers", {"tenant": "acme"})
    if state != "pending":
        values.setdefault("due_at", None)
    rows = PublishedMessage.objects.using(values.pop("database", None))
    return rows.create(state=state, body=text, body_encoding=encoding, **values)


def staff(*codenames: str, name: str = "olga") -> Client:
    """A client logged in as a member of staff with these permissions."""
    user = get_user_model().objects.create_user(name, password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames, content_type__app_label="messaging"))
    assert user.user_permissions.count() == len(codenames)
    client = Client()
    client.force_login(user)
    return client


class _Inline(HTMLParser):
    """Collects what a strict content security policy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.found += [f"<{tag} {name}=" for name in names if name == "style" or name.startswith("on")]
        is_data = names.get("type") == "application/json"
        if tag == "style" or (tag == "script" and "src" not in names and not is_data):
            self.found.append(f"<{tag}>")
        self.found += [f"<{tag} javascript:" for value in names.values() if (value or "").startswith("javascript:")]


def inline_code(html: str) -> list[str]:
    """Everything in a page that a strict content security policy refuses."""
    parser = _Inline()
    parser.feed(html)
    return parser.found
