"""Incoming messages: the list of what arrived, and the story of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Right
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from messaging import conf
from messaging.admin import databases, filters, holders, redaction, rehearsals, waiting
from messaging.admin.base import BRIEF, NAMED, MessageAdmin, brief_error
from messaging.admin.display import client_of, exactly, moment, seconds_until, shorten, span
from messaging.admin.editing import edit_view, may_edit
from messaging.admin.failure_facts import with_group
from messaging.admin.lengths import Lengths, lengths_of, run_of
from messaging.admin.paginator import Bounded, bounded
from messaging.admin.story import SHOWN, Event, Link, Related, audit_events, in_order, incoming_with_ids, related
from messaging.admin.traces import parts
from messaging.admin.verbs import INCOMING
from messaging.exceptions import ConfigurationError, WireError
from messaging.handlers import registry
from messaging.models import Attempt, FailureGroup, ProcessedMessage, PublishedMessage, Rehearsal
from messaging.monitoring.databases import ask_each
from messaging.operations.rehearsals import can_be_rehearsed
from messaging.wire.bodies import storable
from messaging.wire.envelope import Envelope

State = ProcessedMessage.State
ENVELOPE = (
    ("priority", gettext_lazy("priority")),
    ("expiration", gettext_lazy("expiration")),
    ("user_id", gettext_lazy("user id")),
    ("app_id", gettext_lazy("app id")),
    ("content_encoding", gettext_lazy("content encoding")),
)
TRACEBACK = 20_000  # characters of a traceback that a page shows; its end says most


class ProcessedMessageAdmin(MessageAdmin):
    """Incoming messages."""

    verbs = INCOMING
    nothing = gettext_lazy(
        "Nothing has arrived yet. Messages come once a handler is declared, “manage.py consume” runs, "
        "and something is published to its queue."
    )
    list_display = (
        "message_column",
        "state_column",
        "queue_column",
        "attempts",
        "received_column",
        "run_column",
        "id_column",
    )
    list_filter = (
        databases.DatabaseFilter,
        filters.StateFilter,
        filters.AliasFilter,
        filters.QueueFilter,
        filters.HandlerFilter,
        filters.PeriodFilter,
        filters.ExceptionFilter,
        filters.DurationFilter,
        filters.SimilarFilter,
        filters.OperationFilter,
        filters.OlderFilter,
    )

    exported = (
        *MessageAdmin.exported, "handler", "worker", "exception_type", "fingerprint", "duration", "created_at",
        "received_at", "processed_at", "failed_at", "retry_at", "discarded_at",
    )  # fmt: skip

    def has_requeue_permission(self, request: HttpRequest) -> bool:
        """Whether failed messages may be sent round again."""
        return self.may(request, "requeue")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Whether messages may be discarded and restored."""
        return self.may(request, "discard")

    def get_urls(self) -> list[URLPattern]:
        """The pages for what is done to one message alone, before the others."""
        wrap, name = self.admin_site.admin_view, "messaging_processedmessage"
        return [
            path("<str:key>/edit/", wrap(partial(edit_view, self)), name=f"{name}_edit"),
            path("<str:key>/rehearse/", wrap(partial(rehearsals.rehearse_view, self)), name=f"{name}_rehearse"),
            path("rehearsal/<str:key>/", wrap(partial(rehearsals.rehearsal_view, self)), name=f"{name}_rehearsal"),
            *super().get_urls(),
        ]

    def seen(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Rows with the last rehearsal of each, their failure group, and how many have failed like them."""
        return with_group(rehearsals.with_last(super().seen(rows)))

    def tools(self, request: HttpRequest, row: ProcessedMessage) -> list[dict[str, Any]]:
        """Those of the verbs, and what is done to one message alone."""
        tools = super().tools(request, row)
        if row.state == State.FAILED and may_edit(self, request):
            tools.append({"url": self.keeping(request, self.url_of("edit", row)), "label": _("Edit and requeue")})
        if rehearsals.may_rehearse(self, request):
            last = vars(row).get("last_rehearsal")
            if can_be_rehearsed(row):
                tools.append({"url": self.keeping(request, self.url_of("rehearse", row)), "label": _("Rehearse")})
            if last is not None:
                key = quote(databases.key_in(Rehearsal, row._state.db, last))
                url = self.keeping(request, self.url("rehearsal", key))
                tools.append({"url": url, "label": _("Last rehearsal")})
        return tools

    def describe(self, request: HttpRequest, row: ProcessedMessage) -> dict[str, Any]:
        """The story of an incoming message."""
        site = self.admin_site.name
        outgoing = list(_outgoing(row)) if request.user.has_perm("messaging.view_publishedmessage") else []
        rounds = [out for out in outgoing if out.inbox_id == row.pk and out._state.db == row._state.db]
        lengths = lengths_of(row, outgoing)
        events = timeline(row, rounds, self._round_url, lengths)
        return {
            "headline": headline(row),
            "waits": waiting.of_incoming(row, rounds),
            "trace": next((parts(event.trace) for event in reversed(events) if event.trace), []) if row.error else [],
            "facts": [*facts(row), *_lengths(lengths), *_held(row)],
            "error": redaction.text(row.error, row),
            **self._alike(row),
            "timeline": events,
            "related": [
                *_edits(row, site),
                *_causes(row, site),
                *related(_("Outgoing messages with the same id"), _same_id(row, outgoing), site),
                *related(_("Published by its handler"), _produced(row, outgoing), site),
            ],
        }

    def _alike(self, row: Any) -> dict[str, Any]:
        """Where the failures are that are like this one, and how many others there are."""
        if not row.fingerprint:
            return {}
        others = bounded(row.alike or 0)
        if row.state == State.FAILED and not isinstance(others, Bounded):
            others -= 1  # itself
        text = ngettext("%(count)s other like this", "%(count)s others like this", others) % {"count": others}
        database, site = str(row._state.db), self.admin_site.name
        if row.group_pk is None:  # its group is written some seconds later
            url = databases.list_of(ProcessedMessage, database, site, fingerprint=row.fingerprint)
        else:
            url = databases.page_in(FailureGroup, database, row.group_pk, site)
        return {"similar_url": url, "similar": text}

    def _round_url(self, out: PublishedMessage) -> str:
        return databases.page_of(out, self.admin_site.name)

    @admin.display(description=gettext_lazy("message"))
    def message_column(self, row: ProcessedMessage) -> SafeString | str:
        """What it is about."""
        return shorten(row.routing_key or row.type or "—", NAMED)

    @admin.display(description=gettext_lazy("queue"))
    def queue_column(self, row: ProcessedMessage) -> SafeString | str:
        """Where it arrived."""
        return shorten(row.queue if row.alias == conf.DEFAULT_ALIAS else f"{row.alias} · {row.queue}", NAMED)

    def trouble(self, row: ProcessedMessage) -> SafeString | str:
        """The class of the last error and the beginning of what it says, while it matters."""
        if row.state == State.PROCESSED:
            return ""
        name = row.exception_type.rpartition(".")[2]
        if not name:
            return super().trouble(row)
        whole = brief_error(row)
        text = whole.removeprefix(name).removeprefix(": ")
        said = shorten(text, BRIEF - len(whole) + len(text))
        return format_html('<strong title="{}">{}</strong> {}', row.exception_type, name, said)

    @admin.display(description=gettext_lazy("received"))
    def received_column(self, row: ProcessedMessage) -> SafeString:
        """When it arrived."""
        return moment(row.received_at, seconds=False)

    @admin.display(description=gettext_lazy("run"))
    def run_column(self, row: ProcessedMessage) -> str:
        """How long its handler took."""
        return run_of(row)


def headline(row: ProcessedMessage) -> str:
    """What is going on, and what comes next, in a sentence."""
    if row.state == State.RETRYING:
        return _("%(when)s; attempt %(number)d of %(limit)d.") % {
            "when": _retry(row),
            "number": row.attempts + 1,
            "limit": max_attempts(row),
        }
    if row.state == State.PROCESSING:
        if row.lease_token is None:
            return _("An attempt crashed; it waits for its next delivery.")
        return _("Attempt %(number)d of %(limit)d is running.") % {
            "number": max(row.attempts, 1),
            "limit": max_attempts(row),
        }
    sentences = {
        State.PROCESSED: _("Its handler's work is committed."),
        State.FAILED: _("It rests until an operator requeues or discards it."),
        State.REQUEUED: _("An operator sent it round again; it waits for its delivery."),
        State.DISCARDED: _("An operator laid it aside; restore it to requeue it."),
        State.SUPERSEDED: _("Another row took its place: an edited copy, or one in another database."),
    }
    return sentences.get(State(row.state), "") if row.state in State.values else ""


def max_attempts(row: ProcessedMessage) -> int:
    """How many attempts the handler or the settings grant."""
    found = registry.find(row.alias, row.queue, row.routing_key)
    if found is not None and found.max_attempts is not None:
        return found.max_attempts
    try:
        return conf.get(row.alias).retry.max_attempts
    except ConfigurationError:
        return max(row.attempts, 1)


def facts(row: ProcessedMessage) -> list[tuple[str, Any]]:
    """Names and values of what is known about it; what is empty is left out."""
    fields: Sequence[str] = (
        "queue", "message_id", "exchange", "routing_key", "type", "content_type", "correlation_id", "causation_id",
        "reply_to", "handler", "worker", "exception_type", "alias",
    )  # fmt: skip
    times = ("received_at", "processed_at", "failed_at", "retry_at", "leased_until")
    names = {"retry_at": _("its last retry was due")} if row.state == ProcessedMessage.State.PROCESSED else {}
    return [
        *((_name(row, name), getattr(row, name)) for name in fields if getattr(row, name)),
        (_name(row, "round"), row.round),
        (_name(row, "attempts"), row.attempts),
        *((names.get(name) or _name(row, name), moment(getattr(row, name))) for name in times if getattr(row, name)),
        *_envelope_facts(row),
    ]


def _lengths(lengths: Lengths) -> list[tuple[str, str]]:
    return [(_("wait"), lengths.wait), (_("run"), lengths.run), (_("total"), lengths.total)]


def _held(row: ProcessedMessage) -> list[tuple[str, Any]]:
    """The transaction that works on it now, or keeps it from all others."""
    holder = holders.of_row(row) if row.state in ProcessedMessage.OPEN else None
    if holder is None:
        return []
    text = _("process {pid} at the database, from {client}, open since {since}")
    values = {"pid": holder.pid, "client": client_of(holder.client), "since": moment(holder.since)}
    return [(_("in an open transaction"), format_html(text, **values))]


def timeline(row: ProcessedMessage, rounds: Iterable[PublishedMessage], url: Any, lengths: Lengths) -> list[Event]:
    """Everything that happened, oldest first."""
    events = [Event(row.received_at, _("Received"), _("from queue %(queue)s") % {"queue": row.queue})]
    trace = F("traceback") if redaction.is_on() else Right("traceback", TRACEBACK)
    attempts = row.failures().order_by("-pk").defer("traceback").annotate(trace=trace)
    acts = audit_events("processed", row)
    events += [*reversed([_attempt_event(attempt, row) for attempt in attempts[:SHOWN]]), *acts]
    for out in rounds:
        title = _("Round %(number)d scheduled") % {"number": out.round}
        events.append(Event(_after_its_act(out.created_at, acts), title, _("outgoing message is %(state)s") % {
            "state": out.get_state_display()
        }, url=url(out)))  # fmt: skip
    # A failed attempt says itself how long it took.
    if row.began_at and row.state in (State.PROCESSING, State.PROCESSED):
        events.append(Event(row.began_at, _("Its handler began"), _("waited %(span)s") % {"span": lengths.wait}))
    if row.processed_at:
        took = _("run %(run)s, total %(total)s") % lengths._asdict() if row.ended_at else ""
        note = " · ".join(filter(None, (row.worker, took)))
        events.append(Event(row.processed_at, _("Processed"), note, kind="good"))
    return in_order(events)


def _after_its_act(at: datetime, acts: Iterable[Event]) -> datetime:
    """The time of a round; an act is recorded a moment after the round that it schedules, but is its cause."""
    return max([at, *(act.at for act in acts if timedelta(0) <= act.at - at < timedelta(seconds=1))])


def _attempt_event(attempt: Attempt, row: ProcessedMessage) -> Event:
    name = _("crashed") if attempt.crashed else attempt.exception_type
    title = _("Attempt %(number)d failed: %(error)s") % {"number": attempt.number, "error": name or _("unknown")}
    took = ""
    if attempt.started_at and attempt.ended_at > attempt.started_at:
        took = _("after %(span)s") % {"span": exactly((attempt.ended_at - attempt.started_at).total_seconds())}
    said = redaction.text(attempt.exception_message, row)
    trace = redaction.text(attempt.trace, row)[-TRACEBACK:]  # type: ignore[attr-defined]
    note = " · ".join(filter(None, (str(shorten(said, 2000)), attempt.worker, took)))
    return Event(attempt.ended_at, title, note, trace, kind="bad")


def _outgoing(row: ProcessedMessage) -> list[PublishedMessage]:
    """Its rounds, those of the same id, and what its handler published: a query a database, an index for each part."""
    wanted = Q()
    if row.message_id:
        correlation = row.correlation_id or row.message_id
        wanted = Q(message_id=row.message_id) | Q(correlation_id=correlation, causation_id=row.message_id)

    def ask(database: str) -> list[PublishedMessage]:
        own = wanted | Q(inbox_id=row.pk) if database == row._state.db else wanted
        rows = PublishedMessage.objects.using(database).filter(own) if own else PublishedMessage.objects.none()
        return list(rows.defer("body", "headers", "wire", "error").order_by("-pk")[:SHOWN])

    return list(chain.from_iterable(ask_each(ask).values()))


def _same_id(row: ProcessedMessage, outgoing: list[PublishedMessage]) -> list[PublishedMessage]:
    return [out for out in outgoing if out.message_id == row.message_id and out.inbox_id is None]


def _produced(row: ProcessedMessage, outgoing: list[PublishedMessage]) -> list[PublishedMessage]:
    return [out for out in outgoing if out.causation_id and out.causation_id == row.message_id]


def _edits(row: ProcessedMessage, site: str) -> list[Related]:
    """The message whose place it took with another content, and the one that took its place."""
    groups = []
    if row.edited_from_id is not None:
        url = databases.page_in(ProcessedMessage, row._state.db, row.edited_from_id, site)
        groups.append(Related(_("Edited from"), [Link(f"#{row.edited_from_id}", url, SafeString(""))]))
    if row.state == State.SUPERSEDED:
        copies = ProcessedMessage.objects.using(row._state.db).filter(edited_from=row.pk)
        groups += related(_("Edited copy"), copies.defer("body", "headers", "wire", "error")[:SHOWN], site)
    return groups


def _causes(row: ProcessedMessage, site: str) -> list[Related]:
    if not row.causation_id:
        return []
    return related(_("Published while handling"), incoming_with_ids([row.causation_id]), site)


def _envelope_facts(row: ProcessedMessage) -> list[tuple[str, Any]]:
    if row.wire is None:
        return []
    try:
        properties = Envelope.from_wire(bytes(row.wire), b"").properties  # the body stays unread
    except WireError as error:
        return [(_("envelope"), str(error))]
    found = [
        (str(label), storable(str(getattr(properties, name))))
        for name, label in ENVELOPE
        if getattr(properties, name) is not None
    ]
    return [
        *found,
        *_stamp(properties.timestamp),
        *([(_("not understood"), redaction.text(properties.problem, row))] if properties.problem else []),
    ]


def _stamp(seconds: int | None) -> list[tuple[str, Any]]:
    """When the publisher says that it was made; a publisher may say anything."""
    if seconds is None:
        return []
    try:
        return [(_("timestamp"), moment(datetime.fromtimestamp(seconds, UTC)))]
    except (ValueError, OverflowError, OSError):
        return [(_("timestamp"), seconds)]


def _retry(row: ProcessedMessage) -> str:
    seconds = seconds_until(row.retry_at) if row.retry_at else 0.0
    return _("Retries in %(span)s") % {"span": span(seconds)} if seconds >= 1 else _("Its retry is due")


def _name(row: ProcessedMessage, name: str) -> str:
    return str(row._meta.get_field(name).verbose_name)  # type: ignore[union-attr]
