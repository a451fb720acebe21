"""Outgoing messages: the list, the page of each, and the form that writes one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from messaging import conf
from messaging.admin import databases, filters, redaction, waiting
from messaging.admin.base import NAMED, MessageAdmin
from messaging.admin.compose import compose_view
from messaging.admin.display import distance, moment, seconds_until, shorten, state_badge
from messaging.admin.drafts import is_editable
from messaging.admin.payload import preview_of
from messaging.admin.story import Event, Link, Related, audit_events, in_order, incoming_with_ids, related
from messaging.admin.verbs import OUTGOING
from messaging.exceptions import ConfigurationError
from messaging.models import ProcessedMessage, PublishedMessage, tries
from messaging.models.outbox import UNROUTABLE

State = PublishedMessage.State


class PublishedMessageAdmin(MessageAdmin):
    """Outgoing messages. Adding one is writing it; only drafts can be changed."""

    verbs = OUTGOING
    nothing = gettext_lazy("Nothing was published yet. Code does it with publish(), people with “Write a message”.")
    sample_fields = (*MessageAdmin.sample_fields, "inbox")
    list_display = (
        "message_column",
        "state_column",
        "destination_column",
        "attempts",
        "created_column",
        "id_column",
    )
    list_filter = (
        databases.DatabaseFilter,
        filters.StateFilter,
        filters.AliasFilter,
        filters.QueueFilter,
        filters.OriginFilter,
        filters.PeriodFilter,
        filters.OperationFilter,
        filters.OlderFilter,
    )

    exported = (
        *MessageAdmin.exported, "priority", "expiration", "mandatory", "inbox_id", "copy_of_id", "created_at",
        "publish_at", "due_at", "published_at", "discarded_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Rows without what only their own page shows."""
        rows: QuerySet[Any] = super().get_queryset(request).defer("tries")
        return rows

    def has_publish_permission(self, request: HttpRequest) -> bool:
        """Whether messages may be written and published."""
        return self.may(request, "publish")

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether published messages may be sent again."""
        return self.may(request, "replay")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Whether messages may be discarded and restored."""
        return self.may(request, "discard")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those who may publish may write."""
        return self.has_publish_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Drafts only; their body is in the form, so it takes the right to see it too, and nothing of it redacted."""
        if obj is None or not is_editable(obj) or redaction.hides(obj, preview_of(obj)):
            return False
        return self.has_publish_permission(request) and self.has_view_payload_permission(request)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form that writes a message."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        return compose_view(self, request, None)

    def detail(self, request: HttpRequest, row: PublishedMessage, extra_context: dict[str, Any]) -> HttpResponse:
        """The form for a draft, the page for anything else."""
        if self.has_change_permission(request, row):
            return compose_view(self, request, row)
        return super().detail(request, row, extra_context)

    def describe(self, request: HttpRequest, row: PublishedMessage) -> dict[str, Any]:
        """The story of an outgoing message."""
        return {
            "headline": headline(row),
            "waits": waiting.of_outgoing(row) if _is_relayed(row.alias) else "",
            "facts": facts(row),
            "error": redaction.text(row.error, row),
            "timeline": timeline(row),
            "related": self._related(request, row),
        }

    def _related(self, request: HttpRequest, row: PublishedMessage) -> list[Related]:
        site, groups = self.admin_site.name, []
        if row.copy_of_id is not None:
            url = databases.page_in(PublishedMessage, row._state.db, row.copy_of_id, site)
            groups.append(Related(_("Copy of"), [Link(f"#{row.copy_of_id}", url, SafeString(""))]))
        if not request.user.has_perm("messaging.view_processedmessage"):
            return groups
        if row.inbox_id is not None:
            url = databases.page_in(ProcessedMessage, row._state.db, row.inbox_id, site)
            groups.append(Related(_("Round of incoming message"), [Link(f"#{row.inbox_id}", url, SafeString(""))]))
        ids = [name for name in (row.message_id, row.causation_id) if name]
        incoming = incoming_with_ids(ids)
        return [
            *groups,
            *related(
                _("Incoming messages with the same id"),
                [other for other in incoming if other.message_id == row.message_id and not _is_inbox_of(other, row)],
                site,
            ),
            *related(
                _("Published while handling"),
                [other for other in incoming if other.message_id == row.causation_id],
                site,
            ),
        ]

    def badge(self, row: Any) -> SafeString:
        """What waits for a queue says so."""
        error = vars(row).get("brief") or vars(row).get("error") or ""  # a list has no more than its beginning
        is_unrouted = row.unrouted or error.startswith(UNROUTABLE)
        waits = row.state == State.PENDING and row.attempts and is_unrouted
        return state_badge(row.state, _("waiting for a queue") if waits else row.get_state_display())

    @admin.display(description=gettext_lazy("message"))
    def message_column(self, row: PublishedMessage) -> SafeString | str:
        """What it is about."""
        return shorten(row.routing_key or row.queue or "—", NAMED)

    @admin.display(description=gettext_lazy("destination"))
    def destination_column(self, row: PublishedMessage) -> SafeString | str:
        """Exchange or queue, and the alias where it is not the default."""
        place = f"→ {row.queue}" if row.queue else row.exchange or "—"
        return shorten(place if row.alias == conf.DEFAULT_ALIAS else f"{row.alias} · {place}", NAMED)


