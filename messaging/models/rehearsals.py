"""Rehearsals: a failed message that is run in a transaction which is rolled back, as an operator asked for it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from messaging.models.base import Claimable, PolledIndex


class Rehearsal(Claimable):
    """One rehearsal, from the request to its result. It is run once at most, whatever becomes of who runs it.

    `row` is the number of the incoming message, `round` the one that it was in. The claim of whoever runs it is never
    renewed. `result` is what a success did; `error` and `traceback` say why there was none.
    """

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("under way")
        SUCCEEDED = "succeeded", _("would succeed")
        FAILED = "failed", _("would fail")
        REFUSED = "refused", _("cannot be rehearsed")
        LATE = "late", _("took too long")
        DIED = "died", _("its process died")

    UNFINISHED = (State.WAITING, State.RUNNING)

    row = models.BigIntegerField()
    round = models.PositiveIntegerField()
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.WAITING)
    handler = models.CharField(_("handler"), max_length=255, blank=True)
    result = models.JSONField(null=True)
    error = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)

    class Meta:
        app_label = "messaging"
        verbose_name = _("rehearsal")
        verbose_name_plural = _("rehearsals")
        default_permissions = ()
        indexes = [
            models.Index(fields=["row", "id"], name="messaging_rehearsal_row"),
            PolledIndex(
                fields=["state", "id"],
                name="messaging_rehearsal_open",
                condition=models.Q(state__in=("waiting", "running")),
            ),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} · {self.get_state_display()}"
