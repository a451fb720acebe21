"""Rehearsals: a failed message that is run in a transaction which is rolled back, as an operator asked for it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.models.base import PolledIndex


class Rehearsal(models.Model):
    """One rehearsal, from the request to its result. It is run once at most, whatever becomes of who runs it.

    `row` is the number of the incoming message, `round` the one that it was in. `lease_token` with `leased_until` is
    the claim of whoever runs it: where that has run out, they are gone. `result` is what a success did; `error` and
    `traceback` say why there was none. `language` is that of the user, for what is said.
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
    username = models.CharField(_("user name"), max_length=255, blank=True)
    language = models.CharField(max_length=35, blank=True)
    created_at = MomentField(_("created"), db_default=Now())
    began_at = MomentField(_("began"), null=True)
    ended_at = MomentField(_("ended"), null=True)
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    lease_token = models.UUIDField(null=True, editable=False)
    leased_until = MomentField(null=True, editable=False)

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
