"""The page of queues: what waits where, what failed, who works, and pausing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from messaging import conf, operations, topology
from messaging.admin.actions import REASON, operator
from messaging.admin.base import ReadOnlyAdmin
from messaging.admin.display import moment, span
from messaging.admin.overview import outgoing_cards
from messaging.admin.paginator import LIMIT, Bounded
from messaging.backends.base import QueueDepth
from messaging.exceptions import ConfigurationError
from messaging.models import ProcessedMessage, QueueControl, Worker
from messaging.readings import Reading, read

SEEN = 60  # seconds after which a worker that says nothing is called silent
KEPT = timedelta(days=1)  # for which a silent worker is still listed
UNKNOWN = "—"  # never 0 for what a source cannot know


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue on the page; texts, because what is unknown is not a number."""

    alias: str
    name: str
    ready: str
    unacked: str
    consumers: str
    dead: str
    failures: int
    control: QueueControl | None
    exists: bool
    links: dict[str, str]

    @property
    def paused(self) -> bool:
        """Whether our consumers leave it alone."""
        return self.control is not None and self.control.paused

    @property
    def changed(self) -> str:
        """When it was paused."""
        return moment(self.control.changed_at) if self.control is not None else ""


@dataclass(frozen=True, slots=True)
class AliasPanel:
    """One broker on the page."""

    reading: Reading
    problem: str
    rows: list[QueueRow]

    @property
    def age(self) -> str:
        """How old its numbers are."""
        return "" if self.reading.age is None else span(self.reading.age)

    @property
    def taken_at(self) -> str:
        """When its numbers were read."""
        return moment(self.reading.taken_at)


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
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Queues"),
            "opts": self.opts,
            "media": self.media,
            "panels": self._panels(),
            "workers": workers(),
            "cards": outgoing_cards(request, self.admin_site.name),
            "may_pause": self.has_pause_permission(request),
            "show_alias": len(conf.aliases()) > 1,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/messaging/queues.html", context)

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
        if alias not in conf.aliases() or queue not in (spec.name for spec in _specs(alias)):
            raise Http404(_("There is no such queue."))
        if request.method != "POST":
            return self._ask(request, alias, queue, paused)
        operations.set_paused(queue, paused, operator(request), using=alias)
        text = _("Queue %(queue)s is paused.") if paused else _("Queue %(queue)s is resumed.")
        self.message_user(request, text % {"queue": queue}, messages.SUCCESS)
        return HttpResponseRedirect(self._url("changelist"))

    def _ask(self, request: HttpRequest, alias: str, queue: str, paused: bool) -> TemplateResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Pause queue") if paused else _("Resume queue"),
            "opts": self.opts,
            "media": self.media,
            "alias": alias,
            "queue": queue,
            "paused": paused,
            "reason_length": REASON,
        }
        return TemplateResponse(request, "admin/messaging/pause.html", context)

    def _panels(self) -> list[AliasPanel]:
        controls = {(control.alias, control.queue): control for control in QueueControl.objects.all()[:LIMIT]}
        failures = open_failures()
        return [self._panel(alias, controls, failures) for alias in conf.aliases()]

    def _panel(
        self, alias: str, controls: dict[tuple[str, str], QueueControl], failures: dict[tuple[str, str], int]
    ) -> AliasPanel:
        try:
            specs = _specs(alias)
        except ConfigurationError as error:
            return AliasPanel(Reading(alias), str(error), [])
        wanted = [name for spec in specs for name in _with_dead(spec)]
        reading = read(alias, wanted) if wanted else Reading(alias)
        rows = []
        for spec in specs:
            depth = reading.depths.get(spec.name)
            dead = reading.depths.get(spec.dead)
            rows.append(
                QueueRow(
                    alias=alias,
                    name=spec.name,
                    ready=_number(depth, "ready"),
                    unacked=_number(depth, "unacked"),
                    consumers=_number(depth, "consumers"),
                    dead=_number(dead, "ready"),
                    failures=failures.get((alias, spec.name), 0),
                    control=controls.get((alias, spec.name)),
                    exists=depth is None or depth.exists,
                    links=self._links(alias, spec.name),
                )
            )
        return AliasPanel(reading, reading.error, rows)

    def _links(self, alias: str, queue: str) -> dict[str, str]:
        query = urlencode({"alias": alias, "queue": queue})
        site = self.admin_site.name
        failed = urlencode({"state": "failed", "queue": queue})
        return {
            "failures": f"{reverse(f'{site}:messaging_processedmessage_changelist')}?{failed}",
            "pause": f"{self._url('pause')}?{query}",
            "resume": f"{self._url('resume')}?{query}",
        }

    def _url(self, name: str) -> str:
        return reverse(f"{self.admin_site.name}:messaging_queuecontrol_{name}")


def open_failures() -> dict[tuple[str, str], int]:
    """Failed incoming messages by alias and queue; bounded, so that a flood does not stop the page."""
    rows = ProcessedMessage.objects.failed().order_by().values_list("alias", "queue")[: LIMIT + 1]
    found = Counter(rows)
    if found.total() <= LIMIT:
        return dict(found)
    return {key: Bounded(count) for key, count in found.items()}


def workers() -> list[dict[str, Any]]:
    """The workers seen within a day, the latest first."""
    rows = Worker.objects.filter(seen_at__gte=timezone.now() - KEPT).order_by("-seen_at")[:100]
    return [
        {
            "worker": row,
            "seen": moment(row.seen_at),
            "started": moment(row.started_at),
            "silent": (timezone.now() - row.seen_at).total_seconds() > SEEN,
            "queues": ", ".join(map(str, row.queues)) if isinstance(row.queues, list) else "",
        }
        for row in rows
    ]


def _specs(alias: str) -> tuple[Any, ...]:
    return topology.build(alias).queues


def _with_dead(spec: Any) -> list[str]:
    return [spec.name, spec.dead] if spec.declare and spec.dead_letter else [spec.name]


def _number(depth: QueueDepth | None, name: str) -> str:
    value = getattr(depth, name) if depth is not None and depth.exists else None
    return UNKNOWN if value is None else f"{value:,}"
