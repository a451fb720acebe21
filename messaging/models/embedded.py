"""The embedded broker's tables: exchanges, queues, bindings, what the queues hold, and who receives from them.

State changes are verbs of the query sets, each one statement or one short transaction. SQLite gets its looks outside of
transactions and its changes under a condition: a reader that becomes a writer fails there if others wrote meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Self

from django.db import models, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Length, Substr

from messaging.db.clock import MomentField, Now
from messaging.models.base import PolledIndex
from messaging.wire.envelope import hashed


def key_of(*names: str) -> uuid.UUID:
    """The identity of a name, or of several together: a hash, because collations equate names that differ."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    return hashed(*(len(one).to_bytes(4) + one for one in raw))


class EmbeddedExchange(models.Model):
    """An exchange that was declared."""

    key = models.UUIDField(unique=True, editable=False)
    name = models.CharField(max_length=255)
    type = models.CharField(max_length=20, default="topic")

    class Meta:
        app_label = "messaging"
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class EmbeddedQueueQuerySet(models.QuerySet["EmbeddedQueue"]):
    """Questions about queues."""

    def with_work(self, ids: Iterable[int]) -> list[int]:
        """Which of these queues have a message to deliver now; one look into an index for each."""
        ready = EmbeddedMessage.objects.using(self.db).ready().filter(queue=OuterRef("pk"))
        return list(self.filter(Exists(ready), pk__in=list(ids)).values_list("pk", flat=True))


class EmbeddedQueue(models.Model):
    """A queue that was declared; `dead` takes what expires in it."""

    key = models.UUIDField(unique=True, editable=False)
    name = models.CharField(max_length=255)
    dead = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="+")

    objects = EmbeddedQueueQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class EmbeddedBinding(models.Model):
    """A queue's wish for messages of an exchange."""

    key = models.UUIDField(unique=True, editable=False)
    exchange = models.ForeignKey(EmbeddedExchange, on_delete=models.CASCADE, related_name="+")
    queue = models.ForeignKey(EmbeddedQueue, on_delete=models.CASCADE, related_name="+")
    routing_key = models.CharField(max_length=255, blank=True)

    class Meta:
        app_label = "messaging"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.exchange_id} · {self.routing_key}"


class EmbeddedConnectionQuerySet(models.QuerySet["EmbeddedConnection"]):
    """Leases of receivers."""

    def alive(self) -> Self:
        """Those whose lease has not run out."""
        return self.filter(leased_until__gt=Now())

    def renew(self, pk: int, seconds: float, queues: Sequence[str]) -> bool:
        """Extend a lease. False when the connection was given up for dead meanwhile."""
        return self.filter(pk=pk).update(leased_until=Now() + timedelta(seconds=seconds), queues=list(queues)) == 1

    def end(self, pk: int, **condition: Any) -> bool:
        """Remove a connection and free what it holds, for others to be delivered again.

        Args:
            pk: the connection.
            condition: what must still be so, such as the lease's end that was seen.

        Returns whether it was.
        """
        with transaction.atomic(using=self.db):
            # A write first: it locks the row, so that its owner can take nothing more.
            if not self.filter(pk=pk, **condition).update(leased_until=Now()):
                return False
            EmbeddedMessage.objects.using(self.db).filter(holder=pk).update(holder=None)
            self.filter(pk=pk)._raw_delete(self.db)
        return True


class EmbeddedConnection(models.Model):
    """A receiver: it holds messages for as long as it renews its lease. Its number is never given again."""

    process = models.CharField(max_length=255, blank=True)
    queues = models.JSONField(default=list)
    opened_at = MomentField(db_default=Now())
    leased_until = MomentField()

    objects = EmbeddedConnectionQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.pk} · {self.process}"


