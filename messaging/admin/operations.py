"""The pages of stored operations: what they act on, how far they are, and a way to end one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging.admin import databases, exports, live, redaction
from messaging.admin.actions import page_of_operation
from messaging.admin.base import ReadOnlyAdmin
from messaging.admin.display import linked, moment, shorten, state_badge
from messaging.admin.pages import page
from messaging.admin.verbs import INCOMING, OUTGOING, Verb
from messaging.models import FailureGroup, Operation, OperationItem
from messaging.monitoring.databases import known
from messaging.operations import stored

SHOWN = 20  # messages that were not acted on
RESULT = ("row", "message_id", "result", "note", "settled_at")


class StateFilter(admin.SimpleListFilter):
    """By state."""

    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Every state."""
        return list(Operation.State.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The operations in that state."""
        return queryset.filter(state=self.value()) if self.value() in Operation.State.values else queryset


class OperationAdmin(ReadOnlyAdmin):
    """Stored operations: what they act on, how far they are, and a way to end one."""

    list_display = (
        "number_column",
        "verb_column",
        "scope_column",
        "state_column",
        "progress_column",
        "username",
        "created_column",
    )
    list_display_links = ("number_column",)
    list_filter = (databases.DatabaseFilter, StateFilter)
    nothing = gettext_lazy(
        "No operation was stored. What is done to all of a long list at once is stored here, and carried out in "
        "batches by consumers, relays or “manage.py run_operations”."
    )
    ordering = ("-id",)
    exported = (
        "id", "verb", "kind", "scope", "state", "total", "done", "skipped", "failed", "rate", "username", "reason",
        "created_at", "began_at", "ended_at", "worker",
    )  # fmt: skip

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see messages sees what is done to them."""
        names = ("view_operation", "view_processedmessage", "view_publishedmessage")
        return any(request.user.has_perm(f"messaging.{name}") for name in names)

    def may_act(self, request: HttpRequest, operation: Operation) -> bool:
        """Whether this user may do what the operation does."""
        verb = _verb(operation)
        return verb is not None and request.user.has_perm(f"messaging.{verb.permission}_{operation.kind}message")

    def get_urls(self) -> list[URLPattern]:
        """What can be done to an operation, before the admin's own."""
        wrap = self.admin_site.admin_view
        return [
            path("<str:key>/cancel/", wrap(self.cancel_view), name="messaging_operation_cancel"),
            path("<str:key>/go-on/", wrap(self.go_on_view), name="messaging_operation_go_on"),
            path("<str:key>/result/", wrap(self.result_view), name="messaging_operation_result"),
            *super().get_urls(),
        ]

    def cancel_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Have nothing more of it done."""
        operation = self._asked(request, key)
        if request.method == "POST":
            done = stored.cancel(operation)
            text = _("It is cancelled. What was done stays done.") if done else _("It has ended already.")
            self.message_user(request, text)
        return HttpResponseRedirect(page_of_operation(operation, self.admin_site.name))

    def go_on_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Have the rest done after one was tried."""
        operation = self._asked(request, key)
        if request.method == "POST":
            done = stored.go_on(operation)
            text = _("It goes on.") if done else _("It is not waiting for your confirmation any more.")
            self.message_user(request, text)
        return HttpResponseRedirect(page_of_operation(operation, self.admin_site.name))

    def result_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """What became of each of its messages, as a file."""
        operation = databases.named(Operation, unquote(key)).first()
        if operation is None or not self.may_see_messages(request, operation):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseRedirect(page_of_operation(operation, self.admin_site.name))
        exports.record(request, "operation", f"{operation}, CSV", operation._state.db, operation.pk)
        return exports.stream(request, _results(operation), RESULT, "csv", f"operation-{operation.pk}")

    def may_see_messages(self, request: HttpRequest, operation: Operation) -> bool:
        """Whether this user may see the messages that it acts on."""
        return request.user.has_perm(f"messaging.view_{operation.kind}message")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The page of one operation."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        operation = databases.named(Operation, unquote(object_id)).first()
        if operation is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        is_over = operation.state not in (*Operation.UNFINISHED, Operation.State.HELD)
        own = {
            "subtitle": str(operation),
            "badge": self.state_column(operation),
            "act": self.verb_column(operation),
            "facts": self._facts(request, operation),
            "reasons": _reasons(operation),
            "items": self._unacted(operation),
            "may_act": not is_over and self.may_act(request, operation),
            "is_held": operation.state == Operation.State.HELD,
            "is_over": is_over,
            "has_result": operation.settled and self.may_see_messages(request, operation),
            "is_live": live.ends(operation),
            **(extra_context or {}),
        }
        return page(self, request, "operation.html", capfirst(str(self.opts.verbose_name)), operation, **own)

    @admin.display(description="#")
    def number_column(self, row: Operation) -> str:
        """Its number."""
        return f"#{row.pk}"

    @admin.display(description=gettext_lazy("action"))
    def verb_column(self, row: Operation) -> str:
        """What it does."""
        verb = _verb(row)
        return row.verb if verb is None else str(verb.button)

    @admin.display(description=gettext_lazy("which"))
    def scope_column(self, row: Operation) -> SafeString | str:
        """Which messages."""
        return shorten(redaction.text(row.scope), 80)

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Operation) -> SafeString:
        """Its state with its shape."""
        return state_badge(row.state, row.get_state_display())

    @admin.display(description=gettext_lazy("progress"))
    def progress_column(self, row: Operation) -> SafeString:
        """How many of its messages are dealt with."""
        return format_html("{} / {}", f"{row.settled:,}", f"{row.total:,}")

    @admin.display(description=gettext_lazy("created"))
    def created_column(self, row: Operation) -> SafeString:
        """When it was stored."""
        return moment(row.created_at, seconds=False)

    def _asked(self, request: HttpRequest, key: str) -> Operation:
        operation = databases.named(Operation, unquote(key)).first()
        if operation is None or not self.may_act(request, operation):
            raise PermissionDenied
        found: Operation = operation
        return found

    def _facts(self, request: HttpRequest, operation: Operation) -> list[tuple[str, Any]]:
        done, skipped, failed = (self._count(request, operation, result) for result in ("done", "skipped", "failed"))
        rate = _("as fast as can be") if operation.rate is None else f"{operation.rate:g}"
        return [
            (_("Messages"), self._scope(operation)),
            *([(_("Database"), operation._state.db)] if len(known(Operation)) > 1 else []),
            (_("Number"), f"{operation.total:,}"),
            (_("Done"), done),
            (_("Skipped"), skipped),
            (_("Failed"), failed),
            (_("Still to do"), f"{operation.remaining:,}"),
            (_("Per second at most"), rate),
            (_("By"), operation.username or "—"),
            (_("Reason"), redaction.text(operation.reason) or "—"),
            (_("Stored"), moment(operation.created_at)),
            (_("Begun"), moment(operation.began_at)),
            (_("Ended"), moment(operation.ended_at)),
            (_("Carried out by"), operation.worker or "—"),
        ]

    def _count(self, request: HttpRequest, operation: Operation, result: str) -> SafeString | str:
        """How many of its messages came to this, with a link to the list of them."""
        count = getattr(operation, result)
        if not count or not self.may_see_messages(request, operation):
            return f"{count:,}"
        place = stored.MODELS[operation.kind], str(operation._state.db), self.admin_site.name
        url = databases.if_any(databases.list_of, *place, operation=f"{operation.pk}-{result}")
        return linked(url, f"{count:,}")

    def _scope(self, operation: Operation) -> SafeString | str:
        """Which messages, with a link where they are those of a failure group."""
        if operation.group_id is None:
            return redaction.text(operation.scope)
        place = FailureGroup, operation._state.db, operation.group_id, self.admin_site.name
        return linked(databases.if_any(databases.page_in, *place), redaction.text(operation.scope))

    def _unacted(self, operation: Operation) -> list[tuple[int, str, str]]:
        """Some of the messages that it left as they were, with links and reasons; of one that was tried, that one."""
        results = [OperationItem.Result.SKIPPED, OperationItem.Result.FAILED]
        if operation.state == Operation.State.HELD:
            results.append(OperationItem.Result.DONE)
        items = OperationItem.objects.using(operation._state.db).filter(operation=operation.pk, result__in=results)
        items = items.order_by("row")[:SHOWN]
        return [(item.row, self._message_url(operation, item.row), redaction.text(item.note or "")) for item in items]

    def _message_url(self, operation: Operation, row: int) -> str:
        place = stored.MODELS[operation.kind], operation._state.db, row, self.admin_site.name
        return databases.if_any(databases.page_in, *place)


