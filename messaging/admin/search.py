"""Searching payloads for a value at a path, such as `order.id:17`: what a site on PostgreSQL may switch on.

It takes one statement with a time limit, within the list's time window, and finds the newest rows. It finds only what
the user may see: not what the site redacts.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from django.db import OperationalError, connections, transaction
from django.db.models import BooleanField, F, Func, Q, QuerySet, TextField, Value
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging import conf
from messaging.admin import redaction
from messaging.admin.filters import PERIODS, PeriodFilter, moment_of
from messaging.exceptions import ConfigurationError

HELP = gettext_lazy(
    "In payloads of JSON, a value at its path, such as order.id:17 or items[].sku:A-1, within the time that is chosen; "
    "of the past 24 hours, if none is."
)
PATIENCE = 3  # seconds after which a search is cut off
MOST = 200  # rows that it finds, the newest
WINDOW = "24h"  # the period that is searched where none is chosen
DEEPEST = 10  # steps of a path

_STEP = r"[^\s.:\[\]]+(?:\[\])?"
_TERM = re.compile(rf"(?P<path>(?:\[\]\.)?{_STEP}(?:\.{_STEP})*):\s*(?P<value>.+)")


class Wanted(NamedTuple):
    """What is looked for.

    Attributes:
        path: names of members, "[]" for any item of a list.
        values: what may stand there: 17 is looked for as a number and as text.
    """

    path: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def patterns(self) -> list[str]:
        """As JSON that a payload has to contain, one for each value."""
        found = []
        for value in self.values:
            tree = value
            for step in reversed(self.path):
                tree = [tree] if step == "[]" else {step: tree}
            found.append(json.dumps(tree, ensure_ascii=False))
        return found

    def is_in(self, tree: Any) -> bool:
        """Whether a decoded payload has one of the values at the path."""
        found = [tree]
        for step in self.path:
            if step == "[]":
                found = [item for one in found if isinstance(one, list) for item in one]
            else:
                found = [one[step] for one in found if isinstance(one, dict) and step in one]
        return any(_is_same(one, value) for one in found for value in self.values)


class Holds(Func):
    """Whether a body is JSON that contains a pattern; by the function that a migration has made, for its index."""

    template = "(messaging_payload(%(expressions)s)::jsonb)"
    arg_joiner = ") @> ("
    output_field = BooleanField()

    def __init__(self, pattern: str) -> None:
        super().__init__(F("body"), Value(pattern, output_field=TextField()))


def wanted(term: str) -> Wanted | None:
    """What a term of the form `path:value` looks for; None for one of another form."""
    found = _TERM.fullmatch(term)
    if found is None or "\x00" in term:
        return None
    path = tuple(step for step in re.split(r"\.|(?=\[\])", found["path"]) if step)
    text = found["value"].strip()
    if len(path) > DEEPEST or not text:
        return None
    try:
        value = json.loads(text, parse_constant=lambda _name: text)
    except (ValueError, RecursionError):
        return Wanted(path, (text,))
    if isinstance(value, str):
        return Wanted(path, (value,))
    if isinstance(value, (dict, list)):
        return Wanted(path, (text,))
    return Wanted(path, (value, text))


def why_not(request: HttpRequest, model_admin: Any) -> str:
    """Why payloads are not searched for this user; "" where they are."""
    try:
        is_on = conf.console().payload_search
    except ConfigurationError as error:
        return str(error)
    if not is_on or connections[model_admin.get_queryset(request).db].vendor != "postgresql":
        return _("Payloads are not searched on this site: that takes PostgreSQL, and the setting PAYLOAD_SEARCH.")
    if not model_admin.has_view_payload_permission(request):
        return _("You do not have the permission to see payloads, so they are not searched for you.")
    return ""


def is_path(term: str) -> bool:
    """Whether a term seems to look for a value in payloads."""
    return wanted(term) is not None


def find(request: HttpRequest, rows: QuerySet[Any], term: str, what: Wanted) -> QuerySet[Any]:
    """The rows of a list whose id a term is, and of its time window those whose payload holds what it wants.

    What is found is kept for the list's page, with a sentence on how far it was searched.

    Args:
        request: who looks.
        rows: what the list's filters leave.
        term: what was typed.
        what: the same, understood.
    """
    period = request.GET.get(PeriodFilter.parameter_name, "")
    label, length = PERIODS.get(period, PERIODS[WINDOW])
    holds = Q()
    for pattern in what.patterns:
        holds |= Q(Holds(pattern))
    within = Q(**{f"{moment_of(rows.model)}__gte": timezone.now() - length})
    if redaction.is_on():  # which looks at what was found, and so has to be read with it
        rows = rows.defer(None).defer("error")
    ids = rows.filter(Q(message_id=term) | Q(correlation_id=term))[: MOST + 1]
    found = _within_patience(ids.union(rows.filter(within, holds)[: MOST + 1], all=True))
    told = [_("Searched: payloads of up to 128 KiB, %(period)s.") % {"period": _lower(str(label))}]
    if found is None:
        told = [
            _(
                "The search was cut off after %(count)d seconds, so nothing is shown: choose a shorter time, or have "
                "the index made that the reference of settings describes."
            )
            % {"count": PATIENCE}
        ]
    elif len(found) > MOST:
        told.append(_("Only the newest %(count)d messages that match are shown.") % {"count": MOST})
    shown = {row.pk: row for row in found or () if _is_seen(row, what, term)}
    newest = sorted(shown.values(), key=lambda row: -row.pk)[:MOST]
    request._messaging_found = newest  # type: ignore[attr-defined]
    request._messaging_searched = " ".join(told)  # type: ignore[attr-defined]
    return rows.filter(pk__in=[row.pk for row in newest])


def _within_patience(rows: QuerySet[Any]) -> list[Any] | None:
    """Read them; None where that takes too long. The limit ends with the transaction: the request's, if it is one."""
    try:
        with transaction.atomic(using=rows.db):
            with connections[rows.db].cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = {PATIENCE * 1000}")
            return list(rows)
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != "57014":  # query_canceled
            raise
        return None


def _is_seen(row: Any, what: Wanted, term: str) -> bool:
    """Whether what was found is there to be seen: else a search would tell what the site redacts."""
    if not redaction.is_on() or term in (row.message_id, row.correlation_id):
        return True
    try:
        return what.is_in(redaction.body(row, row.body).value)
    except redaction.Withheld:
        return False


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON, which has one kind of numbers, and no number is true."""
    kinds = [float if isinstance(value, int) and not isinstance(value, bool) else type(value) for value in (one, other)]
    return kinds[0] is kinds[1] and bool(one == other)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
