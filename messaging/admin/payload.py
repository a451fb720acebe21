"""Payloads on a page: pretty where they are JSON, never more than `PREVIEW` of them, and never read to show a list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db.models import Func, IntegerField, QuerySet, TextField
from django.db.models.functions import Left
from django.http import HttpResponse
from django.utils.translation import gettext as _

from messaging.admin.display import size
from messaging.exceptions import PayloadError, WireError
from messaging.models.base import StoredMessage
from messaging.wire.bodies import decode_body

PREVIEW = 64 * 1024  # characters of a body that a page shows
WIDEST = 4 * PREVIEW  # characters that indenting may make of them

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


class OctetLength(Func):
    """The length of a text in bytes, by the database."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite knows OCTET_LENGTH from 3.43 only."""
        return self.as_sql(compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context)


class Payload(NamedTuple):
    """A body as a page shows it.

    Attributes:
        text: what is shown.
        kind: "JSON", "text" or "base64".
        size: of the whole, for people.
        truncated: whether `text` is only its beginning.
        problem: why it is not what its content type says; "" when it is.
    """

    text: str
    kind: str
    size: str
    truncated: bool = False
    problem: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.text


def with_preview(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Rows without their body, but with its beginning and its length."""
    preview = Left("body", PREVIEW + 1, output_field=TextField())
    annotated: QuerySet[Any] = rows.defer("body").annotate(body_preview=preview, body_octets=OctetLength("body"))
    return annotated


def present(row: Any) -> Payload:
    """The payload of a row that was read with `with_preview()`."""
    text: str = row.body_preview or ""
    truncated = len(text) > PREVIEW
    text = text[:PREVIEW]
    if row.body_encoding == "base64":
        octets = row.body_octets * 3 // 4 - (0 if truncated else len(text) - len(text.rstrip("=")))
        return Payload(text, "base64", size(octets), truncated)
    whole = size(row.body_octets or 0)
    if truncated:
        return Payload(text, _("text"), whole, True)
    pretty, problem = _pretty(text, row.content_type)
    return Payload(pretty or text, "JSON" if pretty else _("text"), whole, False, problem)


def header_rows(headers: Any) -> list[tuple[str, str]]:
    """Headers as names and readable values."""
    if not isinstance(headers, Mapping):
        return []
    return [(str(name), _plain(value)) for name, value in headers.items()]


def download(row: StoredMessage) -> HttpResponse:
    """The body to the byte, as a file that no browser interprets; a damaged one as it is stored."""
    name = f"message-{row.pk}.{'bin' if row.body_encoding else 'txt'}"
    try:
        body = row.raw_body
    except WireError:
        body = row.body.encode("utf-8", "surrogatepass")
    response = HttpResponse(body, content_type="application/octet-stream")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, no-store"
    return response


def indent_json(text: str) -> str:
    """Valid JSON with line breaks and indentation; every number and text stays as it was written."""
    pieces: list[str] = []
    depth = length = 0
    previous = ""
    for token in _TOKEN.findall(text):
        if token in "}]":
            depth -= 1
            pieces.append("" if previous in ("{", "[") else "\n" + "  " * depth)
        elif previous in ("{", "[", ","):
            pieces.append("\n" + "  " * depth)
        if token in "{[":
            depth += 1
        pieces.append(": " if token == ":" else token)
        length += len(pieces[-1]) + 2 * depth
        if length > WIDEST:
            return text
        previous = token
    return "".join(pieces)


def _pretty(text: str, content_type: str) -> tuple[str, str]:
    """The text indented where it is JSON, and what is wrong where it should be."""
    if not text:
        return "", ""
    try:
        decode_body(text.encode("utf-8", "surrogatepass"), content_type)
        problem = ""
    except PayloadError as error:
        problem = str(error)
    if text.lstrip()[:1] not in ("{", "["):
        return "", problem
    try:
        json.loads(text)
        return indent_json(text), problem
    except (ValueError, RecursionError):
        return "", problem


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
