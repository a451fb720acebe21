"""Failures that have one cause, as far as can be told: the same exception, at the same place, in the same handler."""

from __future__ import annotations

from typing import Self

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.models.base import NameField

BUCKET = 10  # minutes of failures that are counted together


class FailureGroupQuerySet(models.QuerySet["FailureGroup"]):
    """Named selections of groups."""

    def silenced(self) -> Self:
        """Those that are to alarm nobody now, by the database's clock."""
        return self.filter(is_silenced())


def is_silenced(prefix: str = "") -> Q:
    """The condition that a group is to alarm nobody now. `prefix` leads to it, such as "group__"."""
    without_end = Q(**{f"{prefix}silenced_until": None})
    return Q(**{f"{prefix}silenced_at__isnull": False}) & (without_end | Q(**{f"{prefix}silenced_until__gt": Now()}))


class FailureGroup(models.Model):
    """Incoming messages that failed alike. They name it by its `fingerprint`; see `ProcessedMessage`.

    `frame` is the innermost function of the application's own, as "file:function", and `queue` the queue where no
    handler was called. `last_seen` is late by some seconds. `first_release` and `last_release` are what the site's
    settings said where it was seen; "" where they name none.

    A group is silenced from `silenced_at` until `silenced_until`, or without end. `silenced_in` are the releases that
    do not end this; NULL where none ends it. `acted_at` is when an operator last had all of it requeued or discarded.
    """

    fingerprint = models.CharField(max_length=32, unique=True, editable=False)
    exception_type = models.CharField(_("exception"), max_length=255, blank=True)
    frame = models.CharField(_("place"), max_length=255, blank=True)
    handler = models.CharField(_("handler"), max_length=255, blank=True)
    queue = NameField(_("queue"), max_length=255, blank=True)
    first_seen = MomentField(_("first seen"), db_default=Now())
    last_seen = MomentField(_("last seen"), db_default=Now())
    first_release = models.CharField(_("first seen in release"), max_length=100, blank=True)
    last_release = models.CharField(_("last seen in release"), max_length=100, blank=True)
    acted_at = MomentField(null=True, editable=False)
    note = models.TextField(_("note"), blank=True)
    noted_by = models.CharField(max_length=255, blank=True, editable=False)
    silenced_at = MomentField(_("silenced"), null=True, editable=False)
    silenced_until = MomentField(_("silenced until"), null=True, editable=False)
    silenced_in = models.JSONField(null=True, editable=False)
    silenced_by = models.CharField(max_length=255, blank=True, editable=False)

    objects = FailureGroupQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        verbose_name = _("failure group")
        verbose_name_plural = _("failure groups")
        default_permissions = ()  # whoever may see messages sees how they fail
        indexes = [models.Index(fields=["last_seen", "id"], name="messaging_failure_group_seen")]

    def __str__(self) -> str:
        return " · ".join(filter(None, (self.name, self.frame or self.handler or self.queue)))

    @property
    def name(self) -> str:
        """The exception's class, without its module."""
        return self.exception_type.rpartition(".")[2] or "?"


class FailureCount(models.Model):
    """How many attempts failed within `BUCKET` minutes: for good, or to be retried.

    `minute` is the first of them, counted from 1970 in UTC. `group` is NULL for failures that are in none.
    """

    group = models.ForeignKey(
        FailureGroup, on_delete=models.CASCADE, null=True, related_name="count_set", db_index=False, db_constraint=False
    )
    alias = NameField(max_length=100)
    minute = models.PositiveIntegerField()
    failed = models.PositiveIntegerField(default=0)
    retried = models.PositiveIntegerField(default=0)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["group", "minute", "alias"], name="messaging_failure_count_once")
        ]
        indexes = [models.Index(fields=["minute"], name="messaging_failure_count_minute")]

    def __str__(self) -> str:
        return f"{self.group_id} · {self.minute}"
