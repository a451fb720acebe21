"""Relay and consumer in the caller's own thread and transaction, without a broker: for tests, see `testing.drain()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property

from django.db import Error, connections, transaction
from django.db.models import F
from django.test.testcases import DatabaseOperationForbidden  # type: ignore[attr-defined]

from messaging import conf, signals, topology
from messaging.backends.base import QueueSpec
from messaging.conf.rules import dead_queue
from messaging.db.savepoints import as_in_autocommit, run_commit_hooks
from messaging.exceptions import DatabaseUnavailable, MessagingError
from messaging.handlers import Handler, registry, topic_matches
from messaging.message import HandlerContext, ReceivedMessage
from messaging.models import PublishedMessage
from messaging.models.outbox import PublishedMessageQuerySet
from messaging.models.spools import Spool
from messaging.processing.execution import call
from messaging.processing.processor import Processor
from messaging.publishing.rows import seal
from messaging.testing.drained import Drained, Events
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

NESTED = (
    "drain() was called inside atomic(): nothing that was published in there is committed yet, and handlers run in "
    "transactions of their own. Call it after the block."
)
CLOSED = (
    "A handler closed the database connection, and with it the test's transaction. Do not close it there, or use "
    "TransactionTestCase (pytest: transactional_db)."
)


@dataclass
class Arrival:
    """A delivery of a message that never left this process."""

    queue: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    redelivered: bool = False
    spool: Spool | None = None

    @cached_property
    def envelope(self) -> Envelope:
        """The message as it was first published."""
        return Envelope.received(self.exchange, self.routing_key, self.properties, self.body, self.queue)


class Drain:
    """One call of `drain()`.

    Args:
        alias: alias of `MESSAGING`.
        limit: messages after which it gives up.
    """

    def __init__(self, alias: str, limit: int) -> None:
        settings = conf.get(alias)
        self._alias, self._limit = alias, limit
        self._databases = usable(settings.databases)
        for database in self._databases:
            refuse_nested(database)
        exact = replace(settings, retry=replace(settings.retry, jitter=0.0))  # a test says how much time passes
        self._processor = Processor(alias, "drain()", call=_call, databases=self._databases, settings=exact)
        self._queues = {spec.name: spec for spec in topology.build(alias).queues}
        self._handled = frozenset(registry.queues(alias))
        self._dead = {dead_queue(queue) for queue in self._handled if settings.queue(queue).dead_letter} - self._handled
        self._sent: Counter[str] = Counter()
        self._events = Events(alias)

    def run(self, seconds: float) -> Drained:
        """Send and process whatever is due or falls due within so many seconds, which pass at once."""
        with self._events.recorded():
            while True:
                self._run_due()
                pause = self._pause()
                if pause is None or pause > seconds:
                    break
                self._let_pass(pause)
                seconds -= pause
        self._let_pass(seconds)
        return self._events.drained()

    # The relay's part

    def _run_due(self) -> None:
        while rows := self._take():
            for handler, arrivals in self._jobs([arrival for row in rows for arrival in self._send(row)]):
                self._process(handler, arrivals)

    def _take(self) -> list[PublishedMessage]:
        room = self._limit - self._sent.total()
        due = [row for database in self._databases for row in _rows(database).due(self._alias)[: room + 1]]
        if due and not room:
            often = ", ".join(f"{key} ({count} times)" for key, count in self._sent.most_common(3))
            raise MessagingError(
                f"drain() sent {self._limit} messages and more are due: do handlers publish to each other without "
                f"an end? Most often: {often}. If that many are meant, give a higher limit."
            )
        return due[:room]

    def _send(self, row: PublishedMessage) -> Iterator[Arrival]:
        """Mark a row published, and yield its deliveries."""
        self._sent[row.routing_key or row.queue] += 1
        try:
            exchange, routing_key, properties, body = seal(row)
        except Exception as error:  # noqa: BLE001  whatever is wrong with the row, the relay fails it as well
            row.mark_failed(f"It cannot be encoded: {error}")
            signals.message_unpublishable.send_robust(sender=PublishedMessage, row=row)
            self._events.errors.append(error)
            return
        _rows(row._state.db or "default").mark_published([row])
        row.state = PublishedMessage.State.PUBLISHED
        signals.message_published.send_robust(sender=PublishedMessage, rows=[row])
        queues = self._route(exchange, routing_key)
        if not queues:
            self._events.sent_elsewhere.append(row)
        for queue in queues:
            yield Arrival(queue, exchange, routing_key, Properties.decode(properties), body)

    def _route(self, exchange: str, routing_key: str) -> list[str]:
        """The queues of ours that a message reaches."""
        if not exchange:
            return [routing_key] if routing_key in self._handled | self._dead else []
        return [name for name in sorted(self._handled) if _is_bound(self._queues[name], exchange, routing_key)]

    # The consumer's part

    def _jobs(self, arrivals: Iterable[Arrival]) -> Iterator[tuple[Handler | None, list[Arrival]]]:
        """What is processed together: a batch handler's messages, everything else alone."""
        jobs: list[tuple[Handler | None, list[Arrival]]] = []
        filling: dict[int, list[Arrival]] = {}  # by handler
        for arrival in arrivals:
            handler = None if arrival.queue in self._dead else self._processor.route(arrival)
            if handler is None or handler.batch is None:
                jobs.append((handler, [arrival]))
                continue
            batch = filling.get(id(handler))
            if batch is None or len(batch) == handler.batch:
                batch = filling[id(handler)] = []
                jobs.append((handler, batch))
            batch.append(arrival)
        return iter(jobs)

    def _process(self, handler: Handler | None, arrivals: list[Arrival]) -> None:
        try:
            if arrivals[0].queue in self._dead:
                settlements = [self._processor.record_dead(arrivals[0])]
            elif handler is not None and handler.batch is not None:
                settlements = self._processor.process_batch(handler, arrivals)
            else:
                settlements = [self._processor.process(arrivals[0], _acknowledge)]
        except Error as error:
            if any(connection.closed_in_transaction for connection in connections.all(initialized_only=True)):
                raise DatabaseUnavailable(CLOSED) from error
            raise
        if any(settlement.action == "set_aside" for settlement in settlements):
            raise MessagingError(f"Another connection locks a message of the queue {arrivals[0].queue!r}.")
        for problem in self._events.errors:
            if not isinstance(problem, (Exception, SystemExit)):  # Ctrl-C, or the test runner's time limit
                raise problem

    # Time

    def _pause(self) -> float | None:
        """Seconds until the next row is due; None without any."""
        pauses = [_rows(database).wait(self._alias) for database in self._databases]
        return min((pause for pause in pauses if pause is not None), default=None)

    def _let_pass(self, seconds: float) -> None:
        """What is pending comes nearer: the database's clock cannot be moved, its rows can."""
        if seconds > 0:
            for database in self._databases:
                rows = _rows(database).scheduled(self._alias).order_by()
                rows.update(due_at=F("due_at") - timedelta(seconds=seconds))


