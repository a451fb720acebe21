"""Lists that are only read: what operators did, and the workers."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from messaging.admin import databases, redaction, words
from messaging.admin.alerts import look
from messaging.admin.base import ReadOnlyAdmin
from messaging.admin.display import linked, moment, shorten
from messaging.admin.filters import OlderFilter
from messaging.admin.story import ACTS
from messaging.models import AuditRecord, FailureGroup, Operation, ProcessedMessage, PublishedMessage, Worker

# The pages of what a record is about, by its kind.
PAGES: dict[str, Any] = {
    "processed": ProcessedMessage,
    "published": PublishedMessage,
    "operation": Operation,
    "group": FailureGroup,
}


class ActFilter(admin.SimpleListFilter):
    """By what was done."""

    title = _("action")
    parameter_name = "action"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The acts that there are."""
        return [(name, str(label)) for name, label in ACTS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The records of that act."""
        return queryset.filter(action=self.value()) if self.value() in ACTS else queryset


class AuditRecordAdmin(ReadOnlyAdmin):
    """What operators did; the message's own page tells it too."""

    list_display = ("act_column", "at_column", "username", "subject_column", "change_column", "reason_column")
    list_display_links = None
    list_filter = (databases.DatabaseFilter, ActFilter, OlderFilter)
    nothing = _("Nobody has acted yet. What operators do to messages and queues is recorded here.")
    ordering = ("-id",)
    exported = (
        "id", "action", "at", "username", "reason", "kind", "message_pk", "alias", "queue", "message_id",
        "state_before", "state_after",
    )  # fmt: skip
    search_fields = ("message_id__exact", "username__exact")
    search_help_text = _("Exact message id or user name.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Without what the page of a message shows of an act."""
        return super().get_queryset(request).defer("details")

    @admin.display(description=_("action"))
    def act_column(self, row: AuditRecord) -> str:
        """What was done."""
        return str(ACTS.get(row.action, row.action))

    @admin.display(description=_("at"))
    def at_column(self, row: AuditRecord) -> SafeString:
        """When."""
        return moment(row.at)

    @admin.display(description=_("message"))
    def subject_column(self, row: AuditRecord) -> SafeString | str:
        """To what, with a link to it."""
        text = shorten(row.message_id or row.queue or f"#{row.message_pk}", 36)
        if row.message_pk is None or row.kind not in PAGES:
            return row.queue
        place = PAGES[row.kind], row._state.db, row.message_pk, self.admin_site.name
        return linked(databases.if_any(databases.page_in, *place), text)

    @admin.display(description=_("state"))
    def change_column(self, row: AuditRecord) -> str:
        """From which state to which."""
        return words.change(row.state_before, row.state_after)

    @admin.display(description=_("reason"))
    def reason_column(self, row: AuditRecord) -> SafeString | str:
        """Why."""
        return shorten(redaction.text(row.reason), 80)


class WorkerAdmin(ReadOnlyAdmin):
    """Consumer processes and relays, as they report themselves."""

    list_display = (
        "name",
        "kind_column",
        "host",
        "pid",
        "queues_column",
        "status_column",
        "started_column",
        "seen_column",
    )
    list_display_links = None
    ordering = ("-seen_at", "-id")
    exported = ("id", "name", "kind", "host", "pid", "alias", "queues", "paused", "status", "started_at", "seen_at")
    change_list_template = "admin/messaging/worker_list.html"
    nothing = _("No worker was ever started. Start one with: manage.py consume")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, and below it what workers run, and what they may be waiting for."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        from messaging.admin import panels, running  # and with them what reads a broker

        own = {"runs": running.runs(request, self.admin_site.name, look(request).workers), "holders": panels.holders()}
        return super().changelist_view(request, {**own, **(extra_context or {})})

    @admin.display(description=_("kind"))
    def kind_column(self, row: Worker) -> str:
        """What it is."""
        return words.kind(row.kind)

    @admin.display(description=_("status"))
    def status_column(self, row: Worker) -> str:
        """What it does."""
        return words.status(row.status) or "—"

    @admin.display(description=_("queues"))
    def queues_column(self, row: Worker) -> str:
        """What it consumes, paused queues marked."""
        paused = row.paused if isinstance(row.paused, list) else []
        return ", ".join(f"{name} ({_('paused')})" if name in paused else str(name) for name in row.queues)

    @admin.display(description=_("started"))
    def started_column(self, row: Worker) -> SafeString:
        """When it started."""
        return moment(row.started_at)

    @admin.display(description=_("last seen"))
    def seen_column(self, row: Worker) -> SafeString:
        """When it last said that it lives."""
        return moment(row.seen_at)
