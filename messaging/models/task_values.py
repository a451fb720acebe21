"""What Django's tasks returned."""

from __future__ import annotations

from django.db import models

from messaging.db.clock import MomentField, Now
from messaging.models.base import NameField


class TaskValue(models.Model):
    """What a task returned that is not None, as JSON, by the identity of its message in the inbox.

    It is written in the transaction of the task, and read only where the inbox says that the task has succeeded.
    """

    alias = NameField(max_length=100)
    queue = NameField(max_length=255)
    key = models.UUIDField()
    value = models.TextField()
    created_at = MomentField(db_default=Now(), editable=False)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["alias", "queue", "key"], name="messaging_task_value_once"),
        ]
        indexes = [models.Index(fields=["created_at"], name="messaging_task_value_created")]

    def __str__(self) -> str:
        return f"{self.queue} · {self.key}"
