"""Payloads on a page: pretty where they are JSON, never more than `PREVIEW` of them, and never read to show a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.db.models import QuerySet, TextField
from django.db.models.functions import Left, Substr
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _

from messaging.admin.display import size
from messaging.exceptions import PayloadError, WireError
from messaging.models.light import OctetLength
from messaging.wire.bodies import decode_body, unpack_body

PREVIEW = 64 * 1024  # characters of a body that a page shows
PIECE = 4 * 1024 * 1024  # characters that a download reads at once; whole groups of base64
WIDEST = 4 * PREVIEW  # characters that indenting may make of them

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


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


def download(rows: QuerySet[Any]) -> HttpResponseBase | None:
    """The one row's body to the byte, as a file that no browser interprets; a damaged one as it is stored.

    None where there is none. A large one is read as it is sent, a piece at a time.
    """
    row = rows.only("body_encoding").annotate(body_octets=OctetLength("body")).first()
    if row is None:
        return None
    pieces = _decoded(rows, row.body_encoding) if _is_encoded(rows, row.body_encoding) else _plain_text(rows)
    kind: Any = StreamingHttpResponse if row.body_octets > PIECE else HttpResponse  # which reads all of them at once
    response: HttpResponseBase = kind(pieces, content_type="application/octet-stream")
    name = f"message-{row.pk}.{'bin' if row.body_encoding else 'txt'}"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, no-store"
    return response


def _is_encoded(rows: QuerySet[Any], body_encoding: str) -> bool:
    """Whether a stored body has an encoding by which it can be decoded to its end."""
    try:
        for _piece in _decoded(rows, body_encoding) if body_encoding else ():
            pass
    except WireError:
        return False
    return bool(body_encoding)


def _decoded(rows: QuerySet[Any], body_encoding: str) -> Iterator[bytes]:
    return (unpack_body(piece, body_encoding) for piece in _pieces(rows))


def _plain_text(rows: QuerySet[Any]) -> Iterator[bytes]:
    return (piece.encode("utf-8", "surrogatepass") for piece in _pieces(rows))


def _pieces(rows: QuerySet[Any]) -> Iterator[str]:
    begin = 1
    while piece := rows.values_list(Substr("body", begin, PIECE), flat=True).first():
        yield piece
        begin += PIECE


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
