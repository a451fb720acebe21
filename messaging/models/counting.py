"""How much was done when: sums that outlive the messages, for charts and alerts."""

from __future__ import annotations

from django.db import models

from messaging.models.base import NameField

# Seconds at which the steps of a histogram end; what takes longer than the last is in one more.
BOUNDS = (
    0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0,
    5000.0,
)  # fmt: skip
WAITS = tuple(f"wait_{step:02}" for step in range(len(BOUNDS) + 1))  # the columns of how long messages waited
RUNS = tuple(f"run_{step:02}" for step in range(len(BOUNDS) + 1))  # and of how long their handlers ran


class Counter(models.Model):
    """What one process, or all together, did with the messages of a queue within a minute or an hour.

    Several rows may be about the same minute and queue: their sum is what was done. `minute` counts from 1970, in UTC
    by the database's clock; `length` is how many minutes a row is about. `queue` is "" for what was published to an
    exchange. `run_seconds` is how long the handlers ran that succeeded, together.

    `WAITS` and `RUNS` are further columns: of how many messages the wait and the run ended within each of the steps
    that `BOUNDS` has; NULL for none, and in rows of the release before.
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


for _name in (*WAITS, *RUNS):
    Counter.add_to_class(_name, models.PositiveIntegerField(null=True))