def _call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: HandlerContext) -> None:
    """Call a handler, and do what one without a transaction needs inside that of a test."""
    connection = connections[handler.database]
    if handler.atomic or not connection.in_atomic_block:
        call(handler, argument, context)
        return
    hooks = len(connection.run_on_commit)
    try:
        with as_in_autocommit(connection):
            call(handler, argument, context)
    finally:
        if connection.closed_in_transaction:
            raise DatabaseUnavailable(CLOSED)
        run_commit_hooks(connection, hooks)


def usable(databases: Sequence[str]) -> list[str]:
    """The databases that the running test may use: what is not in its `databases` cannot hold anything of it.

    Raises Django's AssertionError when it may use none.
    """
    found = []
    for database in databases:
        try:
            with connections[database].cursor():
                found.append(database)
        except DatabaseOperationForbidden:
            if database == databases[-1] and not found:
                raise
    return found


def refuse_nested(database: str) -> None:
    """Raise RuntimeError inside a transaction that is not the test's own."""
    try:
        with transaction.atomic(using=database, durable=True):
            pass
    except RuntimeError as error:
        if connections[database].in_atomic_block:
            raise RuntimeError(NESTED) from error
        raise


def _is_bound(queue: QueueSpec, exchange: str, routing_key: str) -> bool:
    return any(exchange == source and topic_matches(pattern, routing_key) for source, pattern in queue.bindings)


def _rows(database: str) -> PublishedMessageQuerySet:
    return PublishedMessage.objects.using(database)


def _acknowledge() -> None:
    """There is no broker to tell."""
