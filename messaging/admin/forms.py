"""The form that writes a message. What it accepts can be sent: the last check is `Composer` itself."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging import conf
from messaging.admin.display import seconds_until
from messaging.exceptions import LONGEST_WAIT, MessagingError, PayloadError, WireError
from messaging.message import Message
from messaging.models import PublishedMessage
from messaging.publishing.rows import Composer
from messaging.wire.bodies import encode_body
from messaging.wire.fields import encode_table

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

JSON, TEXT = "json", "text"


class ShortText(forms.CharField):
    """A field of up to 255 bytes, which is what AMQP gives names."""

    def __init__(self, *, label: str | _StrPromise, help_text: str | _StrPromise = "", **attrs: str) -> None:
        widget = forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off", "spellcheck": "false", **attrs})
        super().__init__(label=label, help_text=help_text, required=False, widget=widget)

    def clean(self, value: Any) -> str:
        """The text. Raises ValidationError beyond 255 bytes."""
        text: str = super().clean(value)
        length = len(text.encode("utf-8", "surrogatepass"))
        if length > 255:
            raise ValidationError(_("This has %(length)d bytes; AMQP allows 255.") % {"length": length})
        return text


class PublishForm(forms.Form):
    """A message as an operator writes it; `row` is the unsaved outbox row once the form is valid."""

    row: PublishedMessage

    using = forms.ChoiceField(label=gettext_lazy("Broker"))
    exchange = ShortText(
        label=gettext_lazy("Exchange"),
        help_text=gettext_lazy("Leave empty for the usual exchange, which is the one shown in grey."),
    )
    queue = ShortText(
        label=gettext_lazy("Queue"),
        help_text=gettext_lazy("Fill in to send straight to one queue instead, past all exchanges."),
        list="messaging-queues",
    )
    routing_key = ShortText(
        label=gettext_lazy("Routing key"),
        help_text=gettext_lazy("Decides which queues and handlers receive it, such as orders.placed."),
    )
    format = forms.ChoiceField(
        label=gettext_lazy("Format"),
        choices=[(JSON, "JSON"), (TEXT, gettext_lazy("Text"))],
        initial=JSON,
        widget=forms.RadioSelect,
    )
    body = forms.CharField(
        label=gettext_lazy("Body"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"class": "vLargeTextField msg-code", "rows": 12, "spellcheck": "false"}),
    )
    headers = forms.CharField(
        label=gettext_lazy("Headers"),
        required=False,
        widget=forms.Textarea(attrs={"class": "vLargeTextField msg-code", "rows": 3, "spellcheck": "false"}),
        help_text=gettext_lazy('A JSON object, such as {"tenant": "acme"}.'),
    )
    message_id = ShortText(
        label=gettext_lazy("Message id"),
        help_text=gettext_lazy("A new one unless given. A consumer processes each id once."),
    )
    correlation_id = ShortText(label=gettext_lazy("Correlation id"))
    type = ShortText(label=gettext_lazy("Type"))
    content_type = ShortText(
        label=gettext_lazy("Content type"), help_text=gettext_lazy("Follows from the format unless given.")
    )
    reply_to = ShortText(label=gettext_lazy("Reply to"))
    priority = forms.IntegerField(label=gettext_lazy("Priority"), required=False, min_value=0, max_value=255)
    expiration = forms.FloatField(
        label=gettext_lazy("Expiration"),
        required=False,
        min_value=0,
        max_value=LONGEST_WAIT,
        help_text=gettext_lazy("Seconds after which the broker may drop it from a queue."),
    )
    publish_at = forms.DateTimeField(
        label=gettext_lazy("Publish at"),
        required=False,
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": 1}, format="%Y-%m-%dT%H:%M:%S"),
        help_text=gettext_lazy("Empty to send it as soon as it is published."),
    )
    mandatory = forms.BooleanField(
        label=gettext_lazy("Mandatory"),
        required=False,
        initial=True,
        help_text=gettext_lazy("It is an error if no queue takes it."),
    )

    keep_as = ShortText(label=gettext_lazy("Name of the template"))

    fieldsets = (
        (None, {"fields": ["using", "exchange", "queue", "routing_key"]}),
        (gettext_lazy("Content"), {"fields": ["format", "body", "headers"]}),
        (
            gettext_lazy("More properties"),
            {
                "classes": ["collapse"],
                "fields": [
                    "message_id", "correlation_id", "type", "content_type", "reply_to", "priority", "expiration",
                    "publish_at", "mandatory",
                ],
            },
        ),
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = conf.aliases()
        using = self.fields["using"]
        assert isinstance(using, forms.ChoiceField)
        using.choices = [(name, name) for name in names]
        using.initial = names[0]
        self.fields["exchange"].widget.attrs["placeholder"] = usual_exchange(names[0])
        if len(names) == 1:
            using.widget = forms.HiddenInput()

    @property
    def shown_fieldsets(self) -> list[tuple[Any, dict[str, Any]]]:
        """The fieldsets without what is hidden."""
        hidden = {field.name for field in self.hidden_fields()}
        return [
            (name, {**options, "fields": [field for field in options["fields"] if field not in hidden]})
            for name, options in self.fieldsets
        ]

    def clean_headers(self) -> dict[str, Any]:
        """The headers as a dict that AMQP can carry."""
        text = self.cleaned_data["headers"].strip()
        headers = parse_json(text, _("The headers are not valid JSON")) if text else {}
        if not isinstance(headers, dict):
            raise ValidationError(_('The headers must be a JSON object, such as {"tenant": "acme"}.'))
        try:
            encode_table(headers)
        except WireError as error:
            raise ValidationError(str(error)) from error
        return headers

    def clean_body(self) -> str:
        """The body with the line ends that it was written with, as far as a browser tells."""
        return str(self.cleaned_data["body"]).replace("\r\n", "\n")

    def clean_publish_at(self) -> datetime | None:
        """A moment, by at most ten years ahead. Whether it is past, the database's clock says when it is sent."""
        moment: datetime | None = self.cleaned_data["publish_at"]
        if moment is not None and seconds_until(moment) > LONGEST_WAIT:
            raise ValidationError(_("This lies more than ten years ahead."))
        return moment

    def clean(self) -> dict[str, Any]:
        """Compose the row."""
        data = super().clean() or self.cleaned_data
        if data.get("format") == JSON and "body" in data:
            try:
                parse_json(data["body"], _("The body is not valid JSON"))
            except ValidationError as error:
                self.add_error("body", error)
        if data.get("queue") and data.get("exchange"):
            self.add_error("queue", _("Give either a queue or an exchange."))
        elif not any(data.get(name) for name in ("queue", "exchange", "routing_key")) and not self.errors:
            self.add_error("routing_key", _("Give a routing key or a queue."))
        if not self.errors:
            self._compose(data)
        return data

    def _compose(self, data: dict[str, Any]) -> None:
        try:
            self.row = Composer(conf.get(data["using"])).compose(_message(data))
        except PayloadError as error:
            self.add_error("body", str(error))
        except (MessagingError, OverflowError) as error:
            name = str(error).partition(" ")[0]
            self.add_error(name if name in self.fields else None, str(error))


