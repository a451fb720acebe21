"""Templates: messages that people write again and again."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.models.base import NameField


class MessageTemplate(models.Model):
    """What the form that writes a message is filled with. Nothing is sent because of it."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    alias = NameField(_("alias"), max_length=100, default="default")
    exchange = models.CharField(_("exchange"), max_length=255, blank=True)
    queue = NameField(_("queue"), max_length=255, blank=True)
    routing_key = models.CharField(_("routing key"), max_length=255, blank=True)
    type = models.CharField(_("type"), max_length=255, blank=True)
    content_type = models.CharField(_("content type"), max_length=255, blank=True)
    headers = models.JSONField(_("headers"), default=dict, blank=True)
    body = models.TextField(_("body"), blank=True)
    owner = models.CharField(_("owner"), max_length=255, blank=True, editable=False)
    changed_at = MomentField(_("changed"), db_default=Now(), editable=False)

    class Meta:
        app_label = "messaging"
        verbose_name = _("template")
        verbose_name_plural = _("templates")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
