"""What the lists and pages of outgoing and incoming messages share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, Q, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from messaging.admin import databases, exports, lists, live, payload, redaction, search, waiting
from messaging.admin.actions import as_action, carry_out, confirm
from messaging.admin.display import ending, moment, shorten, state_badge
from messaging.admin.filters import chosen_state, is_listed, newest_pk
from messaging.admin.pages import page
from messaging.admin.paginator import BoundedPaginator
from messaging.admin.story import with_operation
from messaging.admin.verbs import Verb
from messaging.monitoring.databases import home

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = admin.ModelAdmin

UNLISTED = ("body", "headers", "wire", "error")
LONGEST_QUERY = 16 * 1024  # characters
SEARCHED = 200_000  # newest rows among which columns without an index are searched
BRIEF = 120  # characters of an error in a list
REDACTED = 4000  # of which so many are read where the site redacts them: a part of a secret may not look like one
NAMED = 60  # characters of a routing key or a queue there


def brief(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """A view that refuses a query string which no page of ours leads to, before anybody reads it."""

    @wraps(view)
    def refuse_or_answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if len(request.META.get("QUERY_STRING", "")) > LONGEST_QUERY:
            return HttpResponse(_("The address is too long."), status=414, content_type="text/plain; charset=utf-8")
        return view(request, *args, **kwargs)

    return refuse_or_answer


def beginning_of_error() -> Left:
    """As much of an error as `brief_error()` needs, for a query."""
    return Left("error", (REDACTED if redaction.is_on() else BRIEF) + 1)


def brief_error(row: Any) -> str:
    """The beginning of a listed row's error, with a character more than is shown, as it may be seen."""
    return redaction.text(row.brief or "", row)[: BRIEF + 1]


class ReadOnlyAdmin(Base):
    """Rows that nobody adds, changes or deletes here."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    sortable_by = ()
    list_per_page = 50
    list_max_show_all = 200
    change_list_template = "admin/messaging/message_list.html"
    exported: tuple[str, ...] = ()  # fields of which an export of the list has columns; none: there is no export
    nothing: Any = ""  # what an empty list says where nothing is filtered: why, and what to do

    class Media:
        css = {"all": ("messaging/admin.css",)}

    @property
    def urls(self) -> list[URLPattern]:
        """Those of `get_urls()`, guarded."""
        patterns = super().urls
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = brief(pattern.callback)
        return patterns

    def get_urls(self) -> list[URLPattern]:
        """The export of the list, before the admin's own."""
        if not self.exported:
            return super().get_urls()
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        return [
            path("export/", self.admin_site.admin_view(partial(exports.view, self)), name=name),
            *super().get_urls(),
        ]

    def has_view_payload_permission(self, request: HttpRequest) -> bool:
        """Whether body and headers are shown, where there are any."""
        return False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may: retention removes what is resolved, and nothing else is removed."""
        return False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Only the list filters: another column in the address could scan the whole table."""
        return lookup in {getattr(item, "parameter_name", None) for item in self.get_list_filter(request)}  # type: ignore[arg-type]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Rows as they were written: what a router reads from may not have the newest."""
        return super().get_queryset(request).using(databases.of(request, self.model))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """The row that a key names; None if there is none."""
        return databases.named(self.model, object_id).first()

    def get_preserved_filters(self, request: HttpRequest) -> str:
        """The query of the list that a page was reached from; the row's database, where it was reached from none."""
        kept: str = super().get_preserved_filters(request)
        database = databases.of(request, self.model)
        if kept or database == home(self.model):
            return kept
        return urlencode({lists.FILTERS: urlencode({databases.PARAMETER: database})})

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, under the model's own name."""
        title = capfirst(str(self.opts.verbose_name_plural))
        return super().changelist_view(request, {"title": title, "nothing": self.nothing, **(extra_context or {})})

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The admin's own record of acts, with their reasons as they may be seen."""
        page = super().history_view(request, object_id, extra_context)
        for entry in (getattr(page, "context_data", None) or {}).get("action_list", ()):
            entry.change_message = redaction.text(entry.get_change_message())
        return page

    def get_paginator(self, request: HttpRequest, queryset: Any, *args: Any, **kwargs: Any) -> Any:
        """Over what a search has read already, where it has."""
        found = getattr(request, "_messaging_found", None)
        return super().get_paginator(request, queryset if found is None else found, *args, **kwargs)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[lists.Page | lists.Unread]:
        """What makes the list."""
        return lists.Unread if lists.is_unread(request) else lists.Page

    def may(self, request: HttpRequest, codename: str) -> bool:
        """Whether the user has this permission on the model."""
        return request.user.has_perm(f"{self.opts.app_label}.{codename}_{self.opts.model_name}")


