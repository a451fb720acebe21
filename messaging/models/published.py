"""The outbox: every message that this site publishes, from its transaction to the broker's confirm."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Self

from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest
from django.utils.translation import gettext_lazy as _

from messaging.clock import Now
from messaging.message import Envelope, decode_body, storable
from messaging.models.base import PolledIndex, StoredMessage
from messaging.models.processed import ProcessedMessage


class PublishedMessageQuerySet(models.QuerySet["PublishedMessage"]):
    """State changes are verbs; each is a compare-and-set and returns how many rows it changed."""

    def pending(self) -> Self:
        """Rows that are to be sent, now or later."""
        return self.filter(state=PublishedMessage.State.PENDING)

    def due(self, alias: str) -> Self:
        """Pending rows of an alias whose time has come and that no relay holds, oldest first."""
        return self.pending().filter(alias=alias, due_at__lte=Now()).order_by("due_at", "id")

    def wait(self, alias: str) -> float | None:
        """Seconds until the next pending row of an alias can be taken, 0 when one can be now; None without any.

        By the database's clock; one look into the polled index.
        """
        rows = self.pending().filter(alias=alias, due_at__isnull=False).order_by("due_at")
        found = rows.annotate(now=Now()).values_list("due_at", "now")[:1]
        return next((max(0.0, (due - now).total_seconds()) for due, now in found if due is not None), None)

    def lease(self, alias: str, owner: str, seconds: float, limit: int) -> list[PublishedMessage]:
        """Take up to `limit` due rows for `seconds`; other relays leave them alone until then.

        Each row comes back with the lease's `lease_token`, which every later mark but `published` needs.
        """
        changes = {"lease_owner": owner[:200], "lease_token": uuid.uuid4(), "due_at": _after(seconds)}
        if transaction.get_connection(self.db).features.has_select_for_update_skip_locked:
            with transaction.atomic(using=self.db):
                locked = self.due(alias).select_for_update(skip_locked=True)
                ids = list(locked.values_list("id", flat=True)[:limit])
                self.filter(id__in=ids).update(**changes)
        else:  # Nothing is locked by looking, so the condition decides who wins, and an idle relay never writes.
            ids = list(self.due(alias).values_list("id", flat=True)[:limit])
            if ids:
                self.due(alias).order_by().filter(id__in=ids).update(**changes)
        if not ids:
            return []
        return list(self.filter(lease_token=changes["lease_token"], id__in=ids).order_by("publish_at", "id"))

    def renew(self, rows: Iterable[PublishedMessage], seconds: float) -> int:
        """Extend the leases of rows that are still held. Returns how many were."""
        return self._change_held(rows, due_at=_after(seconds))

    def release(self, rows: Iterable[PublishedMessage]) -> int:
        """Hand rows that are still held back unsent, so that any relay can take them now; nothing is spent."""
        return self._change_held(rows, due_at=Now(), lease_owner="", lease_token=None)

    def mark_published(self, ids: Sequence[int]) -> int:
        """The broker has confirmed them: published, whoever holds the lease now and whatever was said since."""
        return (
            self.filter(id__in=ids)
            .exclude(state=PublishedMessage.State.PUBLISHED)
            .update(
                state=PublishedMessage.State.PUBLISHED,
                published_at=Now(),
                due_at=None,
                lease_owner="",
                lease_token=None,
                attempts=F("attempts") + 1,
                error="",
            )
        )

    def _change_held(self, rows: Iterable[PublishedMessage], **changes: Any) -> int:
        by_token: dict[uuid.UUID | None, list[int]] = {}
        for row in rows:
            by_token.setdefault(row.lease_token, []).append(row.pk)
        return sum(
            self.pending().filter(lease_token=token, id__in=ids).update(**changes) for token, ids in by_token.items()
        )


class PublishedMessage(StoredMessage):
    """A message on its way out.

    `publish_at` is when it is to be sent; `due_at` is when a relay may next take it: `publish_at` at first, then the
    end of a lease or of a backoff, and NULL once it is not pending, which keeps the polled index small.
    """

    class State(models.TextChoices):
        DRAFT = "draft", _("draft")
        PENDING = "pending", _("pending")
        PUBLISHED = "published", _("published")
        FAILED = "failed", _("failed")
        DISCARDED = "discarded", _("discarded")

    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.PENDING)
    priority = models.PositiveSmallIntegerField(_("priority"), null=True, blank=True)
    expiration = models.PositiveBigIntegerField(_("expiration in milliseconds"), null=True, blank=True)
    mandatory = models.BooleanField(_("mandatory"), default=True)
    publish_at = models.DateTimeField(_("publish at"), db_default=Now())
    due_at = models.DateTimeField(_("due"), null=True, db_default=Now(), editable=False)
    published_at = models.DateTimeField(_("published"), null=True, editable=False)
    lease_owner = models.CharField(max_length=200, blank=True, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    inbox = models.ForeignKey(
        "messaging.ProcessedMessage",
        verbose_name=_("round of"),
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="rounds",
    )
    copy_of = models.ForeignKey(
        "self", verbose_name=_("copy of"), on_delete=models.SET_NULL, null=True, editable=False, related_name="copies"
    )

    objects = PublishedMessageQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        verbose_name = _("outgoing message")
        verbose_name_plural = _("outgoing messages")
        default_permissions = ("view",)
        permissions = [
            ("publish_publishedmessage", _("Can publish messages and drafts")),
            ("replay_publishedmessage", _("Can replay published messages")),
            ("discard_publishedmessage", _("Can discard and restore outgoing messages")),
            ("view_payload_publishedmessage", _("Can see the payload of outgoing messages")),
        ]
        indexes = [
            PolledIndex(fields=["alias", "due_at", "id"], name="messaging_outbox_due", condition=Q(state="pending")),
            models.Index(fields=["message_id"], name="messaging_outbox_message_id"),
            PolledIndex(fields=["state", "id"], name="messaging_outbox_unsent", condition=~Q(state="published")),
            models.Index(fields=["created_at"], name="messaging_outbox_created"),
            PolledIndex(
                fields=["correlation_id"], name="messaging_outbox_correlation", condition=~Q(correlation_id="")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.routing_key or self.queue or '—'} · {self.message_id}"

    @property
    def payload(self) -> Any:
        """The body decoded by its content type. Raises PayloadError when it is not what that says."""
        return decode_body(self.raw_body, self.content_type)

    def mark_failed(self, error: str) -> bool:
        """This lease's row can never be sent. False when another relay holds it by now.

        The round of an incoming message takes that message along: it would wait for this row for ever.
        """
        error = storable(error)
        with transaction.atomic(using=self._state.db):
            if not self._release(state=self.State.FAILED, due_at=None, error=error):
                return False
            self.state, self.error = self.State.FAILED, error
            if self.inbox_id is not None:
                waiting = ProcessedMessage.objects.using(self._state.db).filter(
                    pk=self.inbox_id, state__in=ProcessedMessage.AWAITING, round=self.round
                )
                failed = {"state": ProcessedMessage.State.FAILED, "failed_at": Now(), "retry_at": None}
                waiting.update(**failed, error=f"It could not be sent to its queue again. {error}")
        return True

    def back_off(self, seconds: float, error: str, *, spend: bool = True) -> bool:
        """Send it again in `seconds`; without `spend` the attempt does not count. False when another relay holds it."""
        spent: dict[str, Any] = {} if spend else {"attempts": F("attempts")}
        return self._release(due_at=_after(seconds), error=storable(error), **spent)

    def next_due(self) -> Any:
        """When a draft or a failed row may be sent: its `publish_at` if that lies ahead, by the database's clock."""
        return Greatest(Now(), F("publish_at"))

    def copied(self) -> PublishedMessage:
        """An unsaved, pending copy of the content under a new message id."""
        own = ("alias", "exchange", "queue", "routing_key", "type", "content_type", "correlation_id", "reply_to")
        content = ("headers", "body", "body_encoding", "wire", "priority", "expiration", "mandatory")
        copy = type(self)(**{name: getattr(self, name) for name in (*own, *content)})
        copy.state = self.State.PENDING
        copy.message_id = str(uuid.uuid4())
        copy.copy_of = self
        if self.wire is not None:
            envelope = Envelope.from_wire(bytes(self.wire), b"")
            properties = envelope.properties.edited(message_id=copy.message_id)
            copy.wire = Envelope(envelope.exchange, envelope.routing_key, properties, b"").to_wire()
        return copy

    def _release(self, **changes: Any) -> bool:
        values = {"attempts": F("attempts") + 1, "lease_owner": "", "lease_token": None, **changes}
        held = type(self).objects.using(self._state.db).pending().filter(pk=self.pk, lease_token=self.lease_token)
        return held.update(**values) == 1


def _after(seconds: float) -> Any:
    return Now() + timedelta(seconds=seconds)
