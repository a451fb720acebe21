"""How much was done when: sums that outlive the messages, for charts and alerts."""

from __future__ import annotations

from django.db import models

from messaging.models.base import NameField


class Counter(models.Model):
    """What one process did with the messages of a queue within a minute, or all of them within an hour.

    Several rows may be about the same minute and queue: their sum is what was done. `minute` counts from 1970, in UTC
    by the database's clock; `length` is how many minutes a row is about. `queue` is "" for what was published to an
    exchange. `run_seconds` is how long the handlers ran that succeeded, together.
    """

    length = models.PositiveSmallIntegerField(default=1)
    minute = models.PositiveIntegerField()
    alias = NameField(max_length=100)
    queue = NameField(max_length=255, blank=True)
    published = models.PositiveIntegerField(default=0)
    unpublished = models.PositiveIntegerField(default=0)
    processed = models.PositiveIntegerField(default=0)
    retried = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    run_seconds = models.FloatField(default=0.0)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        indexes = [models.Index(fields=["minute"], name="messaging_counter_minute")]

    def __str__(self) -> str:
        return f"{self.minute} · {self.queue}"
