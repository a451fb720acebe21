"""One connection of a receiver: a thread that renews a lease, takes messages under it, and settles them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta

from django.db import DatabaseError, IntegrityError, InterfaceError, connections, reset_queries

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery
from messaging.backends.database import local
from messaging.backends.database.delivery import DatabaseDelivery
from messaging.backends.database.errors import broker_errors, described
from messaging.backends.database.holdings import EmbeddedSubscription, Holdings
from messaging.backends.database.processes import identity
from messaging.backends.database.sweeper import Sweeper
from messaging.conf import AliasSettings
from messaging.db.clock import Now
from messaging.killpoints import kill_point
from messaging.models import EmbeddedConnection, EmbeddedMessage, EmbeddedQueue
from messaging.models.embedded import EmbeddedMessageQuerySet
from messaging.models.spools import PIECE, Spool
from messaging.supervising.log_records import about

logger = logging.getLogger("messaging.database")

BATCH = 200  # messages that are taken at once
CHORES = 2.0  # seconds between two looks at what others left behind
PAUSE = 1.0  # seconds between tries while the database does not answer
LOST = "The embedded broker gave this consumer up: it did not renew its lease in time. What it held goes to others."


class Feed:
    """A lease in the database and the thread that lives by it. Ends by `close()`, or when the lease was lost.

    Args:
        settings: the alias's.
        on_delivery: called for each message, in the feed's thread.
        on_gone: called with the reason when the lease, or a queue, was lost.
        allowance: the bytes that may be held; None for any number.
    """

    def __init__(
        self,
        settings: AliasSettings,
        on_delivery: Callable[[Delivery], None],
        on_gone: Callable[[str], None],
        allowance: Allowance | None = None,
    ) -> None:
        self._database = settings.broker_database
        self._lease = settings.lease
        self._poll = settings.poll_interval
        self._on_delivery = on_delivery
        self._on_gone = on_gone
        self._sweeper = Sweeper(self._database)
        self._wake = threading.Event()
        self._holdings = Holdings(self._wake.set)
        self._is_limited = allowance is not None
        self._allowance = allowance or Allowance()
        self._allowance.on_room = self._look_now
        self._id = 0
        self._is_closing = self._in_trouble = False
        self._renewed_at = self._renew_at = self._chores_at = self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="messaging-database", daemon=True)

    def open(self) -> None:
        """Take out the lease and start. Raises BrokerUnavailable."""
        self._renewed_at = time.monotonic()
        self._renew_at = self._renewed_at + self._lease / 3
        with broker_errors(self._database):
            until = Now() + timedelta(seconds=self._lease)
            row = EmbeddedConnection.objects.using(self._database).create(process=identity(), leased_until=until)
        self._id, self._holdings.is_live = row.pk, True
        local.listen(self._database, self._look_now)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End the thread in order; waits up to `timeout` seconds for it."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout)
        self._holdings.end()

    @property
    def is_open(self) -> bool:
        """Whether the lease stands, as far as is known here."""
        return self._holdings.is_live

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a live consumer."""
        return frozenset(self._holdings.queues)

    def subscribe(self, queue: str, queue_id: int, prefetch: int) -> None:
        """Take messages from a queue."""
        self._holdings.subscribe(EmbeddedSubscription(queue, queue_id, prefetch, is_narrow=self._is_limited))
        self._renew_at = 0.0  # which tells others what is consumed
        self._look_now()

    def widen(self, queues: Collection[str]) -> None:
        """Give consumers on these queues more than one message at once."""
        if self._holdings.widen(queues):
            self._look_now()

    def unsubscribe(self, queue: str) -> None:
        """Take no more messages from a queue."""
        if self._holdings.unsubscribe(queue):
            self._renew_at = 0.0
            self._wake.set()

    def settle(self, delivery: DatabaseDelivery, *, done: bool) -> bool:
        """Note that a delivery is done, or goes back; from any thread. False when the lease is gone."""
        return self._holdings.settle(delivery.subscription, delivery.row_id, done=done)

    def hurry(self) -> None:
        """Write now what was settled, if that makes room for more."""
        self._holdings.hurry()

    # The thread

    def _run(self) -> None:
        try:
            while not self._is_closing and self.is_open:
                self._wake.wait(self._try_step())
                self._wake.clear()
            if self.is_open:
                self._finish()
        finally:
            self._holdings.end()
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
        reset_queries()  # which DEBUG collects
        if time.monotonic() >= self._renew_at and not self._renew():
            return 0.0
        if time.monotonic() >= self._chores_at:
            self._chores_at = time.monotonic() + CHORES
            self._drop_deleted()
            self._free_unknown()
            self._sweeper.sweep(self._id, self._renewed_at)
            if self._sweeper.has_more:
                self._chores_at = 0.0
        self._write_settled()
        if time.monotonic() >= self._look_at:
            self._look()
        due = min(self._look_at, self._renew_at, self._chores_at, self._holdings.due_at)
        return max(0.0, due - time.monotonic())

    def _renew(self) -> bool:
        begun = time.monotonic()
        self._renew_at = begun + self._lease / 3
        queues = sorted(self._holdings.queues)
        if EmbeddedConnection.objects.using(self._database).renew(self._id, self._lease, queues):
            self._renewed_at = begun
            return True
        self._holdings.end()
        self._on_gone(LOST)
        return False

    def _drop_deleted(self) -> None:
        queues = self._holdings.queues
        rows = EmbeddedQueue.objects.using(self._database).filter(pk__in=list(queues.values()))
        known = set(rows.values_list("pk", flat=True))
        for queue in [queue for queue, queue_id in queues.items() if queue_id not in known]:
            self.unsubscribe(queue)
            self._on_gone(f'The consumer of queue "{queue}" ended: the queue was deleted.')

    def _free_unknown(self) -> None:
        """Give back what was taken when the answer got lost: the commit was done, and the connection broke."""
        held = self._messages.filter(holder=self._id).order_by()
        if unknown := self._holdings.unknown(list(held.values_list("pk", flat=True))):
            self._messages.free(unknown, self._id, unseen=True)
            self._look_at = 0.0

    def _write_settled(self, *, at_once: bool = False) -> None:
        done, back = self._holdings.take_settled(at_once=at_once)
        try:
            if done:
                removed = self._messages.remove(done, self._id)
                kill_point("embedded.removed")
                if removed < len(done):
                    self._renew_at = 0.0  # others hold some of them: is the lease lost?
            if back:
                self._messages.free(back, self._id)
        except BaseException:
            self._holdings.put_back(done, back)
            raise
        if back or (done and self._holdings.is_starved):
            self._look_at = 0.0

    def _look_now(self) -> None:
        self._look_at = 0.0
        self._wake.set()

    def _look(self) -> None:
        """Take from each queue that has something what there is room for."""
        self._look_at = time.monotonic() + self._poll
        rooms = self._holdings.rooms()
        for queue_id in EmbeddedQueue.objects.using(self._database).with_work(rooms) if rooms else ():
            subscription = rooms[queue_id]
            room = self._room()
            if room == 0:
                return  # until something is let go of
            limit = min(subscription.room, BATCH)
            rows = self._messages.take(queue_id, self._id, limit, room, self._allowance.limit)
            if rows:
                kill_point("embedded.taken")
            self._hand_over(subscription, rows)
            if rows:
                allowance, largest = self._allowance, max(0 if row.unread else len(row.body) for row in rows)
                allowance.is_waited_for = not allowance.has_room(largest)
            if len(rows) == limit and subscription.room:
                self._look_at = 0.0

    def _room(self) -> int | None:
        """Bytes that may be taken; 0 for none, until something is let go of, and None for any number."""
        allowance = self._allowance
        if allowance.limit is None:
            return None
        allowance.is_waited_for = True
        room = max(0, allowance.limit - allowance.held)
        allowance.is_waited_for = room == 0
        return room

    def _hand_over(self, subscription: EmbeddedSubscription, rows: list[EmbeddedMessage]) -> None:
        unseen = []
        for row in rows:
            spool = self._spooled(subscription, row) if row.unread else None
            if self._is_closing or not self._holdings.hold(subscription, row.pk):
                unseen.append(row.pk)
                continue
            delivery = DatabaseDelivery(self, subscription, row, spool)
            try:
                self._on_delivery(delivery)
            except Exception:
                text = 'A delivery from queue "%s" was not taken and goes back.'
                logger.exception(text, delivery.queue, extra=about(delivery))
                delivery.requeue()
        if unseen:
            self._messages.free(unseen, self._id, unseen=True)

    def _spooled(self, subscription: EmbeddedSubscription, row: EmbeddedMessage) -> Spool:
        """Copy a body that is too large to be held into a file. Raises IntegrityError when the row is not ours now."""
        subscription.large = row.pk
        spool = Spool(row.unread, self._allowance.limit or 0)
        for begin in range(0, row.unread, PIECE):
            if spool.trouble or self._is_closing:
                break
            piece = self._messages.part(row.pk, self._id, begin, PIECE)
            if piece is None:
                raise IntegrityError(f"The message {row.pk} was taken from its receiver.")
            spool.write(piece)
            if time.monotonic() >= self._renew_at:
                self._renew()
        return spool

    def _finish(self) -> None:
        """Write what was settled and give back everything else. What cannot be written lapses with the lease."""
        with suppress(DatabaseError, InterfaceError):
            self._write_settled(at_once=True)
            self._holdings.end()
            self._write_settled(at_once=True)
            EmbeddedConnection.objects.using(self._database).end(self._id)

    @property
    def _messages(self) -> EmbeddedMessageQuerySet:
        return EmbeddedMessage.objects.using(self._database)
