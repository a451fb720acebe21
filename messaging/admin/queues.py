"""The page of queues, and pausing."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _

from messaging import conf, operations
from messaging.admin.actions import REASON, operator
from messaging.admin.alerts import look
from messaging.admin.base import ReadOnlyAdmin
from messaging.admin.overview import outgoing_cards
from messaging.admin.pages import page
from messaging.handlers import queues_of
from messaging.monitoring.conditions import alive


class QueueControlAdmin(ReadOnlyAdmin):
    """The page of queues stands where the list of the paused ones would be."""

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Whether queues may be paused and resumed."""
        return self.may(request, "pause")

    def get_urls(self) -> list[URLPattern]:
        """Pages that pause and resume, before the admin's own."""
        wrap, view = self.admin_site.admin_view, self.pause_view
        return [
            path("pause/", wrap(view), {"paused": True}, name="messaging_queuecontrol_pause"),
            path("resume/", wrap(view), {"paused": False}, name="messaging_queuecontrol_resume"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The page of queues."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        from messaging.admin import panels, pauses, running  # and with them what reads a broker

        shown = panels.panels(self.admin_site.name)
        now = look(request)  # what was just read of the broker included
        workers = panels.workers(now.workers)
        own = {
            "panels": pauses.acknowledged(shown, list(alive(now))),
            "workers": workers,
            "runs": running.runs(request, self.admin_site.name, now.workers),
            "holders": panels.holders() if panels.is_waiting(workers) else [],
            "cards": outgoing_cards(request, now, self.admin_site.name),
            "may_pause": self.has_pause_permission(request),
            "show_alias": len(conf.aliases()) > 1,
            **(extra_context or {}),
        }
        return page(self, request, "queues.html", _("Queues"), **own)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A queue has no page of its own."""
        return HttpResponseRedirect(self._url("changelist"))

    def pause_view(self, request: HttpRequest, paused: bool) -> HttpResponse:
        """Ask whether to pause or resume a queue (GET), or do it (POST)."""
        if not (self.has_view_permission(request) and self.has_pause_permission(request)):
            raise PermissionDenied
        alias, queue = request.GET.get("alias", ""), request.GET.get("queue", "")
        if alias not in conf.aliases() or queue not in queues_of(alias):
            raise Http404(_("There is no such queue."))
        if request.method != "POST":
            return self._ask(request, alias, queue, paused)
        operations.set_paused(queue, paused, operator(request), using=alias)
        text = _("Queue %(queue)s is paused.") if paused else _("Queue %(queue)s is resumed.")
        self.message_user(request, text % {"queue": queue}, messages.SUCCESS)
        return HttpResponseRedirect(self._url("changelist"))

    def _ask(self, request: HttpRequest, alias: str, queue: str, paused: bool) -> TemplateResponse:
        title, own = _("Pause queue") if paused else _("Resume queue"), {"alias": alias, "queue": queue}
        return page(self, request, "pause.html", title, paused=paused, reason_length=REASON, **own)

    def _url(self, name: str) -> str:
        return reverse(f"{self.admin_site.name}:messaging_queuecontrol_{name}")
