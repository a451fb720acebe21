"""Who did what: operators' acts, paused queues and running workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, router
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.models.base import Claimable, NameField, PolledIndex, set_only
from messaging.models.failure_groups import FailureGroup

STOPPED = "Interrupted by a stop of its worker."

if TYPE_CHECKING:
    ForeignKey = models.ForeignKey[Any, Any]
else:
    ForeignKey = models.ForeignKey


class _UserKey(ForeignKey):
    """The user of an act. To migrations it is a `ForeignKey`, which sets null when the user is deleted."""

    def __init__(self, to: Any, on_delete: Any, **options: Any) -> None:
        super().__init__(to, on_delete=_set_null_here, **options)

    def deconstruct(self) -> Any:
        """As Django's own field."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, {**kwargs, "on_delete": models.SET_NULL}


def _set_null_here(collector: Any, field: Any, rows: Any, using: str) -> None:
    """Forget a deleted user, unless our tables are in another database than the user: its number is all they have."""
    if router.db_for_write(AuditRecord) == using:
        models.SET_NULL(collector, field, rows, using)


_set_null_here.lazy_sub_objs = True  # type: ignore[attr-defined]  # Django asks no database before it calls this

if TYPE_CHECKING:
    UserKey = models.ForeignKey
else:
    UserKey = _UserKey


class AuditRecord(models.Model):
    """An operator's act on one message or queue. Outlives both the user and the message: nothing refers to them.

    `details` says more: of an edited message how its content was changed; NULL where there is nothing more to say.
    One whose action is `INTERRUPTION` says that a run was cut short, which is no attempt, and by whose end: a worker's.
    """

    INTERRUPTION = "interrupt"

    action = models.CharField(_("action"), max_length=30)
    at = MomentField(_("at"), db_default=Now())
    user = UserKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.SET_NULL,
        null=True,
        db_constraint=False,
        related_name="+",
    )
    username = models.CharField(_("user name"), max_length=255, blank=True)
    reason = models.TextField(_("reason"), blank=True)
    kind = models.CharField(_("kind"), max_length=20)  # "published", "processed", "operation", "group" or "queue"
    message_pk = models.BigIntegerField(_("row"), null=True)
    alias = models.CharField(_("alias"), max_length=100)
    queue = models.CharField(_("queue"), max_length=255, blank=True)
    message_id = models.CharField(_("message id"), max_length=255, blank=True)
    state_before = models.CharField(_("state before"), max_length=10, blank=True)
    state_after = models.CharField(_("state after"), max_length=10, blank=True)
    details = models.TextField(_("details"), null=True)  # noqa: DJ001  the release before writes none

    class Meta:
        app_label = "messaging"
        verbose_name = _("audit record")
        verbose_name_plural = _("audit records")
        default_permissions = ("view",)
        indexes = [models.Index(fields=["kind", "message_pk"], name="messaging_audit_message")]

    def __str__(self) -> str:
        return f"{self.action} · {self.username}"

    @classmethod
    def of(cls, row: Any, action: str, before: str, **by: Any) -> AuditRecord:
        """The unsaved record of an act on a message.

        Args:
            row: the message, in the state that it is in now.
            action: what was done.
            before: the state that it was in.
            by: `username`, `reason`, `details` and `user_id`.
        """
        own = {name: getattr(row, name) for name in ("alias", "queue", "message_id")}
        kind = row._meta.model_name.removesuffix("message")
        return cls(action=action, kind=kind, message_pk=row.pk, state_before=before, state_after=row.state, **own, **by)


