"""Deliveries that do not run: dead letters, what no handler takes, and what the consumer itself fails on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from messaging.conf.rules import living_queue
from messaging.exceptions import (
    ConsumerFailed,
    DatabaseUnavailable,
    DeadLettered,
    HandlerNotFound,
    MessageTooLarge,
    MessagingError,
    PayloadError,
)
from messaging.handlers import Backoff, Handler
from messaging.models import ProcessedMessage
from messaging.models.spools import Spool
from messaging.processing import inbox, without_handler
from messaging.processing.elsewhere import Standing, database_of, weigh
from messaging.processing.error_text import describe
from messaging.processing.failures import Failure
from messaging.processing.inbox import AlreadyRecorded, SetAside
from messaging.processing.recognition import Recognition
from messaging.processing.retry import interval
from messaging.processing.station import ACK, ASIDE, Incoming, Settlement, Station, set_aside
from messaging.wire.bodies import storable
from messaging.wire.envelope import Envelope


class Refusals:
    """Records what is not to run, where the inbox knows it already or in its own database.

    Args:
        station: where this process stands.
        recognition: what recognises messages of ours.
    """

    def __init__(self, station: Station, recognition: Recognition) -> None:
        self._station = station
        self._recognition = recognition

    def record_dead(self, delivery: Incoming) -> Settlement:
        """Record a delivery from `<queue>.dead` as failed, with the broker's reason. Raises DatabaseUnavailable.

        Nothing tells whether the broker put it there or someone else did. So it ends nothing that may be alive: a later
        round only by its nonce, a claim that the inbox answers for not at all; and what comes from the queue itself in
        the same round runs all the same.
        """
        queue = living_queue(delivery.queue)
        envelope, reason = without_handler.revive(delivery, queue)
        envelope = self._recognition.of(queue, envelope)
        handler = self._station.handlers.find(self._station.alias, queue, envelope.routing_key)
        failure = Failure(DeadLettered(reason), self._station.worker)
        return self._record(queue, envelope, failure, redelivered=True, handler=handler, is_dead=True)

    def record_unknown(self, delivery: Incoming, envelope: Envelope) -> Settlement:
        """Record what no handler can take.

        With a routing key that nobody knows it goes round like a failed attempt, until its attempts are spent: while a
        new version is being deployed, other consumers of the queue may know it.
        """
        if delivery.properties.problem:
            error: MessagingError = PayloadError(f"Its properties cannot be read: {delivery.properties.problem}")
            failure = Failure(error, self._station.worker)
        else:
            failure = self._unknown(delivery.queue, envelope)
        return self._record(delivery.queue, envelope, failure, redelivered=delivery.redelivered)

    def record_failed(self, delivery: Incoming, error: BaseException, *, is_dead: bool) -> Settlement:
        """Record as failed what the consumer itself fails on. Raises DatabaseUnavailable."""
        if delivery.spool is not None:
            return self.record_too_large(delivery, delivery.spool, is_dead=is_dead)
        queue = living_queue(delivery.queue) if is_dead else delivery.queue
        text = f"The consumer itself failed on it, time and again: {describe(error)}. Its log has the traceback."
        failure = Failure(ConsumerFailed(f"{text} Requeue it once that is mended."), self._station.worker)
        envelope, handler = self._read(delivery, queue, is_dead=is_dead)
        return self._record(queue, envelope, failure, redelivered=True, handler=handler, is_dead=is_dead)

    def record_too_large(self, delivery: Incoming, spool: Spool, *, is_dead: bool) -> Settlement:
        """Record as failed what is too large to be held here, with its body from a file. Raises DatabaseUnavailable."""
        queue = living_queue(delivery.queue) if is_dead else delivery.queue
        text = (
            f"Its body has {spool.size} bytes, and a consumer here holds {spool.limit} at most (HELD_BYTES, or a share "
            "of the memory that there is)."
        )
        if spool.trouble:
            raise ConsumerFailed(f"{text} It is left to the broker: {spool.trouble}.")
        text += (
            f' It is stored whole. Give the consumer more memory, set MESSAGING["{self._station.alias}"]["HELD_BYTES"] '
            f"to at least {spool.size}, then requeue it; or discard it."
        )
        envelope, handler = self._read(delivery, queue, is_dead=is_dead)
        envelope.keeps_body_in(spool.pieces())
        failure = Failure(MessageTooLarge(text), self._station.worker)
        return self._record(queue, envelope, failure, redelivered=True, handler=handler, is_dead=is_dead, spool=spool)

    def let_go(self, standing: Standing, row: ProcessedMessage) -> None:
        """Have no other row wait for a message that this one answers for."""
        home, rows = standing.home, standing.replaceable
        if home is None or home is row or not self._station.claims.is_idle(home.lease_token):
            home = None
        else:  # it was claimed to run here, and went on there meanwhile
            rows = [*(one for one in rows if one is not home), home]
        with self.held(home):
            self._station.elsewhere.retire(rows, database_of(row))

    def held(self, row: ProcessedMessage | None) -> AbstractContextManager[None]:
        """Forget a claim of ours that runs nothing, if this is one, unless the change that ends it fails."""
        claims = self._station.claims
        if row is None or not claims.is_idle(row.lease_token):
            return nullcontext()
        return claims.held(row.lease_token, database_of(row))

    def _unknown(self, queue: str, envelope: Envelope) -> Failure:
        station = self._station
        known = [handler for handler in station.handlers.all(station.alias) if handler.queue == queue]
        patterns = ", ".join(sorted({key for handler in known for key in handler.routing_keys})) or "none"
        error = HandlerNotFound(
            f"No handler of the queue {queue!r} takes the routing key "
            f"{storable(envelope.routing_key)!r} (they take: {patterns}). Unless a version that does is about "
            "to be deployed, add a handler; then requeue the message."
        )
        most = max([station.settings.retry.max_attempts, *(handler.max_attempts or 0 for handler in known)])
        backoff = self._shortest(known) if known else None
        now = time.monotonic()
        return Failure(error, station.worker, started=now, ended=now, max_attempts=most, backoff=backoff)

    def _shortest(self, handlers: Sequence[Handler]) -> Backoff:
        policy = self._station.settings.retry
        return lambda attempt: min(interval(attempt, handler.backoff, policy) for handler in handlers)

    def _read(self, delivery: Incoming, queue: str, *, is_dead: bool) -> tuple[Envelope, Handler | None]:
        """What can be read of a message that cannot be processed."""
        try:
            envelope = without_handler.revive(delivery, queue)[0] if is_dead else delivery.envelope
            envelope = self._recognition.of(queue, envelope)
            envelope.read()
            return envelope, self._station.handlers.find(self._station.alias, queue, envelope.routing_key)
        except DatabaseUnavailable:
            raise
        except Exception:  # noqa: BLE001  that may well be what fails
            return Envelope(delivery.exchange, delivery.routing_key, delivery.properties, delivery.body), None

    def _record(
        self,
        queue: str,
        envelope: Envelope,
        failure: Failure,
        *,
        redelivered: bool,
        handler: Handler | None = None,
        is_dead: bool = False,
        spool: Spool | None = None,
    ) -> Settlement:
        """Record it where it is recorded already; else in the database of the handler that would take it."""
        station = self._station
        database = handler.database if handler else station.database
        try:
            standing = self._stands(database, queue, envelope, redelivered=redelivered, handler=handler)
            row = standing.decides
            where = database_of(row) if row is not None else database
            record = partial(
                without_handler.record_unrun,
                station,
                where,
                queue,
                envelope,
                failure,
                redelivered=redelivered,
                handler=handler,
                is_dead=is_dead,
                spool=spool,
            )
            if not station.outages.steadily(where, record):
                return ASIDE
            if row is not None:
                self.let_go(standing, row)
            return ACK
        except AlreadyRecorded:
            return ASIDE
        except SetAside as aside:
            return set_aside(aside)

    def _stands(
        self, database: str, queue: str, envelope: Envelope, *, redelivered: bool, handler: Handler | None
    ) -> Standing:
        """What is recorded of a message that is not to run; nothing where its own database alone may know it."""
        station = self._station

        def look(name: str) -> ProcessedMessage | None:
            find = partial(inbox.find, name, station.alias, queue, envelope, redelivered=redelivered, handler=handler)
            return station.outages.steadily(name, find)

        if envelope.key is None:
            others = station.elsewhere.others(database)
            found = (look(name) for name in ((database, *others) if others else ()))
            return Standing(None, next((row for row in found if row is not None), None))
        rows = station.elsewhere.find(database, queue, envelope, redelivered=True)
        return weigh(look(database), rows, envelope) if rows else Standing(None, None)