def _message(data: dict[str, Any]) -> Message:
    content_type = data["content_type"] or ("application/json" if data["format"] == JSON else None)
    if data["format"] == JSON:
        payload: Any = data["body"].encode()
    else:
        payload, content_type = encode_body(data["body"], content_type)
    return Message(
        data["routing_key"] or data["queue"],
        payload,
        exchange=data["exchange"] or None,
        queue=data["queue"] or None,
        headers=data["headers"],
        message_id=data["message_id"] or None,
        correlation_id=data["correlation_id"] or None,
        content_type=content_type,
        type=data["type"] or None,
        reply_to=data["reply_to"] or None,
        priority=data["priority"],
        expiration=data["expiration"],
        mandatory=data["mandatory"],
        at=data["publish_at"],
    )


def parse_json(text: str, problem: str) -> Any:
    """The value of a JSON text. Raises ValidationError, which begins with `problem` and says where."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = _("line %(line)d, column %(column)d") % {"line": error.lineno, "column": error.colno}
        raise ValidationError(f"{problem}: {where} ({error.msg}).") from error
    except RecursionError as error:
        raise ValidationError(_("%(problem)s: it is nested too deeply.") % {"problem": problem}) from error
    except ValueError as error:
        raise ValidationError(f"{problem}: {error}") from error


def _refuse(name: str) -> Any:
    raise ValueError(_("%(name)s is not a JSON number.") % {"name": name})


def usual_exchange(alias: str) -> str:
    """The exchange that an alias publishes to unless told otherwise."""
    try:
        return conf.get(alias).exchange
    except MessagingError:
        return ""
