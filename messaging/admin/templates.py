"""Templates of messages: their list, and what the form that writes messages does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging import conf
from messaging.admin import databases
from messaging.admin.base import NAMED, ReadOnlyAdmin
from messaging.admin.display import moment, shorten
from messaging.admin.filters import number_of
from messaging.db.clock import Now
from messaging.models import MessageTemplate
from messaging.models.base import written

if TYPE_CHECKING:
    from messaging.admin.forms import PublishForm
    from messaging.admin.published import PublishedMessageAdmin

LISTED = 50  # templates above the form
WIDE = {"class": "vLargeTextField msg-code", "spellcheck": "false"}


class MessageTemplateAdmin(ReadOnlyAdmin):
    """Templates of messages, which those with the permissions write, change and delete."""

    list_display = ("name", "destination_column", "owner", "changed_column", "use_column")
    ordering = ("name",)
    search_fields = ("name__startswith",)
    search_help_text = gettext_lazy("The beginning of a name.")
    fields = ("name", "alias", "exchange", "queue", "routing_key", "type", "content_type", "headers", "body")
    change_list_template = "admin/messaging/template_list.html"
    nothing = gettext_lazy("There is no template yet. Save one from “Write a message”, or add it here.")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those who may add templates."""
        return self.may(request, "add")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those who may change them."""
        return self.may(request, "change")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those who may delete them."""
        return self.may(request, "delete")

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Code in its own font, and aliases to choose from."""
        if db_field.name in ("headers", "body"):
            kwargs["widget"] = forms.Textarea(attrs={**WIDE, "rows": 12 if db_field.name == "body" else 3})
        if db_field.name == "alias":
            kwargs["widget"] = forms.Select(choices=[(name, name) for name in conf.aliases()])
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: MessageTemplate, form: Any, change: bool) -> None:
        """Save it, with who wrote it first and when it was changed."""
        obj.owner = obj.owner or request.user.get_username()
        obj.changed_at = Now()
        super().save_model(request, obj, form, change)

    @admin.display(description=gettext_lazy("destination"))
    def destination_column(self, row: MessageTemplate) -> SafeString | str:
        """Where a message of it goes."""
        place = f"→ {row.queue}" if row.queue else row.exchange
        return shorten(" · ".join(filter(None, (place, row.routing_key))) or "—", NAMED)

    @admin.display(description=gettext_lazy("changed"))
    def changed_column(self, row: MessageTemplate) -> SafeString:
        """When it was changed last."""
        return moment(row.changed_at, seconds=False)

    @admin.display(description="")
    def use_column(self, row: MessageTemplate) -> SafeString | str:
        """A link to the form, filled with it."""
        url = _form_url(self.admin_site.name)
        return format_html('<a href="{}?template={}">{}</a>', url, row.pk, _("Write a message")) if url else ""


def find(request: HttpRequest, number: str) -> MessageTemplate | None:
    """The template of that number, for those who may see templates."""
    pk = number_of(number)
    if pk is None or not request.user.has_perm("messaging.view_messagetemplate"):
        return None
    found: MessageTemplate | None = written(MessageTemplate).filter(pk=pk).first()
    return found


def links(model_admin: PublishedMessageAdmin, request: HttpRequest) -> list[tuple[str, str]]:
    """The templates by name, each with the address of the form that is filled with it."""
    if not request.user.has_perm("messaging.view_messagetemplate"):
        return []
    url = _form_url(model_admin.admin_site.name)
    names = written(MessageTemplate).order_by("name").values_list("name", "pk")[:LISTED]
    return [(name, f"{url}?template={pk}") for name, pk in names]


def save(model_admin: PublishedMessageAdmin, request: HttpRequest, form: PublishForm) -> None:
    """Keep what the form holds as a template, or say at its field why that is not done."""
    data = form.cleaned_data
    name = data["keep_as"].strip()
    if not request.user.has_perm("messaging.add_messagetemplate"):
        form.add_error("keep_as", _("You do not have the permission to save templates."))
    elif not name or len(name) > 100:
        form.add_error("keep_as", _("Give it a name of at most 100 characters."))
    elif written(MessageTemplate).filter(name=name).exists():
        form.add_error("keep_as", _("There is a template of that name; change that one, or choose another name."))
    else:
        columns = ("exchange", "queue", "routing_key", "type", "content_type", "headers", "body")
        template = MessageTemplate(name=name, alias=data["using"], **{column: data[column] for column in columns})
        template.owner = request.user.get_username()
        template.save(using=written(MessageTemplate).db, force_insert=True)
        model_admin.message_user(request, _("The template “%(name)s” is saved.") % {"name": name}, messages.SUCCESS)


def _form_url(site: str) -> str:
    return databases.if_any(reverse, f"{site}:messaging_publishedmessage_add")
