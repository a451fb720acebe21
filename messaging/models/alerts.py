"""What people outside of the admin are told: what is wrong, and the messages about it that are still to be sent."""

from __future__ import annotations

from django.db import models

from messaging.db.clock import MomentField, Now
from messaging.models.base import NameField


class Alert(models.Model):
    """Something that is wrong, or was: a kind of condition about one subject.

    `began_at` and `ended_at` are when it was found and found to be over; `ended_at` is NULL while it lasts. `told_at`
    is when its last message but one that it is over was written, and `is_told` whether that was since it began.
    `version` grows with each change, which is made to the version that was read.

    One row of the kind `BEAT` is about nothing: its `told_at` is when somebody last looked at everything.
    """

    BEAT = "beat"

    kind = models.CharField(max_length=50)
    subject = NameField(max_length=255, blank=True)
    level = models.CharField(max_length=10, blank=True)
    words = models.TextField(blank=True)
    fix = models.TextField(blank=True)
    link = models.CharField(max_length=255, blank=True)
    began_at = MomentField(db_default=Now())
    ended_at = MomentField(null=True)
    told_at = MomentField(null=True)
    is_told = models.BooleanField(default=False, db_default=False)
    version = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["kind", "subject"], name="messaging_alert_once")]

    def __str__(self) -> str:
        return f"{self.kind} · {self.subject}"


class AlertMessage(models.Model):
    """What one recipient is still to be told of an alert. Written in the transaction that changes the alert.

    Whoever sends it counts a try, and pushes `due_at` into the future under a token of its own: if that process dies,
    it is due again. A newer message of the same alert takes its place. The row goes once it is sent, or was tried often
    enough.
    """

    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="message_set")
    channel = models.CharField(max_length=64)
    content = models.JSONField()
    attempts = models.PositiveSmallIntegerField(default=0)
    due_at = MomentField(db_default=Now())
    token = models.UUIDField(null=True)
    error = models.TextField(blank=True)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["alert", "channel"], name="messaging_alert_message_once")]

    def __str__(self) -> str:
        return f"{self.channel} · {self.alert_id}"
