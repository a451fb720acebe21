"""The inbox: every message that this site received, and how it ended."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.exceptions import DeadLettered, HandlerTimeout, ProcessDied
from messaging.models.base import PolledIndex, StoredMessage, in_state, listed_in, set_only
from messaging.wire import nonces
from messaging.wire.envelope import Envelope

# What a row says of its claim, once nobody holds one.
UNCLAIMED: dict[str, Any] = {
    "lease_token": None,
    "leased_until": None,
    "at_broker": None,
    "started_at": None,
    "interrupted": None,
}


# For one release: what the release before writes into `exception_type`, and nowhere else; delete this with the next.
_DIED = f"{ProcessDied.__module__}.{ProcessDied.__qualname__}"
_DEAD = f"{DeadLettered.__module__}.{DeadLettered.__qualname__}"
_LATE = f"{HandlerTimeout.__module__}.{HandlerTimeout.__qualname__}"

DERIVATION = 1  # how ids are derived for what this release recorded first
BRIEF = 100_000  # microseconds: a run that was recorded before it began says how long it took from here on
LONG = 1_000_000  # microseconds of a run from which on it is found by its handler


def in_group(fingerprint: Any, state: str | None = None) -> Q:
    """That a row's last failure is of this group, as the index of failures has it, and the row in this state.

    Sort what is limited by state and number, forwards or backwards: it is then read from that index, in its order. By
    the number alone PostgreSQL may walk the whole table in the order of its numbers.
    """
    found = ~Q(fingerprint="") & Q(fingerprint=fingerprint)
    return found if state is None else found & listed_in(state)


class ProcessedMessageQuerySet(models.QuerySet["ProcessedMessage"]):
    """Named selections of the inbox."""

    def open(self) -> Self:
        """Rows that wait for something: a claim's end, a retry, or an operator."""
        return self.filter(state__in=ProcessedMessage.OPEN)

    def failed(self) -> Self:
        """Rows that rest until an operator acts."""
        return self.filter(state=ProcessedMessage.State.FAILED)

    def unclaimed(self) -> Self:
        """Rows that no worker holds, by the database's clock."""
        return self.filter(Q(lease_token=None) | Q(leased_until__lte=Now()))

    def abandoned(self, alias: str) -> Self:
        """Claims whose worker stopped renewing them, with all that another round needs."""
        return self.filter(
            alias=alias, state=ProcessedMessage.State.PROCESSING, leased_until__lt=Now(), wire__isnull=False
        ).order_by("leased_until")


