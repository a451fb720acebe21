"""Writing a message: the page, what it would send, saving a draft or a template, publishing it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from messaging import operations
from messaging.admin import databases, redaction, templates
from messaging.admin.actions import log_each
from messaging.admin.drafts import cloned, initial, of_template
from messaging.admin.filters import known_queues
from messaging.admin.forms import PublishForm
from messaging.admin.pages import page
from messaging.admin.preview import Preview, preview
from messaging.db.clock import Now
from messaging.exceptions import PayloadError
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring.databases import home
from messaging.operations import Operator

if TYPE_CHECKING:
    from messaging.admin.published import PublishedMessageAdmin

PREFILLED = ("using", "exchange", "queue", "routing_key")  # fields that an address may fill in
CLONED: dict[str, type[Model]] = {"incoming": ProcessedMessage, "outgoing": PublishedMessage}
WRITTEN = (
    "alias", "exchange", "queue", "routing_key", "type", "content_type", "message_id", "correlation_id", "reply_to",
    "headers", "body", "body_encoding", "wire", "priority", "expiration", "mandatory", "publish_at",
)  # fmt: skip


def compose_view(
    model_admin: PublishedMessageAdmin, request: HttpRequest, draft: PublishedMessage | None
) -> HttpResponse:
    """Show the form (GET); save a draft or publish (POST)."""
    if request.method == "POST":
        form = PublishForm(request.POST)
        if not form.is_valid():
            return _page(model_admin, request, form, draft)
        if "_preview" in request.POST:
            return _page(model_admin, request, form, draft, preview=_previewed(form))
        if "_template" in request.POST:
            templates.save(model_admin, request, form)
            return _page(model_admin, request, form, draft)
        return _save(model_admin, request, form.row, draft)
    return _page(model_admin, request, PublishForm(initial=_first_values(model_admin, request, draft)), draft)


def _first_values(
    model_admin: PublishedMessageAdmin, request: HttpRequest, draft: PublishedMessage | None
) -> dict[str, Any]:
    """What the form begins with: a draft, a template, a clone of a message, or what the address says."""
    if draft is not None:
        return initial(draft)
    if (found := templates.find(request, request.GET.get("template", ""))) is not None:
        return of_template(found)
    kind, _colon, key = request.GET.get("clone", "").partition(":")
    if kind in CLONED:
        return _clone(model_admin, request, CLONED[kind], key)
    return {name: request.GET[name] for name in PREFILLED if name in request.GET}


def _clone(model_admin: PublishedMessageAdmin, request: HttpRequest, model: type[Model], key: str) -> dict[str, Any]:
    """A message's content, for those who may see it; where the form cannot hold it, it says why and stays empty."""
    name = model._meta.model_name
    if not all(request.user.has_perm(f"messaging.{right}_{name}") for right in ("view", "view_payload")):
        raise PermissionDenied
    row = databases.named(model, key).first()
    try:
        if row is None:
            raise PayloadError(_("The message is gone."))
        if redaction.hides(row, row.body):
            raise PayloadError(_("The site hides some of this message from the console, so it cannot be copied here."))
        values, left_out = cloned(row)
    except PayloadError as error:
        model_admin.message_user(request, str(error), messages.ERROR)
        return {}
    if left_out:
        text = _("These headers hold what JSON cannot, and are left out: %(names)s.")
        model_admin.message_user(request, text % {"names": ", ".join(left_out)}, messages.WARNING)
    return values


def _previewed(form: PublishForm) -> Preview:
    return preview(form.row, has_own_id=bool(form.cleaned_data["message_id"]))


def _page(
    model_admin: PublishedMessageAdmin,
    request: HttpRequest,
    form: PublishForm,
    draft: PublishedMessage | None,
    **more: Any,
) -> TemplateResponse:
    fields: Any = helpers.AdminForm(form, form.shown_fieldsets, {}, (), model_admin)  # type: ignore[arg-type]
    tools = [tool for tool in model_admin.tools(request, draft) if "/discard/" in tool["url"]] if draft else []
    return page(
        model_admin,
        request,
        "compose.html",
        _("Draft of an outgoing message") if draft else _("Write a message"),
        draft,
        subtitle=str(draft) if draft else None,
        form=form,
        adminform=fields,
        queues=known_queues(),
        templates=[] if draft else templates.links(model_admin, request),
        may_save_template=request.user.has_perm("messaging.add_messagetemplate"),
        tools=tools,
        **(model_admin.beside(request, draft) if draft else {}),
        **more,
    )


def _save(
    model_admin: PublishedMessageAdmin, request: HttpRequest, row: PublishedMessage, draft: PublishedMessage | None
) -> HttpResponse:
    publish = "_publish" in request.POST
    database = str(draft._state.db) if draft is not None else home(PublishedMessage)
    with transaction.atomic(using=database):
        saved = _write(row, draft, database)
        rows = PublishedMessage.objects.using(database).filter(pk=row.pk)
        if saved and draft is None:
            model_admin.log_addition(request, row, _("Written as a draft."))
        elif saved:
            log_each(rows, request.user.pk, _("Draft changed."))
        if saved and publish:
            operations.release(rows, Operator(user=request.user))
            log_each(rows, request.user.pk, _("Published."))
    if not saved:
        text = _("It is no draft any more, so your changes were not saved.")
        model_admin.message_user(request, text, messages.ERROR)
    elif publish:
        text = _("The message is stored, and sent once its time has come. Its page says what becomes of it.")
        model_admin.message_user(request, text, messages.INFO)  # success would be said of what may still fail
    else:
        model_admin.message_user(request, _("The draft was saved. It is not published yet."), messages.SUCCESS)
    if not model_admin.has_view_permission(request):
        return HttpResponseRedirect(reverse(f"{model_admin.admin_site.name}:index"))
    return HttpResponseRedirect(model_admin.keeping(request, model_admin.url_of("change", row)))


def _write(row: PublishedMessage, draft: PublishedMessage | None, database: str) -> bool:
    """Save the row as a draft; False when the draft was published or discarded meanwhile."""
    row.state, row.due_at = PublishedMessage.State.DRAFT, None
    if draft is None:
        row.save(using=database, force_insert=True)
        return True
    row.pk, row._state.db = draft.pk, database
    if not isinstance(vars(row)["publish_at"], datetime):
        row.publish_at = Now()  # the column's default, which an UPDATE cannot name everywhere
    drafts = PublishedMessage.objects.using(database).filter(pk=draft.pk, state=PublishedMessage.State.DRAFT)
    return drafts.update(**{name: getattr(row, name) for name in WRITTEN}) == 1