class EmbeddedMessageQuerySet(models.QuerySet["EmbeddedMessage"]):
    """What a queue does with its messages."""

    def ready(self) -> Self:
        """Those that can be delivered now."""
        return self.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=Now()), holder__isnull=True)

    def expired(self) -> Self:
        """Those that nobody took in time."""
        return self.filter(holder__isnull=True, expires_at__lte=Now())

    def next_ready(self, queue: int) -> Self:
        """A queue's messages that can be delivered now, in their order."""
        # By holder, which is NULL, because only so PostgreSQL knows that the index has them in this order.
        return self.ready().filter(queue=queue).order_by("holder_id", "id")

    def take(
        self, queue: int, holder: int, limit: int, room: int | None = None, most: int | None = None
    ) -> list[EmbeddedMessage]:
        """Give a queue's next messages to a connection. Raises IntegrityError when that has been ended.

        Args:
            queue: its number.
            holder: the connection's.
            limit: how many at most.
            room: bytes that their bodies may have together; None for any number. The first may always have more.
            most: bytes of a body that may be read at all, at least `room`. One that has more comes alone, `unread`.
        """
        ready = self.next_ready(queue)
        changes: dict[str, Any] = {"holder": holder, "deliveries": F("deliveries") + 1}
        if transaction.get_connection(self.db).features.has_select_for_update_skip_locked:
            with transaction.atomic(using=self.db):
                sizes = _fitting(ready.select_for_update(skip_locked=True), limit, room)
                self.filter(id__in=sizes).update(**changes)
        else:  # nothing is locked by looking, so the condition decides who gets it
            sizes = _fitting(ready, limit, room)
            if sizes:
                self.ready().filter(id__in=sizes).update(**changes)
        if not sizes:
            return []
        taken = self.filter(id__in=sizes, holder=holder).order_by("id")
        if most is None or max(sizes.values()) <= most:
            return list(taken)
        rows = list(taken.defer("body"))
        for row in rows:
            row.unread = sizes[row.pk]
        return rows

    def part(self, pk: int, holder: int, begin: int, size: int) -> bytes | None:
        """So many bytes of a body, from that one on; None when the connection does not hold the message any more."""
        piece = Substr("body", begin + 1, size, output_field=models.BinaryField())
        found = self.filter(pk=pk, holder=holder).values_list(piece, flat=True).first()
        return None if found is None else bytes(found)

    def remove(self, ids: Sequence[int], holder: int) -> int:
        """Forget messages that a connection has done with. Returns how many it still held."""
        return int(self.filter(id__in=ids, holder=holder)._raw_delete(self.db))

    def free(self, ids: Sequence[int], holder: int, *, unseen: bool = False) -> int:
        """Take messages back from a connection; `unseen` ones were not delivered. Returns how many it still held."""
        count = F("deliveries") - (1 if unseen else 0)
        return self.filter(id__in=ids, holder=holder).update(holder=None, deliveries=count)


def _fitting(ready: models.QuerySet[EmbeddedMessage], limit: int, room: int | None) -> dict[int, int]:
    """The first messages that have room together, the first one in any case: sizes by number, 0 where all have room."""
    if room is None:
        return dict.fromkeys(ready.values_list("id", flat=True)[:limit], 0)
    sizes: dict[int, int] = {}
    left = room
    for number, size in ready.values_list("id", Length("body"))[:limit]:
        left -= size
        if sizes and left < 0:
            break
        sizes[number] = size
    return sizes


class EmbeddedMessage(models.Model):
    """A message in a queue; it is deleted when it is acknowledged.

    `wire` is exchange, routing key and properties as `messaging.backends.database.letters` writes them.

    Attributes:
        unread: bytes of a body that is too large to be read at once; 0 where `body` has all of it.
    """

    unread = 0

    queue = models.ForeignKey(EmbeddedQueue, on_delete=models.CASCADE, related_name="+", db_index=False)
    wire = models.BinaryField()
    body = models.BinaryField()
    deliveries = models.PositiveIntegerField(default=0)
    holder = models.ForeignKey(EmbeddedConnection, on_delete=models.DO_NOTHING, null=True, related_name="+")
    expires_at = MomentField(null=True)

    objects = EmbeddedMessageQuerySet.as_manager()

    class Meta:
        app_label = "messaging"
        default_permissions = ()
        indexes = [
            models.Index(fields=["queue", "holder", "id"], name="messaging_embedded_ready"),
            PolledIndex(
                fields=["expires_at"], name="messaging_embedded_expiring", condition=Q(expires_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.queue_id} · {self.pk}"