class ProcessedMessage(StoredMessage):
    """A received message.

    `round` is its present life in the queue; a delivery of a lower round is an old copy. `attempts` counts started
    attempts since an operator last requeued it. `lease_token` with `leased_until` is a claim by a running worker; a
    `processing` row without a token is a crash that has been counted and waits for its next delivery.

    Of a claim: `at_broker` says whether the broker keeps the delivery until the outcome is recorded, so that it comes
    again; None where the release before made the claim, which wrote none of these. `started_at` is when its handler
    began; None where it has not. `interrupted` says that its process was asked to stop meanwhile.

    `duration` is how long the handler of its last run took, in microseconds by its process's monotonic clock: 0 for
    less than `BRIEF`; NULL where none ran, nobody knows, or the release before recorded it. `processed_at` is when the
    handler had ended, or of such a brief run when it began. `started_at` does not tell that of a run without a claim:
    it is by the clock of its host then, so that the run knows its record again.

    `derivation` is how the ids of what its handler publishes outside a transaction are made, so that a rerun makes the
    same ones: None for a message that the release before recorded first.

    `digest` with `headers_digest` tells messages of one id apart; where the second is NULL the row was stored with
    version 1 of the digest, which does not cover headers. `nonce` is how its rounds are recognised as ours; NULL until
    it first goes round.

    `fingerprint` is that of its last failure, until it is processed: it names a `FailureGroup`.
    `edited_from` is the row whose place it took, with another content: that one is `superseded`.

    Of its last failure: `process_died` says that the process died while its handler ran, for no reason that is known;
    `dead_lettered` that the broker gave it up. NULL where that is not so, or the release before recorded it.
    """

    class State(models.TextChoices):
        PROCESSING = "processing", _("processing")
        PROCESSED = "processed", _("processed")
        RETRYING = "retrying", _("retrying")
        FAILED = "failed", _("failed")
        REQUEUED = "requeued", _("requeued")
        DISCARDED = "discarded", _("discarded")
        SUPERSEDED = "superseded", _("superseded")

    OPEN = (State.PROCESSING, State.RETRYING, State.FAILED, State.REQUEUED)
    AWAITING = (State.RETRYING, State.REQUEUED)

    state = models.CharField(_("state"), max_length=10, choices=State.choices)
    key = models.UUIDField(_("key"), editable=False)
    digest = models.UUIDField(_("digest"), editable=False)
    headers_digest = models.UUIDField(null=True, editable=False)
    nonce = models.UUIDField(null=True, editable=False)
    process_died = models.BooleanField(null=True, editable=False)
    dead_lettered = models.BooleanField(null=True, editable=False)
    handler = models.CharField(_("handler"), max_length=255, blank=True)
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    exception_type = models.CharField(_("exception"), max_length=255, blank=True)
    fingerprint = models.CharField(_("fingerprint"), max_length=32, blank=True, editable=False)
    received_at = MomentField(_("received"), db_default=Now(), editable=False)
    processed_at = MomentField(_("processed"), null=True, editable=False)
    failed_at = MomentField(_("failed"), null=True, editable=False)
    retry_at = MomentField(_("next attempt"), null=True, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    leased_until = MomentField(_("leased until"), null=True, editable=False)
    at_broker = models.BooleanField(null=True, editable=False)
    started_at = MomentField(_("started"), null=True, editable=False)
    interrupted = models.BooleanField(null=True, editable=False)
    duration = models.BigIntegerField(_("run"), null=True, editable=False)
    derivation = models.PositiveSmallIntegerField(null=True, editable=False)
    edited_from = models.ForeignKey(
        "self",
        verbose_name=_("edited from"),
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="edits",
        db_index=False,
    )

    objects = ProcessedMessageQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        verbose_name = _("incoming message")
        verbose_name_plural = _("incoming messages")
        default_permissions = ("view",)
        permissions = [
            ("requeue_processedmessage", _("Can requeue failed messages")),
            ("edit_requeue_processedmessage", _("Can edit and requeue failed messages")),
            ("rehearse_processedmessage", _("Can rehearse failed messages")),
            ("discard_processedmessage", _("Can discard and restore incoming messages")),
            ("view_payload_processedmessage", _("Can see the payload of incoming messages")),
        ]
        constraints = [
            models.UniqueConstraint(fields=["alias", "queue", "key"], name="messaging_inbox_identity"),
        ]
        indexes = [
            PolledIndex(fields=["state", "id"], name="messaging_inbox_open", condition=~Q(state="processed")),
            PolledIndex(
                fields=["alias", "leased_until"], name="messaging_inbox_leases", condition=Q(state="processing")
            ),
            PolledIndex(fields=["digest"], name="messaging_inbox_adoption", condition=Q(state="processing")),
            PolledIndex(
                fields=["fingerprint", "state", "id"], name="messaging_inbox_failures", condition=~Q(fingerprint="")
            ),
            models.Index(fields=["message_id"], name="messaging_inbox_message_id"),
            models.Index(fields=["received_at"], name="messaging_inbox_received"),
            PolledIndex(fields=["correlation_id"], name="messaging_inbox_correlation", condition=~Q(correlation_id="")),
            set_only("edited_from", "messaging_inbox_edited_from"),
            models.Index(fields=["handler", "id"], name="messaging_inbox_long_runs", condition=Q(duration__gte=LONG)),
        ]

    def __str__(self) -> str:
        return f"{self.queue} · {self.message_id or self.routing_key or self.pk}"

    def envelope(self) -> Envelope:
        """The message as it arrived, to the byte. Raises WireError when its envelope was never recorded."""
        return Envelope.from_wire(bytes(self.wire or b""), self.raw_body)

    @property
    def digest_version(self) -> int:
        """The version of the digest that it was stored with."""
        return 1 if self.headers_digest is None else 2

    def is_of(self, envelope: Envelope) -> bool:
        """Whether it is about a message that says what this one does, by the version of the digest that it has."""
        return self.digest == envelope.digest and self.headers_digest in (None, envelope.headers_digest)

    @property
    def ended_at(self) -> datetime | None:
        """When the handler of a success ended; None for anything else, and where that is not known.

        An attempt that failed has a row of its own, which says it.
        """
        return self.processed_at if self.state == self.State.PROCESSED and self.duration is not None else None

    @property
    def began_at(self) -> datetime | None:
        """When the handler of a success, or of a claim, began, by the database's clock; None where that is not known.

        A run without a transaction may have waited for its record, and so says by itself when it began.
        """
        if self.state == self.State.PROCESSING or (self.at_broker is False and self.started_at is not None):
            return self.started_at
        return None if self.ended_at is None else self.ended_at - timedelta(microseconds=self.duration or 0)

    @property
    def may_kill(self) -> bool:
        """Whether its last run ended with its process, so that the next one may."""
        return bool(self.process_died) or self.exception_type == _DIED

    @property
    def is_dead_letter(self) -> bool:
        """Whether its last failure was that the broker gave it up."""
        return bool(self.dead_lettered) or self.exception_type == _DEAD

    def failures(self) -> models.QuerySet[Attempt]:
        """Its attempts that failed, where it is itself, whatever a router says of reads and relations."""
        return Attempt.objects.using(self._state.db).filter(message_id=self.pk)

    def move(
        self,
        *sources: str,
        round: int,  # noqa: A002  the column's name
        token: uuid.UUID | None = None,
        next_round: int | None = None,
        counted: int | None = None,
        unclaimed: bool = False,
        **changes: Any,
    ) -> bool:
        """Compare-and-set: change the row if it is still in one of the states, in that round, under that claim.

        And if it is this message's own: after a failover its number may be another's.

        Args:
            sources: the states that it may be in.
            round: the round that it must be in.
            token: the claim that must still hold; None when no claim is involved.
            next_round: the round that begins with this change; None to stay.
            counted: the attempts that it must have; None for any.
            unclaimed: whether no claim may hold, by the database's clock.
            changes: the new values.

        Returns whether this caller won. The instance takes the plain values of a change that was made.
        """
        rows = (
            type(self).objects.using(self._state.db).filter(in_state(*sources), pk=self.pk, key=self.key, round=round)
        )
        if token is not None:
            rows = rows.filter(lease_token=token)
        if unclaimed:
            rows = rows.unclaimed()
        if counted is not None:
            rows = rows.filter(attempts=counted)
        if next_round is not None:
            changes["round"] = next_round
            changes["nonce"] = self.nonce or nonces.of_row(self.queue, self.key)
        if rows.update(**changes) != 1:
            return False
        for name, value in changes.items():
            if not hasattr(value, "resolve_expression"):
                setattr(self, name, value)
        return True

    def renewed(self, seconds: float) -> bool:
        """Renew this worker's claim for `seconds`. False when the claim was lost."""
        return self.move(
            self.State.PROCESSING,
            round=self.round,
            token=self.lease_token,
            leased_until=Now() + timedelta(seconds=seconds),
        )


class Attempt(models.Model):
    """A failed or crashed attempt. The success path writes the inbox row alone.

    `run` identifies what ran, so that a crash that is reported twice counts once. `timed_out` says that its process was
    killed for its time limit; NULL where that is not so, or the release before recorded it.
    """

    message = models.ForeignKey(
        ProcessedMessage, verbose_name=_("message"), on_delete=models.CASCADE, related_name="attempt_set"
    )
    number = models.PositiveIntegerField(_("number"))
    round = models.PositiveIntegerField(_("round"))
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    started_at = MomentField(_("started"), null=True)
    ended_at = MomentField(_("ended"), db_default=Now())
    crashed = models.BooleanField(_("crashed"), default=False)
    exception_type = models.CharField(_("exception"), max_length=255, blank=True)
    exception_message = models.TextField(_("message"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    run = models.UUIDField(null=True, editable=False)
    timed_out = models.BooleanField(null=True, editable=False)

    class Meta:
        app_label = "messaging"
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        default_permissions = ("view",)
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["message", "round", "number"], name="messaging_attempt_once"),
            models.UniqueConstraint(fields=["message", "run"], name="messaging_attempt_run"),
        ]

    def __str__(self) -> str:
        return f"{self.number}: {self.exception_type}"

    @property
    def was_late(self) -> bool:
        """Whether its handler ran longer than it may."""
        return bool(self.timed_out) or self.exception_type == _LATE
