"""The outbox: every message that this site publishes, from its transaction to the broker's confirm."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Greatest
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.models.base import PolledIndex, StoredMessage, in_state, set_only
from messaging.models.outbox import OWNER_LENGTH, UNROUTABLE, PublishedMessageQuerySet
from messaging.models.processed import ProcessedMessage
from messaging.wire import cloudevents
from messaging.wire.bodies import decode_body, pack_body
from messaging.wire.envelope import Envelope, new_id
from messaging.wire.fields import to_json
from messaging.wire.properties import Properties


class PublishedMessage(StoredMessage):
    """A message on its way out.

    `publish_at` is when it is to be sent; `due_at` is when a relay may next take it: `publish_at` at first, then the
    end of a lease or of a backoff, and NULL once it is not pending, which keeps the polled index small. `epoch` counts
    how often an operator had it sent anew: the confirm of an earlier sending says nothing about a later one. `tries`
    tells of the tries to send it that came to nothing, see `models.tries`; NULL where there were none.
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
    publish_at = MomentField(_("publish at"), db_default=Now())
    due_at = MomentField(_("due"), null=True, db_default=Now(), editable=False)
    published_at = MomentField(_("published"), null=True, editable=False)
    lease_owner = models.CharField(max_length=OWNER_LENGTH, blank=True, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    unrouted = models.BooleanField(null=True, editable=False)
    tries = models.TextField(null=True, editable=False)  # noqa: DJ001  most rows have none, and no INSERT names it
    epoch = models.PositiveIntegerField(db_default=0, editable=False)
    inbox = models.ForeignKey(
        "messaging.ProcessedMessage",
        verbose_name=_("round of"),
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="rounds",
        db_index=False,
    )
    copy_of = models.ForeignKey(
        "self",
        verbose_name=_("copy of"),
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="copies",
        db_index=False,
    )

    objects = PublishedMessageQuerySet.as_manager()
    size: int  # bytes of the body as it is stored, of a leased row

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
            PolledIndex(
                fields=["alias", "due_at", "id"], name="messaging_outbox_due", condition=Q(due_at__isnull=False)
            ),
            models.Index(fields=["message_id"], name="messaging_outbox_message_id"),
            PolledIndex(fields=["state", "id"], name="messaging_outbox_unsent", condition=~Q(state="published")),
            models.Index(fields=["created_at"], name="messaging_outbox_created"),
            PolledIndex(
                fields=["correlation_id"], name="messaging_outbox_correlation", condition=~Q(correlation_id="")
            ),
            set_only("inbox", "messaging_outbox_inbox"),
            set_only("copy_of", "messaging_outbox_copy_of"),
        ]

    def __str__(self) -> str:
        return f"{self.routing_key or self.queue or '—'} · {self.message_id}"

    @property
    def payload(self) -> Any:
        """The body decoded by its content type. Raises PayloadError when it is not what that says."""
        encoding = None
        if self.wire is not None:
            encoding = Envelope.from_wire(bytes(self.wire), b"").properties.content_encoding
        return decode_body(self.raw_body, self.content_type, encoding)

    @property
    def waits_for_queue(self) -> bool:
        """Whether it is pending and no queue took it when it was last sent."""
        is_unrouted = self.unrouted or self.error.startswith(UNROUTABLE)  # the latter for one release, see `UNROUTED`
        return self.state == self.State.PENDING and self.attempts > 0 and is_unrouted

    def mark_failed(self, error: str) -> bool:
        """This lease's row can never be sent. False when another relay holds it by now."""
        return bool(self._rows().fail([self], error))

    def back_off(self, seconds: float, error: str, *, spend: bool = True) -> bool:
        """Send it again in `seconds`; without `spend` the attempt does not count. False when another relay holds it."""
        return self._rows().back_off([self], seconds, error, spend=spend) == 1

    def incoming(self) -> models.QuerySet[ProcessedMessage]:
        """The incoming message whose round this is, if it is in that round: by its own identity beside the number."""
        own = {"alias": self.alias, "queue": self.queue, "message_id": self.message_id}
        rows = ProcessedMessage.objects.using(self._state.db)
        return rows.filter(pk=self.inbox_id, round=self.round, **own) if self.inbox_id is not None else rows.none()

    def fail_round(self) -> bool:
        """The incoming message whose round this is, if it still waits for that, can never go to its queue again.

        Returns False where this is a round that no incoming message waits for.
        """
        if self.inbox_id is None:
            return True
        failed = {"state": ProcessedMessage.State.FAILED, "failed_at": Now(), "retry_at": None}
        error = f"It could not be sent to its queue again. {self.error}"
        return self.incoming().filter(in_state(*ProcessedMessage.AWAITING)).update(**failed, error=error) == 1

    def next_due(self) -> Any:
        """When a draft or a failed row may be sent: its `publish_at` if that lies ahead, by the database's clock."""
        return Greatest(Now(), F("publish_at"))

    def copied(self) -> PublishedMessage:
        """An unsaved, pending copy of the content under a new message id."""
        own = ("alias", "exchange", "queue", "routing_key", "type", "content_type", "correlation_id", "reply_to")
        content = ("headers", "body", "body_encoding", "wire", "priority", "expiration", "mandatory")
        copy = type(self)(**{name: getattr(self, name) for name in (*own, *content)})
        copy.state = self.State.PENDING
        copy.message_id = new_id()
        copy.copy_of_id = self.pk
        stored = None if self.wire is None else Envelope.from_wire(bytes(self.wire), b"")
        properties = self._properties() if stored is None else stored.properties
        event = cloudevents.renamed(properties, self.raw_body, copy.message_id)
        if event is not None:  # whose id is in it: consumers would take the same one for the same event
            properties, body = event
            copy.message_id, copy.content_type = properties.message_id or "", properties.content_type or ""
            copy.headers = to_json(properties.headers)
            copy.body, copy.body_encoding = pack_body(body)
        if stored is not None:
            properties = properties.edited(message_id=copy.message_id)
            copy.wire = Envelope(stored.exchange, stored.routing_key, properties, b"").to_wire()
        return copy

    def _properties(self) -> Properties:
        """As far as they say what it is, of a row without an envelope of its own."""
        return Properties.build(headers=self.headers or None, content_type=self.content_type or None)

    def _rows(self) -> PublishedMessageQuerySet:
        return PublishedMessage.objects.using(self._state.db)