class MessageAdmin(ReadOnlyAdmin):
    """A list of messages with actions, and a page for each message."""

    verbs: Sequence[Verb] = ()
    object_history_template = "admin/messaging/history.html"
    sample_fields: tuple[str, ...] = ("id", "state", "queue", "routing_key", "message_id")
    exported: tuple[str, ...] = (
        "id", "state", "alias", "queue", "exchange", "routing_key", "message_id", "type", "content_type",
        "correlation_id", "causation_id", "reply_to", "round", "attempts", "error",
    )  # fmt: skip
    ordering = ("-id",)
    search_fields = ("message_id",)  # get_search_results() decides
    search_help_text = _(
        "Exact message id or correlation id. Among the newest 200,000 messages also an exact causation id "
        "or the beginning of a routing key."
    )

    def __init__(self, model: type[Any], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        self.actions = [as_action(verb) for verb in self.verbs]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Rows without what only their own page shows."""
        rows: QuerySet[Any] = super().get_queryset(request).defer(*UNLISTED)
        annotated: QuerySet[Any] = rows.annotate(brief=beginning_of_error())
        return annotated

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """The newest first; within one state in the order of the index that has it."""
        return ("-state", "-id") if is_listed(self.model, chosen_state(request.GET)) else ("-id",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search what has an index first; the rest only among the newest rows."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if (what := search.wanted(term)) is not None and not search.why_not(request, self):
            return (queryset.none() if lists.is_beside(request) else search.find(request, queryset, term, what)), False
        indexed, other = (
            Q(message_id=term) | Q(correlation_id=term),
            Q(causation_id=term) | Q(routing_key__startswith=term),
        )
        rows = self.model._default_manager.using(queryset.db)
        found = rows.filter(indexed)
        if lists.is_beside(request):
            return queryset.filter(indexed | Q(~Exists(found), other)), False
        if found.exists():
            return queryset.filter(indexed), False
        return queryset.filter(other, pk__gt=newest_pk(rows.all()) - SEARCHED), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list, which says what this user can search it by."""
        page = super().get_changelist_instance(request)
        if not search.why_not(request, self):
            page.search_help_text = f"{self.search_help_text} {search.HELP}"
        return page

    def get_urls(self) -> list[URLPattern]:
        """A page for each verb and the payload's download, before the admin's own."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        wrap = self.admin_site.admin_view
        own = [
            path(
                f"<str:key>/{verb.name}/",
                wrap(partial(self.verb_view, verb=verb)),
                name=f"{name}_{verb.name}",
            )
            for verb in self.verbs
        ]
        return [*own, path("<str:key>/payload/", wrap(self.payload_view), name=f"{name}_payload"), *super().get_urls()]

    def permits(self, request: HttpRequest, verb: Verb) -> bool:
        """Whether this user may use a verb."""
        allowed: bool = getattr(self, f"has_{verb.permission}_permission")(request)
        return allowed

    def has_view_payload_permission(self, request: HttpRequest) -> bool:
        """Whether body and headers are shown."""
        return self.may(request, "view_payload")

    def verb_view(self, request: HttpRequest, key: str, verb: Verb) -> HttpResponse:
        """Ask whether to act on one message (GET), or act (POST)."""
        if not (self.has_view_permission(request) and self.permits(request, verb)):
            raise PermissionDenied
        rows = databases.named(self.model, unquote(key))
        if not rows.exists():
            return self._get_obj_does_not_exist_redirect(request, self.opts, key)  # type: ignore[attr-defined,no-any-return]
        page = self.keeping(request, self.url("change", key))
        if request.method != "POST":
            return confirm(self, request, verb, rows, [], page)
        carry_out(self, request, verb, rows)
        return HttpResponseRedirect(page)

    def payload_view(self, request: HttpRequest, key: str) -> HttpResponseBase:
        """The body as a file."""
        if not (self.has_view_permission(request) and self.has_view_payload_permission(request)):
            raise PermissionDenied
        found = payload.download(databases.named(self.model, unquote(key)))
        if found is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, key)  # type: ignore[attr-defined,no-any-return]
        return found

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The page of one message."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = self.find(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        return self.detail(request, row, extra_context or {})

    def find(self, request: HttpRequest, key: str) -> Any:
        """The row with the beginning of its payload, and what its page says of its place; None if there is none."""
        _database, pk = databases.place_of(self.model, key)
        if pk is None:
            return None
        rows = self.seen(payload.with_preview(databases.named(self.model, key)))
        row = lists.with_neighbours(with_operation(rows), self, request, pk).first()
        return row if row is None else waiting.completed(row)

    def seen(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Rows with what else their page says of them, in the same query."""
        return waiting.annotated(rows)

    def detail(self, request: HttpRequest, row: Any, extra_context: dict[str, Any]) -> HttpResponse:
        """Render the page of one message."""
        visible = self.has_view_payload_permission(request)
        own = {
            "subtitle": str(row),
            "badge": self.badge(row),
            "is_live": live.ends(row),
            "tools": self.tools(request, row),
            **self.beside(request, row),
            "payload": payload.present(row) if visible else None,
            "payload_url": self.url_of("payload", row),
            "headers": payload.header_rows(redaction.headers(row)) if visible else None,
            **self.describe(request, row),
            **extra_context,
        }
        return page(self, request, "message_detail.html", capfirst(str(self.opts.verbose_name)), row, **own)

    def describe(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page says beside the payload: `headline`, `facts`, `timeline`, `related`."""
        raise NotImplementedError

    def tools(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        """The buttons of this row for this user."""
        tools = [
            {
                "url": self.keeping(request, self.url_of(verb.name, row)),
                "label": verb.button,
                "destructive": verb.destructive,
            }
            for verb in self.verbs
            if verb.fits(row) and self.permits(request, verb)
        ]
        return [*tools, *self._clone(request, row)]

    def _clone(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        """The button that fills the form for a new message with this one, for those who may see it and publish."""
        may = request.user.has_perm("messaging.publish_publishedmessage") and self.has_view_payload_permission(request)
        if not may or (row.wire is None and row._meta.model_name == "processedmessage"):
            return []
        url = databases.if_any(reverse, f"{self.admin_site.name}:messaging_publishedmessage_add")
        if not url:
            return []
        kind = "incoming" if row._meta.model_name == "processedmessage" else "outgoing"
        query = urlencode({"clone": f"{kind}:{databases.key_of(row)}"}, safe=":")
        return [{"url": f"{url}?{query}", "label": _("Write one like it")}]

    def beside(self, request: HttpRequest, row: Any) -> dict[str, str]:
        """The addresses of the messages beside one that was read by `find()`, in its list; "" at the list's ends."""
        found, site = {}, self.admin_site.name
        for name in ("newer", "older"):
            pk = vars(row).get(name)
            url = databases.page_in(self.model, row._state.db, pk, site) if pk else ""
            found[f"{name}_url"] = self.keeping(request, url) if url else ""
        return found

    def keeping(self, request: HttpRequest, url: str) -> str:
        """An address of ours, with the list's filter and page that this one keeps."""
        kept: dict[str, Any] = {"opts": self.opts, "preserved_filters": self.get_preserved_filters(request)}
        whole: str = add_preserved_filters(kept, url)
        return whole

    def url_of(self, name: str, row: Any) -> str:
        """The address of one of a row's pages."""
        return self.url(name, quote(databases.key_of(row)))

    def url(self, name: str, *args: Any) -> str:
        """The address of one of this model's pages; a row is named by its key, quoted."""
        full = f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{name}"
        return reverse(full, args=args)

    def badge(self, row: Any) -> SafeString:
        """The row's state with its shape."""
        return state_badge(row.state, row.get_state_display())

    @admin.display(description=_("state"))
    def state_column(self, row: Any) -> SafeString:
        """The state, and in brief what went wrong."""
        badge, trouble = self.badge(row), self.trouble(row)
        return format_html('{}<span class="msg-brief">{}</span>', badge, trouble) if trouble else badge

    def trouble(self, row: Any) -> SafeString | str:
        """The beginning of the error; "" where there is none."""
        return shorten(brief_error(row), BRIEF) if row.brief else ""

    @admin.display(description=_("message id"))
    def id_column(self, row: Any) -> SafeString | str:
        """The end of the message id."""
        return format_html("<code>{}</code>", ending(row.message_id)) if row.message_id else "—"

    @admin.display(description=_("created"))
    def created_column(self, row: Any) -> SafeString:
        """When the row was written."""
        return moment(row.created_at, seconds=False)
