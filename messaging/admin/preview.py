"""What a message would put on the wire, to the byte, and which queues it would reach, as far as anybody here knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from messaging.admin.display import size
from messaging.admin.payload import PREVIEW, header_rows
from messaging.exceptions import ConfigurationError
from messaging.handlers import topic_matches
from messaging.models import PublishedMessage
from messaging.publishing.rows import seal
from messaging.wire.envelope import NONCE
from messaging.wire.fields import to_json
from messaging.wire.properties import Properties

SHOWN = 50  # queues
PLAIN = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "user_id", "app_id",
)  # fmt: skip


class Preview(NamedTuple):
    """A message as it would be sent.

    Attributes:
        exchange, routing_key: as the broker gets them.
        properties: names and values, in the order of the wire.
        headers: names and values.
        body: its text; of bytes that are none, in hexadecimal.
        size: of the body, for people.
        is_whole: whether `body` is all of it.
        where: which queues it would reach, in a sentence.
        queues: their names.
        is_lost: whether it is known that none takes it.
    """

    exchange: str
    routing_key: str
    properties: list[tuple[str, str]]
    headers: list[tuple[str, str]]
    body: str
    size: str
    is_whole: bool
    where: str
    queues: list[str]
    is_lost: bool


def preview(row: PublishedMessage, *, has_own_id: bool) -> Preview:
    """What an unsaved row would send, by the code that sends it.

    Args:
        row: as the form has composed it.
        has_own_id: whether its message id was given: else another one is made as it is published.
    """
    exchange, routing_key, encoded, body = seal(row)
    properties = Properties.decode(encoded)
    told = [(name, str(getattr(properties, name))) for name in PLAIN if getattr(properties, name) is not None]
    if not has_own_id:
        told = [(name, _("a new one") if name == "message_id" else value) for name, value in told]
    told += [("timestamp", _("when it is published"))] if properties.timestamp is None else []
    text, is_whole = _shown(body)
    where, queues, is_lost = _routes(row, exchange, routing_key)
    headers = header_rows(to_json(properties.headers | _unshown(properties.headers)))
    return Preview(exchange, routing_key, told, headers, text, size(len(body)), is_whole, where, queues, is_lost)


def _unshown(headers: Mapping[str, Any]) -> dict[str, str]:
    """What stands for a proof that only this site can give, so that nobody copies it into a message of another's."""
    return {NONCE: _("a proof that this site sent it")} if NONCE in headers else {}


def _shown(body: bytes) -> tuple[str, bool]:
    part = body[:PREVIEW]
    try:
        return body.decode()[:PREVIEW], len(body) <= PREVIEW
    except UnicodeDecodeError:
        return part.hex(" "), len(body) <= PREVIEW


def _routes(row: PublishedMessage, exchange: str, routing_key: str) -> tuple[str, list[str], bool]:
    from messaging.monitoring import readings  # and with it what reads a broker

    found = readings.routes(row.alias, exchange, routing_key)
    if found:
        return _("The broker takes it to these queues now:"), found[:SHOWN], False
    if found is not None and row.mandatory:
        return _("No queue at the broker takes it now: it would wait for one, and fail in the end."), [], True
    if found is not None:
        return _("No queue at the broker takes it now, and it is not mandatory: the broker would drop it."), [], True
    surely, perhaps = _known(row.alias, exchange, routing_key)
    if surely:
        return _("By this site's configuration it goes to these queues; whether to others is unknown:"), surely, False
    if perhaps:
        return _("These queues are bound to its exchange; whether they take it is unknown:"), perhaps, False
    text = _("Unknown: no queue of this site takes it, and the broker cannot be asked (set MANAGEMENT_URL for that).")
    return text, [], False


def _known(alias: str, exchange: str, routing_key: str) -> tuple[list[str], list[str]]:
    """The queues of this site that take it, and those that may: nobody says of which type another's exchange is."""
    from messaging import topology  # which a web process needs for this alone

    try:
        known = topology.build(alias)
    except ConfigurationError:
        return [], []
    types = {one.name: one.type for one in known.exchanges} | {"amq.topic": "topic", "amq.direct": "direct"}
    surely, perhaps = [], []
    for queue in known.queues:
        keys = [key for name, key in queue.bindings if name == exchange]
        is_bound = any(_takes(types.get(exchange), key, routing_key) for key in keys)
        if is_bound or (exchange == "" and queue.name == routing_key):
            surely.append(queue.name)
        elif keys and exchange not in types:
            perhaps.append(queue.name)
    return surely[:SHOWN], perhaps[:SHOWN]


def _takes(kind: str | None, pattern: str, routing_key: str) -> bool:
    if kind == "topic":
        return topic_matches(pattern, routing_key)
    return kind == "fanout" or (kind == "direct" and pattern == routing_key)
