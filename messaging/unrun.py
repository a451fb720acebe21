"""What is recorded without running a handler: dead letters, reused ids, crashes, and what no handler takes."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Protocol

from django.db import DatabaseError

from messaging import conf, crashes, failures, inbox
from messaging.envelope import Envelope, address
from messaging.exceptions import HandlerTimeout, IdReused, MessagingError, ProcessDied
from messaging.failures import Failure
from messaging.handlers import Handler, registry
from messaging.inbox import AlreadyRecorded, Place, SetAside, Verdict
from messaging.ledger import Entry
from messaging.models import ProcessedMessage
from messaging.models.states import in_state
from messaging.texts import storable
from messaging.wire import Properties

LOOKS = 10  # at a row that others keep changing


class DeadLetter(Protocol):
    """What `revive()` needs of a delivery from a dead-letter queue."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


REASONS = {
    "expired": "it expired in the queue",
    "maxlen": "the queue was full",
    "delivery_limit": "it was delivered too often",
    "rejected": "a consumer rejected it",
}


def record_unrun(
    database: str,
    queue: str,
    envelope: Envelope,
    error: MessagingError,
    *,
    worker: str,
    settings: conf.AliasSettings,
    redelivered: bool,
    handler: Handler | None = None,
) -> bool:
    """Record a message that no handler can take, or that the broker gave up, as failed.

    `handler` is the one that would take it. Returns whether the inbox answers for it now. Raises SetAside when a twin
    is about to record it.
    """
    for _ in range(LOOKS):
        row = inbox.find(database, settings.alias, queue, envelope, redelivered=redelivered, handler=handler)
        if row is None:
            place = inbox.fresh(settings.alias, queue, envelope)
        else:
            verdict = inbox.gate(row, envelope)
            if verdict is Verdict.REUSED:
                record_reused(database, row, envelope, worker=worker, settings=settings)
                return True
            bring_content(row, envelope, database)
            if verdict is Verdict.DONE:
                return True
            place = inbox.existing(row)
        try:
            failures.record(place, Failure(error, worker), database, settings)
            return True
        except AlreadyRecorded:
            redelivered = True
    return False


def record_reused(
    database: str, row: ProcessedMessage, envelope: Envelope, *, worker: str, settings: conf.AliasSettings
) -> None:
    """Keep and flag a message whose id another one took first."""
    place = inbox.fresh(settings.alias, row.queue, envelope, key=envelope.reused_key)
    error = IdReused(
        f"The message id was used before, by another message (row {row.pk}) with other content. "
        "Requeue it to process it all the same, or discard it."
    )
    with suppress(AlreadyRecorded):  # this very message was flagged before
        failures.record(place, Failure(error, worker), database, settings)


def record_counted(
    database: str,
    row: ProcessedMessage,
    envelope: Envelope,
    handler: Handler,
    *,
    worker: str,
    settings: conf.AliasSettings,
) -> None:
    """Send a message round again whose crash was counted before its content was known.

    Raises AlreadyRecorded when someone else was faster, SetAside when someone else is about to be.
    """
    bring_content(row, envelope, database)
    last = row.attempt_set.order_by("-id").first()
    is_late = last is not None and last.exception_type.endswith(".HandlerTimeout")
    error = (HandlerTimeout if is_late else ProcessDied)(last.exception_message if last else "Its process died.")
    failure = Failure(error, worker, handler, time.time(), crashed=True, counted=True)
    failures.record(inbox.existing(row), failure, database, settings)


def absorb_crash(place: Place, envelope: Envelope, handler: Handler, worker: str, settings: conf.AliasSettings) -> bool:
    """Take a crash of a message without an id over into the claim that it has made since, and send it round.

    Returns whether there was one. Raises AlreadyRecorded, SetAside.
    """
    row, database = place.row, handler.database
    for _ in range(LOOKS):
        alike = inbox.alike(database, row.alias, row.queue, envelope)
        row.attempts = next((one.attempts for one in alike if one.lease_token == place.token), 0)
        bare = next((one for one in alike if crashes.is_bare(one)), None)
        if bare is not None and not row.attempts:
            with suppress(AlreadyRecorded):
                crashes.absorb(place, bare, database)
        if row.attempts:
            record_counted(database, row, envelope, handler, worker=worker, settings=settings)
            return True
        if bare is None:
            break
    return False


def record_spared(entry: Entry, worker: str) -> None:
    """Send a claimed message round again whose process was killed on another one's account: no attempt is counted."""
    rows = ProcessedMessage.objects.using(entry.database).filter(alias=entry.alias, queue=entry.queue)
    claim = in_state(ProcessedMessage.State.PROCESSING)
    row = rows.filter(claim, key=entry.identity[0], lease_token=entry.token).first()
    if row is None or inbox.comes_again(row, registry.find(entry.alias, entry.queue, row.routing_key)):
        return
    with suppress(AlreadyRecorded, SetAside):
        failures.send_round(inbox.existing(row), worker, entry.database)


def record_abandoned(
    database: str, row: ProcessedMessage, handler: Handler | None, settings: conf.AliasSettings
) -> bool:
    """Count the crash of a worker that stopped renewing its claim. False when it was recorded otherwise meanwhile."""
    error = ProcessDied(f"The worker {row.worker} stopped renewing its claim: it died, or lost the database.")
    failure = Failure(error, row.worker, handler, time.time(), crashed=True)
    try:
        failures.record(inbox.existing(row), failure, database, settings)
        return True
    except AlreadyRecorded:
        return False


def bring_content(row: ProcessedMessage, envelope: Envelope, database: str) -> None:
    """Fill in a row that was made for a crash alone, whatever has become of it: it is all that will be left."""
    if row.wire is not None:
        return
    inbox.fill(row, envelope)
    place, same = inbox.existing(row), ProcessedMessage.objects.using(database).filter(pk=row.pk, key=row.key)
    while True:
        content = {name: getattr(row, name) for name in envelope.columns}
        try:
            same.filter(wire__isnull=True).update(**content)
            return
        except DatabaseError as error:
            if not place.escape(error):
                raise


def revive(letter: DeadLetter, queue: str) -> tuple[Envelope, str]:
    """A dead letter as `queue` got it, and why the broker gave it up, in words."""
    headers = letter.properties.headers
    death = _death(headers.get("x-death"), queue)
    reason = str(death.get("reason") or headers.get("x-first-death-reason") or "unknown")
    text = f"The broker gave it up: {REASONS.get(reason, 'reason ' + storable(reason, 100))}."
    keys = death.get("routing-keys")
    exchange = address(death.get("exchange"), letter.exchange)
    routing_key = address(keys[0] if isinstance(keys, list) and keys else None, letter.routing_key)
    return Envelope.received(exchange, routing_key, letter.properties, letter.body, queue), text


def _death(deaths: Any, queue: str) -> dict[str, Any]:
    entries = deaths if isinstance(deaths, list) else []
    return next((entry for entry in entries if isinstance(entry, dict) and entry.get("queue") == queue), {})
