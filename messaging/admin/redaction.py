"""What may be seen of messages: whatever a page shows of a payload, of headers or of an error goes through here.

The site decides, with the callable that `MESSAGING_CONSOLE["REDACT"]` names. What that cannot be asked about is
withheld, with a sentence in its place: it is never shown as it is.
"""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple

from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from messaging import conf
from messaging.admin.display import size
from messaging.exceptions import ConfigurationError, PayloadError, WireError
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.wire.bodies import decode_body, unpack_body
from messaging.wire.envelope import Envelope

logger = logging.getLogger("messaging.admin")

LARGEST = 4 * 1024 * 1024  # characters of a stored body that is redacted; a larger one is withheld
KINDS: Mapping[Any, str] = {ProcessedMessage: "incoming", PublishedMessage: "outgoing"}

Part = Literal["payload", "headers", "text"]


class Withheld(Exception):
    """Something is not shown; says why, for people."""


class Body(NamedTuple):
    """A payload as it may be seen.

    Attributes:
        text: of JSON and of text; of bytes as base64.
        kind: "JSON", "text" or "base64".
        value: the same for programs: what JSON holds, text, or bytes.
    """

    text: str
    kind: str
    value: Any


def is_on() -> bool:
    """Whether the site redacts anything; also where its setting cannot be read."""
    try:
        return conf.console().redact is not None
    except ConfigurationError:
        return True


def text(value: str, row: Any = None) -> str:
    """An error, a traceback or a reason as it may be seen.

    Args:
        value: whole, since a part of a secret may be none to the site's callable.
        row: the message that it is about, if it is one.
    """
    if not value or not is_on():
        return value
    try:
        found = _asked("text", value, row)
        if not isinstance(found, str):
            raise _unusable("text", found)
    except Withheld as reason:
        return str(reason)
    return found


def headers(row: Any) -> Mapping[str, Any]:
    """The headers of a message as they may be seen; where they are withheld, the reason under the name "—"."""
    own = row.headers if isinstance(row.headers, Mapping) else {}
    if not own or not is_on():
        return own
    try:
        found = _asked("headers", deepcopy(dict(own)), row)
        if not isinstance(found, Mapping):
            raise _unusable("headers", found)
    except Withheld as reason:
        return {"—": str(reason)}
    return found


def body(row: Any, stored: str) -> Body:
    """The payload of a message as it may be seen. Raises Withheld where it may not.

    Args:
        row: the message, with its envelope.
        stored: its body, whole or at least more than `LARGEST` of it.
    """
    if len(stored) > LARGEST:
        raise Withheld(_("Withheld: only payloads of up to %(size)s are redacted.") % {"size": size(LARGEST)})
    value, kind = _decoded(row, stored)
    found = _asked("payload", value, row) if is_on() else value
    try:
        if kind == "JSON":
            return Body(json.dumps(found, ensure_ascii=False, indent=2, default=str), kind, found)
        if isinstance(found, (bytes, bytearray)):
            return Body(base64.b64encode(found).decode("ascii"), "base64", bytes(found))
        if isinstance(found, str):
            return Body(found, "text", found)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unusable("payload", found) from error
    raise _unusable("payload", found)


def hides(row: Any, stored: str) -> bool:
    """Whether a message's payload or headers may not be seen as they are, so that no form may write them back."""
    if not is_on():
        return False
    try:
        value, _kind = _decoded(row, stored)
        own = dict(row.headers) if isinstance(row.headers, Mapping) else {}
        return body(row, stored).value != value or dict(headers(row)) != own
    except Withheld:
        return True


def _decoded(row: Any, stored: str) -> tuple[Any, str]:
    """What a body holds, and what kind that is: JSON is told by its look too, whatever its content type says."""
    try:
        raw = unpack_body(stored, row.body_encoding)
    except WireError:  # damaged: it shows as it is stored
        return stored, "text"
    try:
        encoding = Envelope.from_wire(bytes(row.wire), b"").properties.content_encoding if row.wire else None
        value = decode_body(raw, row.content_type, encoding)
    except (PayloadError, WireError):
        value = raw
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value, "base64"
    if not isinstance(value, str):
        return value, "JSON"
    try:
        return (json.loads(value), "JSON") if value.lstrip()[:1] in ("{", "[") else (value, "text")
    except (ValueError, RecursionError):
        return value, "text"


def _asked(part: Part, value: Any, row: Any) -> Any:
    """What the site's callable makes of it."""
    about = {
        "part": part,
        "kind": KINDS.get(type(row), ""),
        "queue": getattr(row, "queue", ""),
        "routing_key": getattr(row, "routing_key", ""),
    }
    try:
        found = _callable()(value, **about)
    except Exception as error:  # noqa: BLE001  whatever the site's own code raises
        # What it says may hold what it was to hide.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("REDACT raised %s, so the %s is withheld.\n%s", type(error).__name__, part, frames)  # noqa: TRY400
        raise Withheld(_("Withheld: the site's REDACT has failed on it. The log says where.")) from None
    if found is None and value is not None:
        raise Withheld(_("Withheld by the site's REDACT."))
    return found


def _unusable(part: Part, found: Any) -> Withheld:
    logger.error("REDACT returned %s, which is no %s, so that is withheld.", type(found).__name__, part)
    return Withheld(_("Withheld: the site's REDACT has failed on it. The log says where."))


def _callable() -> Callable[..., Any]:
    found: Callable[..., Any] = import_string(conf.console().redact or "")
    return found
