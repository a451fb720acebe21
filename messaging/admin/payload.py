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

from messaging.admin import redaction
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
        problem: why it is not what its content type says, or not shown; "" when it is.
        withheld: whether it is not shown.
    """

    text: str
    kind: str
    size: str
    truncated: bool = False
    problem: str = ""
    withheld: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.text and not self.withheld


def with_preview(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Rows without their body, but with its beginning and its length; what is to be redacted is read whole."""
    length = redaction.LARGEST if redaction.is_on() else PREVIEW
    preview = Left("body", length + 1, output_field=TextField())
    annotated: QuerySet[Any] = rows.defer("body").annotate(body_preview=preview, body_octets=OctetLength("body"))
    return annotated


def preview_of(row: Any) -> str:
    """The beginning of a body, whether it was read whole or with `with_preview()`."""
    known = vars(row).get("body_preview")
    return str(row.body if known is None else known)


def present(row: Any) -> Payload:
    """The payload of a row that was read with `with_preview()`."""
    if redaction.is_on():
        return _redacted(row)
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


def header_rows(headers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Headers as names and readable values."""
    return [(str(name), _plain(value)) for name, value in headers.items()]


def _redacted(row: Any) -> Payload:
    whole = size(row.body_octets or 0)
    if not row.body_preview:
        return Payload("", _("text"), whole)
    try:
        shown = redaction.body(row, row.body_preview)
    except redaction.Withheld as reason:
        return Payload("", "—", whole, False, str(reason), True)
    kind = _("text") if shown.kind == "text" else shown.kind
    return Payload(shown.text[:PREVIEW], kind, whole, len(shown.text) > PREVIEW)


def download(rows: QuerySet[Any]) -> HttpResponseBase | None:
    """The one row's body to the byte, as a file that no browser interprets; a damaged one as it is stored.

    None where there is none. A large one is read as it is sent, a piece at a time. What the site redacts is written
    anew, and of what is withheld the file says why.
    """
    if redaction.is_on():
        return _redacted_download(with_preview(rows).first())
    row = rows.only("body_encoding").annotate(body_octets=OctetLength("body")).first()
    if row is None:
        return None
    pieces = _decoded(rows, row.body_encoding) if _is_encoded(rows, row.body_encoding) else _plain_text(rows)
    kind: Any = StreamingHttpResponse if row.body_octets > PIECE else HttpResponse  # which reads all of them at once
    response: HttpResponseBase = kind(pieces, content_type="application/octet-stream")
    return as_file(response, f"message-{row.pk}.{'bin' if row.body_encoding else 'txt'}")


def _redacted_download(row: Any) -> HttpResponseBase | None:
    if row is None:
        return None
    try:
        shown = redaction.body(row, row.body_preview)
        content = shown.value if isinstance(shown.value, bytes) else shown.text.encode("utf-8", "backslashreplace")
    except redaction.Withheld as reason:
        content = str(reason).encode()
    name = f"message-{row.pk}-redacted.{'bin' if row.body_encoding else 'txt'}"
    return as_file(HttpResponse(content, content_type="application/octet-stream"), name)


def as_file(response: HttpResponseBase, name: str) -> HttpResponseBase:
    """A response that browsers store under this name, and neither interpret nor keep."""
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
