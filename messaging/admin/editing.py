"""Editing a failed message: the form, what is changed by it, and the copy that goes round in its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging import conf, operations
from messaging.admin import databases, redaction
from messaging.admin.actions import REASON, log_each, operator, skip_text
from messaging.admin.forms import parse_json
from messaging.admin.pages import page
from messaging.admin.payload import header_rows, indent_json
from messaging.db.connections import is_refusal
from messaging.exceptions import ConfigurationError, MessagingError, PayloadError, WireError
from messaging.models import ProcessedMessage
from messaging.operations.editing import (
    Content,
    Edit,
    changed_headers,
    content_of,
    copied,
    difference,
    for_audit,
    is_locked,
)
from messaging.publishing.rows import MAX_HEADERS
from messaging.wire.bodies import is_json
from messaging.wire.fields import encode_table

if TYPE_CHECKING:
    from messaging.admin.processed import ProcessedMessageAdmin

State = ProcessedMessage.State
AREA = {"class": "vLargeTextField msg-code", "spellcheck": "false"}


class EditForm(forms.Form):
    """Another content for a message; once it is valid, `edit` is what is to be done and `difference` what that changes.

    Args:
        row: the message.
        content: what of it can be edited, as it is shown.
    """

    edit: Edit
    difference: str

    seen = forms.IntegerField(widget=forms.HiddenInput, min_value=0)
    body = forms.CharField(
        label=gettext_lazy("Body"), required=False, strip=False, widget=forms.Textarea(attrs={**AREA, "rows": 16})
    )
    headers = forms.CharField(
        label=gettext_lazy("Headers"),
        required=False,
        widget=forms.Textarea(attrs={**AREA, "rows": 5}),
        help_text=gettext_lazy('A JSON object, such as {"tenant": "acme"}.'),
    )

    def __init__(self, row: ProcessedMessage, content: Content, data: Any = None) -> None:
        headers = json.dumps(content.headers, ensure_ascii=False, indent=2) if content.headers else ""
        super().__init__(data, initial={"seen": row.round, "body": content.text, "headers": headers})
        self._row, self._content = row, content

    def clean_body(self) -> str:
        """The body with the line ends that it was written with, as far as a browser tells."""
        text = str(self.cleaned_data["body"]).replace("\r\n", "\n")
        if is_json(self._row.content_type):
            parse_json(text, _("The body is not valid JSON"))
        return text

    def clean_headers(self) -> dict[str, Any]:
        """The headers as a dict that AMQP can carry, without any that is locked."""
        text = self.cleaned_data["headers"].strip()
        headers = parse_json(text, _("The headers are not valid JSON")) if text else {}
        if not isinstance(headers, dict):
            raise ValidationError(_('The headers must be a JSON object, such as {"tenant": "acme"}.'))
        for name in headers:
            if is_locked(name) or name in self._content.locked:
                raise ValidationError(_("The header “%(name)s” cannot be set here.") % {"name": name})
        try:
            length = len(encode_table(headers))
        except WireError as error:
            raise ValidationError(str(error)) from error
        if length > MAX_HEADERS:
            raise ValidationError(_("The headers have %(length)d bytes, more than AMQP carries.") % {"length": length})
        return headers

    def clean(self) -> dict[str, Any]:
        """Tell what is changed."""
        data = super().clean() or self.cleaned_data
        if self.errors:
            return data
        self.difference = difference(self._content, data["body"], data["headers"])
        headers, dropped = changed_headers(self._content.headers, data["headers"])
        self.edit = Edit(data["body"], headers, dropped, data["seen"])
        if not (headers or dropped or data["body"] != self._content.text):
            raise ValidationError(_("Nothing was changed. To run it again as it is, requeue it."))
        try:
            copied(self._row, self.edit)
        except MessagingError as error:
            raise ValidationError(str(error)) from error
        return data


def may_edit(model_admin: ProcessedMessageAdmin, request: HttpRequest) -> bool:
    """Whether the site has editing switched on, and this user may do it: the form shows the payload."""
    try:
        is_on = conf.console().edit
    except ConfigurationError:
        is_on = False
    return is_on and model_admin.may(request, "edit_requeue") and model_admin.has_view_payload_permission(request)


def shown(row: ProcessedMessage) -> Content:
    """A message's content as the form has it, JSON indented. Raises PayloadError, which says why nothing is shown.

    All that is edited, shown as changed, and kept by the audit comes from here: a message of which the site hides
    something is refused here, because the form would send what it shows.
    """
    if redaction.hides(row, row.body):
        raise PayloadError(_("The site hides some of this message from the console, so it cannot be edited here."))
    content = content_of(row)
    if not is_json(row.content_type):
        return content
    try:
        parse_json(content.text, "")
    except ValidationError:
        return content  # which may be what is to be corrected
    return content._replace(text=indent_json(content.text))


def edit_view(model_admin: ProcessedMessageAdmin, request: HttpRequest, key: str) -> HttpResponse:
    """The form (GET); what it changes, or the form again (POST); the copy, once that is confirmed."""
    if not (model_admin.has_view_permission(request) and may_edit(model_admin, request)):
        raise PermissionDenied
    row = databases.named(ProcessedMessage, unquote(key)).first()
    if row is None:
        return model_admin._get_obj_does_not_exist_redirect(request, model_admin.opts, key)  # type: ignore[attr-defined,no-any-return]
    if row.state != State.FAILED:
        text = _("Only what is failed can be edited; it is %(state)s.")
        return _page(model_admin, request, row, problem=text % {"state": row.get_state_display()})
    try:
        content = shown(row)
    except PayloadError as error:
        return _page(model_admin, request, row, problem=str(error))
    form = EditForm(row, content, request.POST if request.method == "POST" else None)
    if not form.is_bound or not form.is_valid() or "_further" in request.POST:
        return _page(model_admin, request, row, form, content)
    if "_confirm" in request.POST and (done := _act(model_admin, request, row, form)) is not None:
        return done
    return _page(model_admin, request, row, form, content, difference=form.difference if form.is_valid() else "")


def _act(
    model_admin: ProcessedMessageAdmin, request: HttpRequest, row: ProcessedMessage, form: EditForm
) -> HttpResponse | None:
    """Have the copy go round, and lead to it; None where the database refuses what it says."""
    by = operator(request)._replace(details=for_audit(form.difference))
    rows = ProcessedMessage.objects.using(row._state.db).filter(pk=row.pk)
    try:
        outcome = operations.edit(rows, form.edit, by)
    except DatabaseError as error:
        if not is_refusal(error):
            raise
        form.add_error(None, _("The database cannot store this: %(error)s") % {"error": error})
        return None
    for reason, ids in outcome.skipped.items():
        model_admin.message_user(request, skip_text(reason, len(ids)), messages.WARNING)
    page = model_admin.url_of("change", row)
    if outcome.created:
        [created] = outcome.created
        page = databases.page_in(ProcessedMessage, rows.db, created, model_admin.admin_site.name)
        text = f"{_('Edit and requeue')}: {by.reason}" if by.reason else _("Edit and requeue")
        log_each(rows, by.user.pk, text)
        text = _("This copy goes round in place of the message that you edited.")
        model_admin.message_user(request, text, messages.SUCCESS)
    return HttpResponseRedirect(model_admin.keeping(request, page))


def _page(
    model_admin: ProcessedMessageAdmin,
    request: HttpRequest,
    row: ProcessedMessage,
    form: EditForm | None = None,
    content: Content | None = None,
    **more: Any,
) -> TemplateResponse:
    fieldsets: Any = [(None, {"fields": ["body", "headers"]})]
    return page(
        model_admin,
        request,
        "edit.html",
        _("Edit and requeue"),
        row,
        badge=model_admin.badge(row),
        back=model_admin.keeping(request, model_admin.url_of("change", row)),
        form=form,
        adminform=None if form is None else helpers.AdminForm(form, fieldsets, {}, (), model_admin),  # type: ignore[arg-type]
        locked=header_rows(content.locked) if content is not None else [],
        reason_length=REASON,
        **more,
    )
