"""Failure groups: which failures are alike, how many, since when, and what to do with all of them at once."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Left, Right
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging import conf
from messaging.admin import databases, lists, redaction
from messaging.admin.actions import REASON, Preview, confirm, operator, page_of_operation, store_operation
from messaging.admin.base import BRIEF, MessageAdmin, ReadOnlyAdmin, beginning_of_error
from messaging.admin.display import moment, shorten, state_badge
from messaging.admin.failure_facts import Facts, ago, facts_of, spark
from messaging.admin.pages import page
from messaging.admin.processed import TRACEBACK
from messaging.admin.traces import parts
from messaging.admin.verbs import INCOMING, Verb
from messaging.models import Attempt, FailureGroup, Operation, ProcessedMessage
from messaging.models.failure_groups import is_silenced
from messaging.models.processed import in_group
from messaging.operations import failure_groups as operations

State = ProcessedMessage.State
VERBS = {verb.name: verb for verb in INCOMING if verb.name in ("requeue", "discard")}
SHOWN = 10  # messages and operations of a group on its page
LONGEST = {  # for how long a group can be silenced, in seconds
    "1h": (gettext_lazy("1 hour"), 3600),
    "8h": (gettext_lazy("8 hours"), 8 * 3600),
    "1d": (gettext_lazy("1 day"), 86400),
    "7d": (gettext_lazy("7 days"), 7 * 86400),
    "ever": (gettext_lazy("until somebody ends it"), None),
}


class StatusFilter(admin.SimpleListFilter):
    """By what is to be done about a group."""

    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """New ones only where the site names its release."""
        release = conf.release()
        new = [("new", _("new in release %(release)s") % {"release": release})] if release else []
        return [
            ("open", _("with failed messages")),
            *new,
            ("again", _("failed again since it was dealt with")),
            ("silenced", _("silenced")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The groups of that status."""
        value, release = self.value(), conf.release()
        if value == "open":
            return queryset.filter(Exists(_failed(OuterRef("fingerprint"))))
        if value == "new" and release:
            return queryset.filter(first_release=release)
        if value == "again":
            return queryset.filter(last_seen__gt=F("acted_at"))
        return queryset.filter(is_silenced()) if value == "silenced" else queryset


class GroupPage(lists.Page):
    """A page of the list: each group with what is counted of it, with two queries for all."""

    def get_results(self, request: HttpRequest) -> None:
        """Choose the groups of the page, and count."""
        super().get_results(request)
        groups = list(self.result_list)
        for group, facts in zip(groups, facts_of(groups), strict=True):
            group.facts = facts
        self.result_list = groups


