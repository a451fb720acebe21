"""Rehearsing a failed message: the page that asks, and the page that waits for the result and shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from messaging.admin import databases, redaction
from messaging.admin.actions import REASON, operator
from messaging.admin.display import exactly, moment, seconds_until, state_badge
from messaging.admin.pages import page
from messaging.admin.traces import parts
from messaging.models import ProcessedMessage, Rehearsal
from messaging.operations import rehearsals

if TYPE_CHECKING:
    from messaging.admin.processed import ProcessedMessageAdmin

State = Rehearsal.State


def may_rehearse(model_admin: ProcessedMessageAdmin, request: HttpRequest) -> bool:
    """Whether this user may have code run on a failed message."""
    return model_admin.has_view_permission(request) and model_admin.may(request, "rehearse")


def with_last(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Messages, each with the number of its last rehearsal."""
    found = Rehearsal.objects.filter(row=OuterRef("pk")).order_by("-pk").values("pk")[:1]
    annotated: QuerySet[Any] = rows.annotate(last_rehearsal=Subquery(found))
    return annotated


def rehearse_view(model_admin: ProcessedMessageAdmin, request: HttpRequest, key: str) -> HttpResponse:
    """What a rehearsal is, and whether one is wanted (GET); ask for it, and lead to its page (POST)."""
    if not may_rehearse(model_admin, request):
        raise PermissionDenied
    row = databases.named(ProcessedMessage, unquote(key)).defer("body", "headers", "error").first()
    if row is None:
        return model_admin._get_obj_does_not_exist_redirect(request, model_admin.opts, key)  # type: ignore[attr-defined,no-any-return]
    is_possible = rehearsals.can_be_rehearsed(row)
    if request.method == "POST" and is_possible:
        asked = rehearsals.ask(row, operator(request))
        return HttpResponseRedirect(model_admin.keeping(request, model_admin.url_of("rehearsal", asked)))
    return _page(
        model_admin,
        request,
        row,
        "rehearse.html",
        is_possible=is_possible,
        seconds=f"{rehearsals.limit_of(row):g}",
        reason_length=REASON,
    )


def rehearsal_view(model_admin: ProcessedMessageAdmin, request: HttpRequest, key: str) -> HttpResponse:
    """How far a rehearsal is, or how it ended; until then the page looks again by itself."""
    if not may_rehearse(model_admin, request):
        raise PermissionDenied
    rehearsal = databases.named(Rehearsal, unquote(key)).first()
    row = None if rehearsal is None else _message_of(rehearsal)
    if rehearsal is None or row is None:
        return model_admin._get_obj_does_not_exist_redirect(request, model_admin.opts, key)  # type: ignore[attr-defined,no-any-return]
    state = State.DIED if _is_lost(rehearsal) else State(rehearsal.state)
    return _page(
        model_admin,
        request,
        row,
        "rehearsal.html",
        rehearsal=rehearsal,
        badge=state_badge(state, str(state.label)),
        headline=_headline(rehearsal, state),
        is_unfinished=state in Rehearsal.UNFINISHED,
        error=redaction.text(rehearsal.error, row),
        trace=parts(redaction.text(rehearsal.traceback, row)),
        facts=_facts(rehearsal),
        result=rehearsal.result or {},
        again=model_admin.keeping(request, model_admin.url_of("rehearse", row)),
    )


def _page(
    model_admin: ProcessedMessageAdmin, request: HttpRequest, row: ProcessedMessage, template: str, **more: Any
) -> TemplateResponse:
    own = {"badge": model_admin.badge(row), "back": model_admin.keeping(request, model_admin.url_of("change", row))}
    return page(model_admin, request, template, _("Rehearsal"), row, **own | more)


def _message_of(rehearsal: Rehearsal) -> ProcessedMessage | None:
    rows = ProcessedMessage.objects.using(rehearsal._state.db).defer("body", "headers", "wire", "error")
    return rows.filter(pk=rehearsal.row).first()


def _is_lost(rehearsal: Rehearsal) -> bool:
    """Whether nobody runs it any more although it has not ended."""
    until = rehearsal.leased_until
    return rehearsal.state == State.RUNNING and until is not None and seconds_until(until) <= 0


def _headline(rehearsal: Rehearsal, state: State) -> str:
    if state == State.SUCCEEDED:
        done = rehearsal.result or {}
        rows, sent, mails = (int(done.get(name) or 0) for name in ("rows", "messages", "mails"))
        told = [
            ngettext("%(count)d row written", "%(count)d rows written", rows) % {"count": rows},
            ngettext("%(count)d message published", "%(count)d messages published", sent) % {"count": sent},
            *([ngettext("%(count)d mail sent", "%(count)d mails sent", mails) % {"count": mails}] if mails else []),
        ]
        return _("It would succeed: %(what)s. All of that was taken back.") % {"what": ", ".join(told)}
    sentences = {
        State.WAITING: _("A consumer, a relay or “manage.py run_operations” will run it."),
        State.RUNNING: _("It is being run in a process of its own."),
        State.FAILED: _("It would fail."),
        State.REFUSED: _("It was not run to its end: nothing is known."),
        State.LATE: _("It was ended for its time."),
        State.DIED: _("The process that ran it is gone, and it is not run again by itself."),
    }
    return sentences[state]


def _facts(rehearsal: Rehearsal) -> list[tuple[str, Any]]:
    took = (rehearsal.result or {}).get("seconds")
    return [
        (_("Handler"), rehearsal.handler or "—"),
        (_("run"), "—" if took is None else exactly(took)),
        (_("By"), rehearsal.username or "—"),
        (_("Stored"), moment(rehearsal.created_at)),
        (_("Begun"), moment(rehearsal.began_at)),
        (_("Ended"), moment(rehearsal.ended_at)),
        (_("Carried out by"), rehearsal.worker or "—"),
    ]
