"""Where one stands in a list: what comes before and after a row, or a page of them, under the filters in use."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.exceptions import SuspiciousOperation
from django.db.models import QuerySet, Subquery
from django.http import HttpRequest, QueryDict
from django.utils.translation import gettext as _

from messaging.admin import databases
from messaging.admin.filters import chosen_state

if TYPE_CHECKING:
    from messaging.admin.base import ReadOnlyAdmin

FILTERS = "_changelist_filters"  # in the address of a page: the query of the list that it was reached from
REACH = 50_000  # rows to either side in which a neighbour is looked for, where no index leads to it
# States of a few rows, which have an index of their own.
RARE = frozenset({"failed", "retrying", "requeued", "discarded", "superseded", "draft", "waiting", "due"})


class Page(ChangeList):
    """A page of a list. The search form offers to show all only where that shows more."""

    def get_results(self, request: HttpRequest) -> None:
        """Count, and choose the rows of the page."""
        super().get_results(request)
        found = getattr(request, "_messaging_found", None)
        if found is not None and not self.multi_page:  # a search has read them
            self.result_list = found
        elif not self.result_count:  # to look a second time for what is not there costs as much as the first
            self.result_list = self.queryset.none()
        if not (self.has_active_filters or self.query):
            self.full_result_count = self.result_count

    def url_for_result(self, result: Any) -> str:
        """The address of a row's page, wherever it is stored."""
        return databases.page_of(result, self.model_admin.admin_site.name)


class Unread(ChangeList):
    """The selection that a list makes, of which no page is read."""

    def get_results(self, request: HttpRequest) -> None:
        """None."""


def selection(model_admin: ReadOnlyAdmin, request: HttpRequest, query: QueryDict) -> QuerySet[Any] | None:
    """The rows that a list with this query selects, whichever page of them it shows; None where there is no such list.

    Args:
        model_admin: whose list.
        request: who looks.
        query: the list's address behind the question mark.
    """
    page = unread(model_admin, request, query)
    return None if page is None else page.queryset


def unread(model_admin: ReadOnlyAdmin, request: HttpRequest, query: QueryDict, *, whole: bool = False) -> Any:
    """The list itself, of which nothing is read.

    Args:
        model_admin: whose list.
        request: who looks.
        query: the list's address behind the question mark.
        whole: whether a filter selects all that matches, however far back, for who reads it a part at a time.
    """
    asked: Any = copy(request)
    asked.GET = query.copy()
    for name in (PAGE_VAR, "all", "before", "_popup", "_to_field"):
        asked.GET.pop(name, None)
    asked.is_unread = True
    if whole:
        asked.is_whole, asked._messaging_floor = True, 0
    try:
        return model_admin.get_changelist_instance(asked)
    except (IncorrectLookupParameters, SuspiciousOperation):
        return None


def is_unread(request: HttpRequest) -> bool:
    """Whether `selection()` asks."""
    return getattr(request, "is_unread", False)


def is_beside(request: HttpRequest) -> bool:
    """Whether a few rows beside another are asked for, by one query: none of it may be a search of its own."""
    return is_unread(request) and not getattr(request, "is_whole", False)


def with_neighbours(rows: QuerySet[Any], model_admin: ReadOnlyAdmin, request: HttpRequest, pk: int) -> QuerySet[Any]:
    """Rows with `newer` and `older`: the rows beside `pk` in the list that its page was reached from, or None."""
    query = QueryDict(request.GET.get(FILTERS, ""))
    found = selection(model_admin, request, query)
    if found is None:
        return rows
    newer, older = found.filter(pk__gt=pk), found.filter(pk__lt=pk)
    if chosen_state(query) not in RARE:
        newer, older = newer.filter(pk__lte=pk + REACH), older.filter(pk__gte=pk - REACH)
    beside: QuerySet[Any] = rows.annotate(
        newer=Subquery(newer.order_by("pk").values("pk")[:1]), older=Subquery(older.order_by("-pk").values("pk")[:1])
    )
    return beside


def newer_page(page: Page, request: HttpRequest) -> str:
    """Where the list goes on before its first row, where it began in the midst; "" where that is the paginator's task.

    Args:
        page: what is shown.
        request: who looks.
    """
    if "before" not in page.params:
        return ""
    rows, found = list(page.result_list), None
    model_admin: Any = page.model_admin
    beyond = selection(model_admin, request, request.GET) if rows else None
    if beyond is not None:
        newer = beyond.filter(pk__gt=rows[0].pk, pk__lte=rows[0].pk + REACH).order_by("pk")
        found = next(iter(newer.values_list("pk", flat=True)[page.list_per_page : page.list_per_page + 1]), None)
    return page.get_query_string({"before": found} if found else {}, [PAGE_VAR] if found else [PAGE_VAR, "before"])


def in_words(page: ChangeList) -> list[tuple[str, str]]:
    """The filters in use, each with its value, and what is searched for, as ("", term)."""
    chosen = []
    for spec in page.filter_specs:
        if any(name in page.params for name in spec.expected_parameters()):
            chosen += [(str(spec.title), str(item["display"])) for item in spec.choices(page) if item["selected"]]
    return [*chosen, *([("", page.query)] if page.query else [])]


def sentences(page: ChangeList) -> list[str]:
    """The same as texts; none where the list is whole."""
    told = in_words(page)
    return [f"{title}: {text}" if title else _("search: %(text)s") % {"text": text} for title, text in told]


def scope(page: ChangeList) -> str:
    """The same as one text, for records."""
    return "; ".join(sentences(page)) or _("all")
