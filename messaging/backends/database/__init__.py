"""The embedded broker: `database://<alias>`. Its queues are tables in one of Django's own databases.

For development, tests and small sites on one host. `DatabaseBroker` is the way in: `sender` routes by the `catalog` of
what was declared and inserts rows; a `receiver` takes them through its `feed`, a thread with a lease. `letters` is how
a message is kept in a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from django.db import transaction
from django.db.models import Count, Q

from messaging.backends.allowance import Allowance
from messaging.backends.base import Backend, Delivery, Difference, QueueDepth, Topology
from messaging.backends.database import catalog
from messaging.backends.database.errors import broker_errors
from messaging.backends.database.receiver import DatabaseReceiver
from messaging.backends.database.sender import DatabaseSender
from messaging.models import EmbeddedBinding, EmbeddedConnection, EmbeddedExchange, EmbeddedMessage, EmbeddedQueue
from messaging.models.embedded import key_of

__all__ = ["DatabaseBroker"]

SOURCE = "database"


class DatabaseBroker(Backend):
    """The backend of `database://`."""

    @property
    def _database(self) -> str:
        return self.settings.broker_database

    def sender(self) -> DatabaseSender:
        """A new publishing connection, not yet open."""
        return DatabaseSender(self._database)

    def receiver(
        self,
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> DatabaseReceiver:
        """A new consuming connection, not yet open."""
        return DatabaseReceiver(self.settings, on_delivery, on_change, allowance)

    def declare(self, topology: Topology) -> list[Difference]:
        """Create what is missing; see the contract."""
        with broker_errors(self._database):
            return catalog.declare(self._database, topology)

    def compare(self, topology: Topology) -> list[Difference]:
        """The differences between the topology and the tables; changes nothing."""
        with broker_errors(self._database):
            return catalog.compare(self._database, topology)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding."""
        with broker_errors(self._database):
            catalog.unbind(self._database, queue, exchange, routing_key)

    def depths(self, queues: Iterable[str]) -> list[QueueDepth]:
        """A reading of each queue."""
        names = list(dict.fromkeys(queues))
        with broker_errors(self._database):
            rows = EmbeddedQueue.objects.using(self._database).filter(key__in=[key_of(name) for name in names])
            ids = {key: pk for pk, key in rows.values_list("pk", "key")}
            counts = self._counts(list(ids.values()))
            alive = EmbeddedConnection.objects.using(self._database).alive()
            consumers = Counter(queue for queues in alive.values_list("queues", flat=True) for queue in queues)
        readings = []
        for name in names:
            pk = ids.get(key_of(name))
            if pk is None:
                readings.append(QueueDepth(name, exists=False, source=SOURCE))
            else:
                readings.append(QueueDepth(name, *counts.get(pk, (0, 0)), consumers[name], source=SOURCE))
        return readings

    def routes(self, exchange: str, routing_key: str) -> list[str] | None:
        """The queues that a message would reach now; none where there is no such exchange."""
        with broker_errors(self._database):
            known = catalog.Routes.read(self._database)
        names = {pk: name for name, pk in known.queues.items()}
        return sorted(names[pk] for pk in known.find(exchange, routing_key) or ())

    def purge_and_delete(self, topology: Topology) -> None:
        """Delete these queues and exchanges with all they hold. For tests."""
        names = [name for queue in topology.queues for name in (queue.name, queue.dead)]
        with broker_errors(self._database), transaction.atomic(using=self._database):
            queues = EmbeddedQueue.objects.using(self._database).filter(key__in=map(key_of, names))
            EmbeddedMessage.objects.using(self._database).filter(queue__in=queues).delete()
            EmbeddedBinding.objects.using(self._database).filter(queue__in=queues).delete()
            queues.delete()
            exchanges = EmbeddedExchange.objects.using(self._database)
            exchanges.filter(key__in=[key_of(one.name) for one in topology.exchanges]).delete()

    def _counts(self, queues: list[int]) -> dict[int, tuple[int, int]]:
        """Ready and unacknowledged messages of queues."""
        rows = EmbeddedMessage.objects.using(self._database).filter(queue__in=queues).order_by().values("queue")
        held = Q(holder__isnull=False)
        found = rows.annotate(ready=Count("pk", filter=~held), unacked=Count("pk", filter=held))
        return {row["queue"]: (row["ready"], row["unacked"]) for row in found}