class FailureGroupAdmin(ReadOnlyAdmin):
    """Failures that are alike. Whoever may see messages sees them; to act on them takes what it takes on messages."""

    list_display = ("group_column", "open_column", "trend_column", "last_column", "first_column")
    list_display_links = ("group_column",)
    list_filter = (databases.DatabaseFilter, StatusFilter)
    list_per_page = 25
    ordering = ("-last_seen", "-id")
    search_fields = ("exception_type", "frame", "handler", "queue", "note")
    search_help_text = gettext_lazy("Part of an exception's class, of a place, a handler, a queue or a note.")
    actions = None
    exported = (
        "id", "exception_type", "frame", "handler", "queue", "first_seen", "last_seen", "first_release", "last_release",
        "note",
    )  # fmt: skip
    nothing = gettext_lazy("No message has failed. Failures that are alike stand here as one, some seconds later.")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see messages."""
        return request.user.has_perm("messaging.view_processedmessage")

    def has_silence_permission(self, request: HttpRequest) -> bool:
        """Whoever may requeue or discard messages: silencing, and notes."""
        return any(self.may_use(request, verb) for verb in VERBS.values())

    def may_use(self, request: HttpRequest, verb: Verb) -> bool:
        """Whether this user may do that to messages."""
        return request.user.has_perm(f"messaging.{verb.permission}_processedmessage")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[lists.Page | lists.Unread]:
        """What makes the list."""
        return lists.Unread if lists.is_unread(request) else GroupPage

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Groups with the beginning of what their newest failed message says."""
        said = Subquery(_failed(OuterRef("fingerprint")).values(text=beginning_of_error())[:1])
        quiet = Exists(FailureGroup.objects.filter(is_silenced(), pk=OuterRef("pk")))
        annotated: QuerySet[Any] = super().get_queryset(request).annotate(brief=said, is_quiet=quiet)
        return annotated

    def get_urls(self) -> list[URLPattern]:
        """What can be done to a group, before the admin's own."""
        wrap = self.admin_site.admin_view
        own = [
            path(f"<str:key>/{name}/", wrap(partial(self.verb_view, verb=verb)), name=f"messaging_failuregroup_{name}")
            for name, verb in VERBS.items()
        ]
        return [
            *own,
            path("<str:key>/silence/", wrap(self.silence_view), name="messaging_failuregroup_silence"),
            path("<str:key>/unsilence/", wrap(self.unsilence_view), name="messaging_failuregroup_unsilence"),
            path("<str:key>/note/", wrap(self.note_view), name="messaging_failuregroup_note"),
            *super().get_urls(),
        ]

    def verb_view(self, request: HttpRequest, key: str, verb: Verb) -> HttpResponse:
        """Ask whether to act on all failed messages of a group (GET), or store that (POST)."""
        if not (self.has_view_permission(request) and self.may_use(request, verb)):
            raise PermissionDenied
        group = self._find(request, key)
        if group is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, key)  # type: ignore[attr-defined,no-any-return]
        also_retrying = request.GET.get("retrying") == "1"
        rows = ProcessedMessage.objects.using(group._state.db)
        if also_retrying:
            rows = rows.filter(in_group(group.fingerprint), state__in=(State.FAILED, State.RETRYING))
        else:
            rows = rows.filter(in_group(group.fingerprint, State.FAILED))
        of_messages: Any = self._messages()
        if request.method == "POST":
            state = _("failed and retrying") if also_retrying else _("failed")
            scope = _("failure group: %(group)s; state: %(state)s") % {"group": group, "state": state}
            answer = store_operation(of_messages, request, verb, rows, scope=scope, group=group)
            if answer is not None:
                return answer
        [facts] = facts_of([group])
        rows = rows.order_by("-state", "-pk")
        look = Preview(facts.failed + facts.retrying if also_retrying else facts.failed, [])
        back = self._url("change", group)
        asked = confirm(of_messages, request, verb, rows, [], back, is_long=True, look=look)
        asked.context_data = {**(asked.context_data or {}), "subtitle": str(group)}
        return asked

    def silence_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Ask for how long a group is to alarm nobody (GET), or have it so (POST)."""
        group = self._to_change(request, key)
        chosen = LONGEST.get(request.POST.get("length", ""))
        if request.method == "POST" and chosen is not None:
            is_bound = bool(request.POST.get("release")) and bool(conf.release())
            releases = (conf.release(), group.last_release) if is_bound else None
            operations.silence(group, operator(request), seconds=chosen[1], releases=releases)
            self.message_user(request, _("It is silenced: counted and shown, but no alarm."), messages.SUCCESS)
            return HttpResponseRedirect(self._url("change", group))
        lengths = [(name, label, name == "1d") for name, (label, _seconds) in LONGEST.items()]
        own = {"lengths": lengths, "release": conf.release(), "reason_length": REASON}
        return page(self, request, "silence.html", _("Silence"), group, subtitle=str(group), **own)

    def unsilence_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Have a silenced group alarm again."""
        group = self._to_change(request, key)
        if request.method == "POST":
            operations.end_silence(group, operator(request))
            self.message_user(request, _("It is not silenced any more."), messages.SUCCESS)
        return HttpResponseRedirect(self._url("change", group))

    def note_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Replace the note of a group."""
        group = self._to_change(request, key)
        if request.method == "POST":
            note = request.POST.get("note", "").replace("\x00", "").strip()
            operations.annotate(group, note, operator(request))
            self.message_user(request, _("The note is kept."), messages.SUCCESS)
        return HttpResponseRedirect(self._url("change", group))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The page of one group."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        group = self._find(request, object_id)
        if group is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        [facts] = facts_of([group])
        found = list(_newest(group))
        newest = next(iter(found), None)
        note = redaction.text(group.note)
        own = {
            "flags": self._flags(group),
            "facts": self._facts(group),
            "failed": facts.failed,
            "retrying": facts.retrying,
            "trend": spark(facts.history),
            "links": self._links(group),
            "tools": self._tools(request, group, facts),
            "note": note,
            "error": redaction.text(newest.brief, newest) if newest is not None else "",
            "trace": parts(redaction.text(newest.trace or "", newest)[-TRACEBACK:]) if newest is not None else [],
            "samples": [(row, state_badge(row.state, row.get_state_display())) for row in found],
            "operations": self._operations(group),
            "may_change": self.has_silence_permission(request),
            "may_note": self.has_silence_permission(request) and note == group.note,
            "note_length": operations.LONGEST_NOTE,
            **(extra_context or {}),
        }
        title = capfirst(str(self.opts.verbose_name))
        return page(self, request, "failure_group.html", title, group, subtitle=str(group), **own)

    @admin.display(description=gettext_lazy("exception"))
    def group_column(self, row: Any) -> SafeString:
        """The exception's class with what is special about it; its place; what its newest failure says; the note."""
        text = redaction.text(row.brief or "")[: BRIEF + 1].removeprefix(row.name).removeprefix(": ")
        places = [(shorten(name, 60),) for name in (row.frame, row.handler or row.queue) if name]
        said = [(shorten(text, BRIEF),)] if text else []
        said += [(format_html("✎ {}", shorten(redaction.text(row.note), BRIEF)),)] if row.note else []
        return format_html(
            '<span title="{}">{}</span> {}{}{}',
            row.exception_type,
            row.name,
            self._flags(row),
            format_html_join("", '<span class="msg-brief"><code>{}</code></span>', places),
            format_html_join("", '<span class="msg-brief">{}</span>', said),
        )

    @admin.display(description=gettext_lazy("failed"))
    def open_column(self, row: Any) -> SafeString | str:
        """How many of its messages are failed, and how many are to be tried again."""
        links = self._links(row)
        failed: SafeString | str = "0"
        if row.facts.failed:
            failed = format_html('<a href="{}" class="msg-failures">{}</a>', links["failed"], row.facts.failed)
        if not row.facts.retrying:
            return failed
        text = _("%(count)s retrying") % {"count": row.facts.retrying}
        return format_html('{}<span class="msg-brief"><a href="{}">{}</a></span>', failed, links["retrying"], text)

    @admin.display(description=gettext_lazy("24 hours"))
    def trend_column(self, row: Any) -> SafeString:
        """How many attempts failed when."""
        return spark(row.facts.history)

    @admin.display(description=gettext_lazy("last seen"))
    def last_column(self, row: FailureGroup) -> SafeString:
        """When it was seen last."""
        return ago(row.last_seen)

    @admin.display(description=gettext_lazy("first seen"))
    def first_column(self, row: FailureGroup) -> SafeString:
        """When it was seen first."""
        return ago(row.first_seen)

    def _find(self, request: HttpRequest, key: str) -> Any:
        database, pk = databases.place_of(FailureGroup, unquote(key))
        return self.get_queryset(request).using(database).filter(pk=pk).first() if pk is not None else None

    def _to_change(self, request: HttpRequest, key: str) -> Any:
        """The group that somebody wants to change. Raises PermissionDenied."""
        group = self._find(request, key) if self.has_view_permission(request) else None
        if group is None or not self.has_silence_permission(request):
            raise PermissionDenied
        return group

    def _messages(self) -> MessageAdmin:
        """The admin of the messages, whose permissions and pages these are."""
        found: Any = self.admin_site.get_model_admin(ProcessedMessage)
        return found  # type: ignore[no-any-return]

    def _flags(self, group: Any) -> SafeString:
        """New, silenced, failed again: each a word with a shape."""
        release, flags = conf.release(), []
        if release and group.first_release == release:
            flags.append(("failed", "✦", _("new in %(release)s") % {"release": release}))
        if group.acted_at is not None and group.last_seen > group.acted_at:
            flags.append(("retrying", "↺", _("failed again")))
        if group.is_quiet:
            flags.append(("discarded", "◌", _("silenced")))
        badge = '<span class="msg-state msg-state-{}"><span aria-hidden="true">{}</span> {}</span>'
        return format_html_join(" ", badge, flags)

    def _facts(self, group: Any) -> list[tuple[str, Any]]:
        fields = [
            (_("exception"), group.exception_type),
            (_("place"), group.frame),
            (_("handler"), group.handler),
            (_("queue"), group.queue),
        ]
        releases = [(_("first seen in release"), group.first_release), (_("last seen in release"), group.last_release)]
        times: list[tuple[str, Any]] = [
            (_("first seen"), moment(group.first_seen)),
            (_("last seen"), moment(group.last_seen)),
        ]
        if group.acted_at is not None:
            times.append((_("last requeued or discarded as a whole"), moment(group.acted_at)))
        if group.is_quiet:
            until = moment(group.silenced_until) if group.silenced_until else _("until somebody ends it")
            times += [(_("silenced by"), group.silenced_by or "—"), (_("silenced until"), until)]
            if group.silenced_in is not None:
                times.append((_("silenced in the releases"), ", ".join(map(str, group.silenced_in))))
        return [*((name, value) for name, value in (*fields, *releases) if value), *times]

    def _links(self, group: FailureGroup) -> dict[str, str]:
        place = ProcessedMessage, str(group._state.db), self.admin_site.name
        states = ("failed", "retrying")
        return {state: databases.list_of(*place, state=state, fingerprint=group.fingerprint) for state in states}

    def _tools(self, request: HttpRequest, group: Any, facts: Facts) -> list[dict[str, Any]]:
        """The buttons of a group for this user."""
        tools: list[dict[str, Any]] = []
        for name, verb in VERBS.items():
            if not self.may_use(request, verb):
                continue
            url, own = self._url(name, group), {"destructive": verb.destructive}
            if facts.failed:
                tools.append({"url": url, "label": verb.button, **own})
            if facts.retrying:
                label = _("%(verb)s, retrying ones too") % {"verb": verb.button}
                tools.append({"url": f"{url}?retrying=1", "label": label, **own})
        if self.has_silence_permission(request) and not group.is_quiet:
            tools.append({"url": self._url("silence", group), "label": _("Silence")})
        return tools

    def _operations(self, group: FailureGroup) -> list[tuple[str, SafeString, str]]:
        """What was stored for it lately: address, state, and words."""
        rows = Operation.objects.using(group._state.db).filter(group=group.pk).order_by("-pk")[:SHOWN]
        return [
            (
                page_of_operation(row, self.admin_site.name),
                state_badge(row.state, row.get_state_display()),
                f"#{row.pk} {VERBS[row.verb].button if row.verb in VERBS else row.verb} · {row.settled} / {row.total}",
            )
            for row in rows
        ]

    def _url(self, name: str, group: FailureGroup) -> str:
        return reverse(f"{self.admin_site.name}:messaging_failuregroup_{name}", args=[quote(databases.key_of(group))])


def _failed(fingerprint: Any) -> QuerySet[ProcessedMessage]:
    """The failed messages of a group, the newest first."""
    return ProcessedMessage.objects.filter(in_group(fingerprint, State.FAILED)).order_by("-state", "-pk")


def _newest(group: FailureGroup) -> QuerySet[Any]:
    """The newest failed messages of a group, each with what it says and the traceback of its last attempt."""
    attempts = Attempt.objects.filter(message=OuterRef("pk")).order_by("-pk")
    is_cut = not redaction.is_on()
    trace = Subquery(attempts.values(text=Right("traceback", TRACEBACK) if is_cut else F("traceback"))[:1])
    rows = _failed(group.fingerprint).using(group._state.db)
    shown = rows.only(*MessageAdmin.sample_fields)[:SHOWN]
    annotated: QuerySet[Any] = shown.annotate(brief=Left("error", TRACEBACK) if is_cut else F("error"), trace=trace)
    return annotated