def _results(operation: Operation) -> Iterator[list[exports.Row]]:
    """What became of its messages, a batch of them at a time, in the order of their numbers."""
    database = operation._state.db
    items = OperationItem.objects.using(database).filter(operation=operation.pk).order_by("row")
    messages, last = stored.MODELS[operation.kind]._default_manager.using(database), 0
    while batch := list(items.filter(row__gt=last)[: exports.BATCH]):
        names = dict(messages.filter(pk__in=[item.row for item in batch]).values_list("pk", "message_id"))
        yield [
            {
                "row": item.row,
                "message_id": names.get(item.row),
                "result": "" if item.result is None else OperationItem.Result(item.result).name.lower(),
                "note": exports.plain(item.note, "note"),
                "settled_at": exports.plain(item.settled_at),
            }
            for item in batch
        ]
        last = batch[-1].row


def _reasons(operation: Operation) -> list[tuple[str, int]]:
    """Why messages were left as they were, and how many, the most first."""
    return [(redaction.text(why), count) for why, count in sorted(operation.reasons.items(), key=lambda pair: -pair[1])]


def _verb(operation: Operation) -> Verb | None:
    verbs = INCOMING if operation.kind == "processed" else OUTGOING
    return next((verb for verb in verbs if verb.name == operation.verb), None)
