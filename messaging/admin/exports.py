"""A list as a file, CSV or JSON: as many rows as there are, in as much memory as a batch of them takes.

The table is walked from its newest row to its oldest by its key, a piece at a time, so that no statement reads more
than a piece, whatever the filter is. Who took what is recorded before the first row leaves.
"""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Case, F, QuerySet, TextField, When
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _

from messaging.admin import lists, pages, redaction
from messaging.admin.actions import REASON, operator
from messaging.admin.filters import newest_pk
from messaging.admin.payload import as_file
from messaging.db.clock import in_utc
from messaging.models import AuditRecord
from messaging.models.light import OctetLength

if TYPE_CHECKING:
    from messaging.admin.base import ReadOnlyAdmin

FORMATS = {"csv": "text/csv; charset=utf-8", "json": "application/json"}
PIECE = 50_000  # keys among which rows are looked for at once
BATCH = 1000  # rows that are read at once
BYTES = 8 * 1024 * 1024  # of bodies that are read at once, or a single one
LARGEST = redaction.LARGEST  # bytes of a body that is exported
PAYLOAD = ("headers", "payload", "payload_kind", "payload_withheld")
FREE_TEXTS = frozenset({"error", "reason", "scope", "note"})
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet may take for the beginning of one  # noqa: RUF001

Row = dict[str, Any]


def view(model_admin: ReadOnlyAdmin, request: HttpRequest) -> HttpResponseBase:
    """Ask what is wanted of the list that the address describes (GET), or send it (POST)."""
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    page = lists.unread(model_admin, request, request.GET, whole=True)
    if page is None:
        return HttpResponseRedirect("../")
    if request.method != "POST":
        return _ask(model_admin, request, page)
    with_payload, kind = bool(request.POST.get("payload")), request.POST.get("format", "")
    if with_payload and not model_admin.has_view_payload_permission(request):
        raise PermissionDenied
    if kind not in FORMATS:
        return _ask(model_admin, request, page)
    scope = lists.scope(page)
    what = f"{model_admin.opts.verbose_name_plural}, {kind.upper()}{', payload' if with_payload else ''}"
    kind_of = str(model_admin.opts.model_name).removesuffix("message")[:20]
    record(request, kind_of, f"{what} · {scope}", page.queryset.db)
    names = model_admin.exported
    return stream(request, _rows(page.queryset, names, with_payload), names + PAYLOAD * with_payload, kind, _name(page))


def record(request: HttpRequest, kind: str, what: str, database: str, number: int | None = None) -> None:
    """Record who takes what, before it leaves.

    Args:
        request: whose.
        kind: of what is taken, as the audit has it.
        what: the same for people.
        database: where it is, and the record too.
        number: of the row that it is all about, if it is about one.
    """
    by = operator(request)
    own = {**by.recorded, "reason": " · ".join(filter(None, (what, by.reason)))}
    AuditRecord.objects.using(database).create(action="export", kind=kind, message_pk=number, **own)


def stream(request: HttpRequest, rows: Iterable[list[Row]], names: Iterable[str], kind: str, name: str) -> HttpResponse:
    """Rows as a file that is sent as it is made.

    Args:
        request: which is answered.
        rows: batches of them.
        names: the columns.
        kind: one of `FORMATS`.
        name: of the file, without its ending.
    """
    pieces = _csv(rows, list(names)) if kind == "csv" else _json(rows)
    content: Any = _later(pieces) if isinstance(request, ASGIRequest) else pieces
    response: Any = as_file(StreamingHttpResponse(content, content_type=FORMATS[kind]), f"{name}.{kind}")
    return response  # type: ignore[no-any-return]


def walk(rows: QuerySet[Any]) -> Iterator[list[int]]:
    """The keys of rows in batches, the newest first; of a batch there may be none."""
    table = rows.model._base_manager.using(rows.db)
    last = newest_pk(table)
    while last:
        piece = rows.filter(pk__lte=last, pk__gt=last - PIECE).order_by("-pk")
        keys = list(piece.values_list("pk", flat=True))
        for begin in range(0, len(keys), BATCH):
            yield keys[begin : begin + BATCH]
        last = newest_pk(table.filter(pk__lte=last - PIECE))


