"""One connection of a receiver: a thread that renews a lease, takes messages under it, and settles them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from django.db import DatabaseError, IntegrityError, InterfaceError, connections

from messaging.backends.base import Delivery
from messaging.backends.database import local
from messaging.backends.database.delivery import DatabaseDelivery, Settled, Subscription
from messaging.backends.database.errors import broker_errors, described
from messaging.backends.database.processes import identity
from messaging.backends.database.sweeper import Sweeper
from messaging.clock import Now
from messaging.conf import AliasSettings
from messaging.models import EmbeddedConnection, EmbeddedMessage, EmbeddedQueue
from messaging.models.embedded import EmbeddedMessageQuerySet

logger = logging.getLogger("messaging.database")

GATHERING = 0.02  # seconds that an acknowledgement waits for others, to be written with them
MANY = 200  # acknowledgements that are written without waiting for more; messages that are taken at once
CHORES = 2.0  # seconds between two looks at what others left behind
PAUSE = 1.0  # seconds between tries while the database does not answer


class Feed:
    """A lease in the database and the thread that lives by it. Ends by `close()`, or when the lease was lost.

    Args:
        settings: the alias's.
        on_delivery: called for each message, in the feed's thread.
        on_gone: called with the reason when the lease, or a queue, was lost.
    """

    def __init__(
        self, settings: AliasSettings, on_delivery: Callable[[Delivery], None], on_gone: Callable[[str], None]
    ) -> None:
        self._database = settings.broker_database
        self._lease = settings.lease
        self._poll = settings.poll_interval
        self._on_delivery = on_delivery
        self._on_gone = on_gone
        self._sweeper = Sweeper(self._database)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._subscriptions: dict[str, Subscription] = {}
        self._settled = Settled()
        self._id = 0
        self._is_open = self._is_closing = self._in_trouble = False
        self._has_changed = True
        self._is_starved = self._is_hungry = False  # a queue was full at the last look; it has become nearly empty
        self._renewed_at = self._renew_at = self._chores_at = self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="messaging-database", daemon=True)

    def open(self) -> None:
        """Take out the lease and start. Raises BrokerUnavailable."""
        with broker_errors(self._database):
            until = Now() + timedelta(seconds=self._lease)
            row = EmbeddedConnection.objects.using(self._database).create(process=identity(), leased_until=until)
        self._id, self._is_open = row.pk, True
        self._renewed_at = time.monotonic()
        self._renew_at = self._renewed_at + self._lease / 3
        local.listen(self._database, self._look_now)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End the thread in order; waits up to `timeout` seconds for it."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether the lease stands, as far as is known here."""
        return self._is_open

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a live consumer."""
        with self._lock:
            return frozenset(self._subscriptions) if self._is_open else frozenset()

    def subscribe(self, queue: str, queue_id: int, prefetch: int) -> None:
        """Take messages from a queue."""
        with self._lock:
            self._subscriptions[queue] = Subscription(queue, queue_id, prefetch)
            self._has_changed = True
        self._look_now()

    def unsubscribe(self, queue: str) -> None:
        """Take no more messages from a queue."""
        with self._lock:
            subscription = self._subscriptions.pop(queue, None)
            if subscription is not None:
                subscription.is_active = False
                self._has_changed = True

    def settle(self, delivery: DatabaseDelivery, *, done: bool) -> bool:
        """Note that a delivery is done, or goes back; from any thread. False when the lease is gone."""
        with self._lock:
            if not self._is_open:
                return False
            if delivery.row_id not in delivery.subscription.held:
                return True  # settled before
            delivery.subscription.held.discard(delivery.row_id)
            self._settled.add(delivery.row_id, done=done)
            self._is_hungry |= self._is_starved and delivery.subscription.is_low
            if self._is_hungry or self._settled.count in (1, MANY):
                self._wake.set()
        return True

    # The thread

    def _run(self) -> None:
        try:
            while not self._is_closing and self._is_open:
                self._wake.wait(self._try_step())
                self._wake.clear()
            if self._is_open:
                self._finish()
        finally:
            self._is_open = False
            local.unlisten(self._database, self._look_now)
            connections[self._database].close()

    def _try_step(self) -> float:
        """One round of work; returns the seconds to wait before the next."""
        try:
            wait = self._step()
        except IntegrityError:  # what was taken would have belonged to a connection that is no more
            self._renew_at = 0.0
            return self._poll
        except (DatabaseError, InterfaceError) as error:
            connections[self._database].close()
            if not self._in_trouble:
                logger.warning("%s Trying again until it works.", described(self._database, error))
            self._in_trouble = True
            return PAUSE
        except Exception:
            logger.exception("The embedded broker failed; trying again in %g s.", PAUSE)
            return PAUSE
        if self._in_trouble:
            logger.info('The embedded broker works again in the database "%s".', self._database)
            self._in_trouble = False
        return wait

    def _step(self) -> float:
        now = time.monotonic()
        if (now >= self._renew_at or self._has_changed) and not self._renew():
            return 0.0
        if now >= self._chores_at:
            self._chores_at = now + CHORES
            self._drop_deleted()
            self._sweeper.sweep(self._id, self._renewed_at)
        self._write_settled()
        if time.monotonic() >= self._look_at:
            self._look()
        due = [self._look_at, self._renew_at, self._settled.since + GATHERING if self._settled.count else self._look_at]
        return max(0.0, min(due) - time.monotonic())

    def _look_now(self) -> None:
        self._look_at = 0.0
        self._wake.set()

    def _renew(self) -> bool:
        with self._lock:
            queues, self._has_changed = sorted(self._subscriptions), False
        begun = time.monotonic()
        if not EmbeddedConnection.objects.using(self._database).renew(self._id, self._lease, queues):
            self._lost(
                "The embedded broker gave this consumer up: it did not renew its lease in time. What it held goes to "
                "others."
            )
            return False
        self._renewed_at, self._renew_at = begun, begun + self._lease / 3
        return True

    def _look(self) -> None:
        """Take from each queue that has something what there is room for."""
        self._look_at = time.monotonic() + self._poll
        with self._lock:
            rooms = {one.queue_id: one for one in self._subscriptions.values() if one.room}
            self._is_starved, self._is_hungry = len(rooms) < len(self._subscriptions), False
        for queue_id in EmbeddedQueue.objects.using(self._database).with_work(rooms) if rooms else ():
            subscription = rooms[queue_id]
            limit = min(subscription.room, MANY)
            rows = self._messages.take(queue_id, self._id, limit)
            self._hand_over(subscription, rows)
            self._is_starved |= not subscription.room
            if len(rows) == limit and subscription.room:
                self._look_at = 0.0

    def _hand_over(self, subscription: Subscription, rows: list[EmbeddedMessage]) -> None:
        unseen = []
        for row in rows:
            with self._lock:
                if not subscription.is_active or self._is_closing:
                    unseen.append(row.pk)
                    continue
                subscription.held.add(row.pk)
            self._deliver(DatabaseDelivery(self, subscription, row))
        if unseen:
            self._messages.free(unseen, self._id, unseen=True)

    def _deliver(self, delivery: DatabaseDelivery) -> None:
        try:
            self._on_delivery(delivery)
        except Exception:
            logger.exception('A delivery from queue "%s" was not taken and goes back.', delivery.queue)
            delivery.requeue()

    def _drop_deleted(self) -> None:
        with self._lock:
            queues = {one.queue_id: one.queue for one in self._subscriptions.values()}
        rows = EmbeddedQueue.objects.using(self._database).filter(pk__in=list(queues))
        known = set(rows.values_list("pk", flat=True))
        for queue_id in queues.keys() - known:
            self.unsubscribe(queues[queue_id])
            self._on_gone(f'The consumer of queue "{queues[queue_id]}" ended: the queue was deleted.')

    def _write_settled(self, *, at_once: bool = False) -> None:
        with self._lock:
            if not (at_once or self._is_hungry or self._settled.is_due(GATHERING, MANY)):
                return
            done, back = self._settled.take()
        try:
            if done:
                self._messages.remove(done, self._id)
            if back:
                self._messages.free(back, self._id)
        except BaseException:
            with self._lock:
                self._settled.put_back(done, back)
            raise
        if back or (done and self._is_starved):
            self._look_at = 0.0

    def _finish(self) -> None:
        """Write what was settled and give back everything else. What cannot be written lapses with the lease."""
        with suppress(DatabaseError, InterfaceError):
            self._write_settled(at_once=True)
            with self._lock:
                self._is_open = False
            self._write_settled(at_once=True)
            EmbeddedConnection.objects.using(self._database).end(self._id)

    def _lost(self, words: str) -> None:
        with self._lock:
            self._is_open = False
            self._subscriptions.clear()
        self._on_gone(words)

    @property
    def _messages(self) -> EmbeddedMessageQuerySet:
        return EmbeddedMessage.objects.using(self._database)
