"""Publishing: routed and inserted in one transaction, whose commit is the confirm."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from messaging.backends.base import Fate, Outgoing, Sender, SendOutcome
from messaging.backends.database import letters, local
from messaging.backends.database.catalog import Routes
from messaging.backends.database.errors import broker_errors, described
from messaging.db.clock import Now
from messaging.db.connections import batches
from messaging.exceptions import BrokerUnavailable, WireError
from messaging.models import EmbeddedMessage, EmbeddedQueue
from messaging.wire.fields import printable


class DatabaseSender(Sender):
    """Puts messages into queues on the caller's own database connection.

    Args:
        database: alias of `DATABASES`.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._condition = threading.Condition()
        self._news: list[SendOutcome] = []
        self._is_woken = self._is_open = False

    def open(self) -> None:
        """Make sure that the tables can be read. Raises BrokerUnavailable."""
        if not self._is_open:
            with broker_errors(self._database):
                EmbeddedMessage.objects.using(self._database).order_by("id").exists()
            self._is_open = True

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Put messages into their queues; see the contract."""
        if not self._is_open:
            raise BrokerUnavailable("The publisher is not connected.")
        try:
            outcomes = self._deliver(messages)
        except BrokerUnavailable:
            self._is_open = False
            raise
        with self._condition:
            self._news += outcomes
            self._condition.notify_all()

    def outcomes(self, timeout: float) -> list[SendOutcome]:
        """Wait up to `timeout` seconds for news and return all there is."""
        with self._condition:
            self._condition.wait_for(lambda: self._news or self._is_woken, timeout)
            self._is_woken = False
            news, self._news = self._news, []
            return news

    def wake(self) -> None:
        """Make a waiting `outcomes()` return now, or the next one if none waits."""
        with self._condition:
            self._is_woken = True
            self._condition.notify_all()

    @property
    def under_way(self) -> int:
        """How many messages were handed over whose outcome has not been returned by `outcomes()`."""
        return len(self._news)

    @property
    def is_open(self) -> bool:
        """Whether the last use of the database worked."""
        return self._is_open

    @property
    def is_blocked(self) -> bool:
        """Never: a database that is full refuses instead."""
        return False

    def close(self, timeout: float = 5.0) -> None:
        """Nothing is under way after `send()`; the caller's database connection is the caller's."""
        self._is_open = False

    def _deliver(self, messages: Sequence[Outgoing]) -> list[SendOutcome]:
        """All together, or where that is refused one by one, so that one bad message fails alone."""
        with broker_errors(self._database):
            routes = Routes.read(self._database)
        try:
            return self._store(messages, routes)
        except (DatabaseError, InterfaceError):
            with broker_errors(self._database):
                self._probe()
                routes = Routes.read(self._database)
            return [outcome for message in messages for outcome in self._store_alone(message, routes)]

    def _store(self, messages: Sequence[Outgoing], routes: Routes) -> list[SendOutcome]:
        rows: list[EmbeddedMessage] = []
        outcomes = [self._address(message, routes, rows) for message in messages]
        if rows:
            with transaction.atomic(using=self._database):
                for batch in batches(rows, lambda row: len(row.body)):
                    EmbeddedMessage.objects.using(self._database).bulk_create(batch)
            local.wake(self._database)
        return outcomes

    def _store_alone(self, message: Outgoing, routes: Routes) -> list[SendOutcome]:
        try:
            return self._store([message], routes)
        except (OperationalError, InterfaceError) as error:
            return [SendOutcome(message.token, Fate.NACKED, described(self._database, error))]
        except DatabaseError as error:
            return [SendOutcome(message.token, Fate.REFUSED, f"The database refuses it: {printable(str(error))}")]

    def _probe(self) -> None:
        """Write a row and take it back: an error here is the database's trouble, not a message's."""
        if not connections[self._database].is_usable():
            connections[self._database].close()
        with transaction.atomic(using=self._database):
            queue = EmbeddedQueue.objects.using(self._database).order_by("id").first()
            if queue is not None:
                EmbeddedMessage.objects.using(self._database).create(queue_id=queue.pk, wire=b"", body=b"")
            transaction.set_rollback(True, using=self._database)

    def _address(self, message: Outgoing, routes: Routes, rows: list[EmbeddedMessage]) -> SendOutcome:
        """Add a row for each queue that takes the message, and say what will have become of it."""
        exchange, key = printable(message.exchange), printable(message.routing_key)
        try:
            wire, expiry = letters.seal(message), letters.seconds_to_live(message.properties)
        except WireError as error:
            return SendOutcome(message.token, Fate.REFUSED, str(error))
        queues = routes.find(message.exchange, message.routing_key)
        if queues is None:
            return SendOutcome(message.token, Fate.UNROUTABLE, f'There is no exchange "{exchange}".')
        if not queues and message.mandatory:
            where = f'queue "{key}"' if not exchange else f'queue takes "{key}" from exchange "{exchange}"'
            return SendOutcome(message.token, Fate.UNROUTABLE, f"No {where}.")
        until = None if expiry is None else Now() + timedelta(seconds=expiry)
        rows += [EmbeddedMessage(queue_id=queue, wire=wire, body=message.body, expires_at=until) for queue in queues]
        return SendOutcome(message.token, Fate.CONFIRMED)