def plain(value: Any, name: str = "", row: Any = None) -> Any:
    """A column's value for a file: free text as it may be seen, moments in UTC."""
    if isinstance(value, datetime):
        return in_utc(value).astimezone(UTC).isoformat()
    return redaction.text(value, row) if name in FREE_TEXTS and isinstance(value, str) else value


def _ask(model_admin: ReadOnlyAdmin, request: HttpRequest, page: Any) -> HttpResponse:
    return pages.page(
        model_admin,
        request,
        "export.html",
        _("Export"),
        chosen=lists.sentences(page),
        formats=[(name, name.upper()) for name in FORMATS],
        may_have_payload=model_admin.has_view_payload_permission(request),
        back=f"../{page.get_query_string()}",
        reason_length=REASON,
    )


def _name(page: Any) -> str:
    return f"{page.opts.model_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _rows(rows: QuerySet[Any], names: tuple[str, ...], with_payload: bool) -> Iterator[list[Row]]:
    own = ("headers", "wire", "body_encoding") if with_payload else ()
    found = rows.defer(None).only(*names, *own)
    for keys in walk(rows):
        if with_payload:
            yield from ([_with_payload(row, names) for row in batch] for batch in _heavy(found, keys))
        else:
            yield [_of(row, names) for row in found.filter(pk__in=keys).order_by("-pk")]


def _heavy(rows: QuerySet[Any], keys: list[int]) -> Iterator[list[Any]]:
    """Rows with their bodies, as many at once as have `BYTES`; without those that are larger than `LARGEST`."""
    octets = rows.filter(pk__in=keys).order_by("-pk").annotate(octets=OctetLength("body")).values_list("pk", "octets")
    small = Case(When(octets__lte=LARGEST, then=F("body")), output_field=TextField())
    found = rows.alias(octets=OctetLength("body")).annotate(small_body=small).order_by("-pk")
    batch: list[int] = []
    size = 0
    for pk, length in list(octets):
        own = min(length or 0, LARGEST)
        if batch and size + own > BYTES:
            yield list(found.filter(pk__in=batch))
            batch, size = [], 0
        batch.append(pk)
        size += own
    if batch:
        yield list(found.filter(pk__in=batch))


def _of(row: Any, names: Iterable[str]) -> Row:
    return {name: plain(getattr(row, name), name, row) for name in names}


def _with_payload(row: Any, names: Iterable[str]) -> Row:
    own = {**_of(row, names), "headers": dict(redaction.headers(row)), **dict.fromkeys(PAYLOAD[1:])}
    try:
        if row.small_body is None:
            raise redaction.Withheld(_("It is larger than what is exported."))
        body = redaction.body(row, row.small_body)
    except redaction.Withheld as reason:
        return {**own, "payload_withheld": str(reason)}
    return {**own, "payload": body.value if body.kind == "JSON" else body.text, "payload_kind": body.kind}


def _csv(rows: Iterable[list[Row]], names: list[str]) -> Iterator[bytes]:
    lines: list[str] = []
    writer = csv.writer(_Lines(lines))
    writer.writerow(names)
    for batch in rows:
        for row in batch:
            writer.writerow([_cell(row[name]) for name in names])
        yield "".join(lines).encode("utf-8", "backslashreplace")
        lines.clear()
    yield "".join(lines).encode("utf-8", "backslashreplace")


def _json(rows: Iterable[list[Row]]) -> Iterator[bytes]:
    """One array. What is cut short on its way is none, and so is noticed."""
    before = "[\n"
    for batch in rows:
        for row in batch:
            text = json.dumps(row, cls=DjangoJSONEncoder, ensure_ascii=False)
            yield (before + text).encode("utf-8", "backslashreplace")
            before = ",\n"
    yield b"[]\n" if before == "[\n" else b"\n]\n"


def _cell(value: Any) -> str:
    """A value as a spreadsheet shows it, and never computes it."""
    if value is None:
        return ""
    if isinstance(value, (dict, list, bool)):
        value = json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) and not isinstance(value, (int, float)) else text


async def _later(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same under ASGI, where Django would collect all pieces of what it cannot await."""
    following = sync_to_async(lambda: next(pieces, None), thread_sensitive=True)
    while (piece := await following()) is not None:
        yield piece


class _Lines:
    """What `csv` writes to."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append