def headline(row: PublishedMessage) -> str:
    """What is going on, and what comes next, in a sentence."""
    if row.state == State.PENDING:
        if row.lease_token is not None:
            return _("A relay is sending it.")
        if not _is_relayed(row.alias):
            return _("It is not sent from here: the setting RELAY is False.")
        when = distance(row.due_at) if row.due_at is not None and seconds_until(row.due_at) > 0 else ""
        if row.waits_for_queue:
            return _("No queue takes it. It waits for one, and is sent again %(when)s.") % {"when": when or _("now")}
        if when:
            return _("It will be sent %(when)s.") % {"when": when}
        return _("It is due and waits for a relay.")
    sentences = {
        State.DRAFT: _("It is not published yet."),
        State.PUBLISHED: _("The broker has confirmed it."),
        State.FAILED: _("It could not be sent; it rests until an operator publishes or discards it."),
        State.DISCARDED: _("It was laid aside and is not sent."),
    }
    return sentences.get(State(row.state), "") if row.state in State.values else ""


def facts(row: PublishedMessage) -> list[tuple[str, Any]]:
    """Names and values of what is known about it; what is empty is left out."""
    fields = (
        "queue", "exchange", "routing_key", "message_id", "type", "content_type", "correlation_id", "causation_id",
        "reply_to", "priority", "expiration", "lease_owner", "alias",
    )  # fmt: skip
    times = ("created_at", "publish_at", "due_at", "published_at")
    return [
        *((_name(row, name), getattr(row, name)) for name in fields if getattr(row, name) not in ("", None)),
        (_name(row, "mandatory"), _("yes") if row.mandatory else _("no")),
        (_name(row, "round"), row.round),
        (_name(row, "attempts"), row.attempts),
        *((_name(row, name), moment(getattr(row, name))) for name in times if getattr(row, name)),
    ]


def timeline(row: PublishedMessage) -> list[Event]:
    """Everything that happened, oldest first."""
    events = [Event(row.created_at, _("Written")), *_tried(row)]
    if row.published_at:
        number = row.attempts
        text = ngettext("sent %(number)d time", "sent %(number)d times", number) % {"number": number}
        note = text if number > 1 else ""
        events.append(Event(row.published_at, _("Confirmed by the broker"), note, kind="good"))
    return in_order([*events, *audit_events("published", row)])


def _tried(row: PublishedMessage) -> list[Event]:
    """The tries to send it that came to nothing, each with the broker's answer."""
    titles = {
        tries.UNROUTED: _("Sent, and no queue took it"),
        tries.REFUSED: _("Sent, and not taken for now"),
        tries.FAILED: _("Sending it failed for good"),
        tries.LOST: _("Sent, and the answer was lost: the broker may have it"),
    }
    found, had_more = tries.told(row.tries)
    events: list[Event] = []
    for one in found:
        by = _("relay %(name)s") % {"name": one.by} if one.by else ""
        more = _("earlier tries are no longer kept") if had_more and not events else ""
        note = " · ".join(filter(None, (redaction.text(one.answer, row), by, more)))
        at = max(one.at, row.created_at)  # a try's is in whole milliseconds
        events.append(Event(at, titles.get(one.fate, one.fate), note, kind="bad"))
    return events


def _is_inbox_of(row: ProcessedMessage, out: PublishedMessage) -> bool:
    return row.pk == out.inbox_id and row._state.db == out._state.db


def _is_relayed(alias: str) -> bool:
    try:
        return alias not in conf.aliases() or conf.get(alias).relay
    except ConfigurationError:
        return True


def _name(row: PublishedMessage, name: str) -> str:
    return str(row._meta.get_field(name).verbose_name)  # type: ignore[union-attr]