class Operation(Claimable):
    """A verb that is carried out on many messages by a consumer, a relay or a command, and how far that has come.

    Which messages those are was settled when it was stored: its `Item`s name them. A batch of them, their items and
    these counts change in one transaction, so that whoever dies leaves a whole number of batches. Each batch renews the
    claim of whoever carries it out.

    `rate` is how many messages a second are acted on at most; NULL for as many as can be. `is_trial` says that only the
    first one is to be acted on, and an operator asked. `group` is whose failures these are, where they are one group's.
    """

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("under way")
        HELD = "held", _("one tried, waits for your word")
        DONE = "done", _("done")
        CANCELLED = "cancelled", _("cancelled")

    UNFINISHED = (State.WAITING, State.RUNNING)

    verb = models.CharField(_("action"), max_length=30)
    kind = models.CharField(_("kind"), max_length=20)  # "published" or "processed"
    scope = models.TextField(_("which"), blank=True)
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.WAITING)
    total = models.PositiveIntegerField(_("messages"), default=0)
    done = models.PositiveIntegerField(_("done"), default=0)
    skipped = models.PositiveIntegerField(_("skipped"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    reasons = models.JSONField(_("reasons"), default=dict)  # why some were skipped or failed: how many
    rate = models.FloatField(_("messages per second at most"), null=True)
    is_trial = models.BooleanField(default=False)
    group = models.ForeignKey(
        FailureGroup,
        on_delete=models.SET_NULL,
        null=True,
        related_name="operation_set",
        db_index=False,
        db_constraint=False,
    )
    reason = models.TextField(_("reason"), blank=True)

    class Meta:
        app_label = "messaging"
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        default_permissions = ("view",)
        indexes = [
            PolledIndex(
                fields=["state", "id"],
                name="messaging_operation_open",
                condition=models.Q(state__in=("waiting", "running")),
            ),
            set_only("group", "messaging_operation_group"),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} · {self.verb}"

    @property
    def settled(self) -> int:
        """How many of its messages are dealt with."""
        return self.done + self.skipped + self.failed

    @property
    def remaining(self) -> int:
        """How many are not."""
        return max(0, self.total - self.settled)


class OperationItem(models.Model):
    """One message of an operation, and what became of it: `result` is NULL until that is known."""

    class Result(models.IntegerChoices):
        DONE = 1, _("done")
        SKIPPED = 2, _("skipped")
        FAILED = 3, _("failed")

    operation = models.ForeignKey(
        Operation, on_delete=models.CASCADE, related_name="item_set", db_index=False, db_constraint=False
    )
    row = models.BigIntegerField()
    result = models.PositiveSmallIntegerField(choices=Result.choices, null=True)
    note = models.CharField(max_length=255, null=True)  # noqa: DJ001  written by an INSERT of its own, for millions
    settled_at = MomentField(null=True)

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["operation", "row"], name="messaging_operation_item_once")]
        indexes = [
            PolledIndex(
                fields=["operation", "row"], name="messaging_operation_item_open", condition=models.Q(result=None)
            ),
            models.Index(fields=["row"], name="messaging_operation_item_row"),
            models.Index(fields=["operation", "result", "row"], name="messaging_operation_item_by"),
        ]

    def __str__(self) -> str:
        return f"{self.operation_id} · {self.row}"


class QueueControl(models.Model):
    """Whether our consumers take from a queue; no row means that they do."""

    alias = NameField(_("alias"), max_length=100, default="default")
    queue = NameField(_("queue"), max_length=255)
    paused = models.BooleanField(_("paused"), default=False)
    changed_at = MomentField(_("changed"), db_default=Now())
    changed_by = models.CharField(_("changed by"), max_length=255, blank=True)
    reason = models.TextField(_("reason"), blank=True)

    class Meta:
        app_label = "messaging"
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        default_permissions = ("view",)
        permissions = [("pause_queuecontrol", _("Can pause and resume queues"))]
        constraints = [models.UniqueConstraint(fields=["alias", "queue"], name="messaging_queue_once")]

    def __str__(self) -> str:
        return self.queue


class Worker(models.Model):
    """A running consumer process or relay, as long as it says so.

    `is_stopping` says that it was asked to stop, so that a run of its that does not end is no attempt; NULL where not.
    `running` is what it ran when it was last seen, the longest first; NULL of a relay, and of the release before.
    `oldest` is how old, in seconds, the next message was that it held of each queue, as far as ids tell; NULL likewise.
    """

    name = models.CharField(_("name"), max_length=200, unique=True)
    kind = models.CharField(_("kind"), max_length=10)  # "consume" or "relay"
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    alias = models.CharField(_("alias"), max_length=100, default="default")
    queues = models.JSONField(_("queues"), default=list)
    paused = models.JSONField(_("paused queues"), default=list)
    status = models.CharField(_("status"), max_length=255, blank=True)  # for people
    is_stopping = models.BooleanField(null=True, editable=False)
    running = models.JSONField(_("running"), null=True, editable=False)
    oldest = models.JSONField(null=True, editable=False)
    started_at = MomentField(_("started"), db_default=Now())
    seen_at = MomentField(_("last seen"), db_default=Now())

    class Meta:
        app_label = "messaging"
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.name
