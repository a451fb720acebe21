"""What is durable, as the code has it and as the model has it, in the same words; and which row is which."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from messaging.backends.database import letters
from messaging.models import EmbeddedMessage, ProcessedMessage, PublishedMessage, Worker
from messaging.processing.without_handler import revive
from tests.app.models import Effect
from tests.deliveries import Arrived
from tests.model.states import ANONYMOUS, IDLE, PROCESSING, Consumer, Copy, Database, Outgoing, Row, State

DATABASES = ("default", "other")
QUEUES = ("work", "more")
DEAD = ".dead"
MANY = 2  # effects that the model tells apart from fewer

Numbers = dict[tuple[int, type], list[int | None]]  # by database and table: the primary key of each row of the model


class Names:
    """Which row of the code is which of the model, and which message."""

    def __init__(self, databases: int, *, identified: bool) -> None:
        self.identified = identified
        self.databases = DATABASES[:databases]
        self.ids: list[str] = []  # of the messages, in the order in which they were published
        self._epochs: dict[tuple[int, int], int] = {}  # what the outbox rows began with, which is any number
        self.numbers: Numbers = {
            (place, table): [] for place in range(databases) for table in (PublishedMessage, ProcessedMessage)
        }

    def pk(self, database: int, table: type, number: int) -> int:
        """The primary key of the model's row of that number."""
        found = self.numbers[database, table][number - 1]
        assert found is not None
        return found

    def number(self, database: int, table: type, pk: int) -> int:
        """Its inverse; 0 for a row that the model does not know."""
        known = self.numbers[database, table]
        return known.index(pk) + 1 if pk in known else 0

    def learn(self, state: State) -> None:
        """Take in the rows of the code that are new, as those of the model that are."""
        for place, alias in enumerate(self.databases):
            one = state.databases[place]
            for table, rows in ((PublishedMessage, one.outbox), (ProcessedMessage, one.inbox)):
                known = self.numbers[place, table]
                found = table.objects.using(alias).exclude(pk__in=[pk for pk in known if pk]).order_by("pk")
                if table is PublishedMessage:
                    self._epochs |= {(place, pk): epoch for pk, epoch in found.values_list("pk", "epoch")}
                new = iter(found.values_list("pk", flat=True))
                known += [next(new, None) if row else None for row in rows[len(known) :]]

    def epoch(self, database: int, row: PublishedMessage) -> int:
        """How often a row was sent anew."""
        return row.epoch - self._epochs.get((database, row.pk), 0)

    def message(self, message_id: str) -> int | None:
        """Which message has an id; None where it has none, or several may."""
        return self.ids.index(message_id) if message_id else None

    def copy(self, row: EmbeddedMessage) -> tuple[Any, ...]:
        """A message in a queue, as `copy_in()` has it."""
        envelope = envelope_of(row)
        queue = row.queue.name.removesuffix(DEAD)
        owner = None
        for place, alias in enumerate(self.databases if envelope.row_key is not None else ()):
            found = ProcessedMessage.objects.using(alias).filter(key=envelope.row_key, queue=queue).first()
            if found is not None and not self.identified:
                owner = (place, self.number(place, ProcessedMessage, found.pk))
        message = self.message(envelope.message_id) if self.identified else None
        return (QUEUES.index(queue) + 1, message, owner, envelope.round, row.queue.name != queue)


def copy_in(state: State, copy: Copy, *, identified: bool) -> tuple[Any, ...]:
    """A copy of the model: queue, message, the inbox row that it is a round of, round, whether it is dead."""
    owner = None
    for place, one in enumerate(state.databases if copy.key >= ANONYMOUS else ()):
        for number, row in enumerate(one.inbox, 1):
            if row and row.key == copy.key and row.queue == copy.queue:
                owner = (place, number)
    return (copy.queue, copy.message if identified else None, owner, copy.round, copy.dead)


def envelope_of(row: EmbeddedMessage) -> Any:
    """The message in a row of the broker."""
    arrived = Arrived(row.queue.name, *letters.delivered(bytes(row.wire), 1), bytes(row.body))
    if not row.queue.name.endswith(DEAD):
        return arrived.envelope
    return revive(arrived, row.queue.name.removesuffix(DEAD))[0]


def rows_of(names: Names) -> dict[str, Any]:
    """What is durable, as the code has it."""
    ready = EmbeddedMessage.objects.filter(holder=None).select_related("queue")
    found: dict[str, Any] = {
        "ready": sorted(((*names.copy(row), row.deliveries > 0) for row in ready), key=str),
        "held": EmbeddedMessage.objects.exclude(holder=None).count(),
    }
    for place, alias in enumerate(names.databases):
        sent = PublishedMessage.objects.using(alias).order_by("pk")
        received = ProcessedMessage.objects.using(alias).order_by("pk")
        stopping = set(Worker.objects.using(alias).filter(is_stopping=True).values_list("name", flat=True))
        found[f"outbox of {alias}"] = [_outgoing(names, place, row) for row in sent]
        found[f"inbox of {alias}"] = [_incoming(names, row, stopping) for row in received]
        keys = list(Effect.objects.using(alias).values_list("key", flat=True))
        found[f"effects in {alias}"] = {key: min(MANY, keys.count(key)) for key in sorted(set(keys))}
    return found


def _outgoing(names: Names, place: int, row: PublishedMessage) -> dict[str, Any]:
    is_held = row.lease_token is not None and (row.due_at or timezone.now()) > timezone.now()
    inbox = names.number(place, ProcessedMessage, row.inbox_id) if row.inbox_id else 0
    message = names.message(row.message_id) if names.identified else None
    return {
        "message": message,
        "of": inbox,
        "round": row.round,
        "state": row.state,
        "held": is_held,
        "epoch": names.epoch(place, row),
    }


def _incoming(names: Names, row: ProcessedMessage, stopping: set[str]) -> dict[str, Any]:
    # Of a run whose transaction locks its row, and so everywhere on SQLite, its worker says that it is interrupted.
    is_told = bool(row.at_broker) and row.worker in stopping
    return {
        "message": names.message(row.message_id) if names.identified else None,
        "queue": row.queue,
        "round": row.round,
        "state": row.state,
        "attempts": row.attempts,
        "claimed": row.lease_token is not None,
        "content": row.wire is not None,
        "at broker": row.at_broker,
        **_run(row, started=row.started_at is not None, interrupted=bool(row.interrupted) or is_told),
    }


def _run(row: ProcessedMessage | Row, *, started: bool, interrupted: bool) -> dict[str, Any]:
    """What a row says of a run, where that decides anything: an interruption of none that began says nothing."""
    if row.state != PROCESSING:
        return {}
    is_claimed = bool(row.lease_token if isinstance(row, ProcessedMessage) else row.token)
    return {"started": started, "interrupted": interrupted and (started or not is_claimed)}


def rows_in(state: State, queues: int, *, identified: bool) -> dict[str, Any]:
    """What is durable, as the model has it."""
    ready = (((*copy_in(state, one, identified=identified), one.redelivered)) for one in state.broker)
    found: dict[str, Any] = {"ready": sorted(ready, key=str), "held": sum(map(_held, state.consumers))}
    for place, one in enumerate(state.databases):
        alias = DATABASES[place]
        found[f"outbox of {alias}"] = [_sent(row, one, identified=identified) for row in one.outbox if row]
        found[f"inbox of {alias}"] = [_received(row, identified=identified) for row in one.inbox if row]
        found[f"effects in {alias}"] = _effects(one.effects, queues, identified=identified)
    return found


def effect_key(queue: str, message: int | None) -> str:
    """What a handler's effect is called."""
    return queue if message is None else f"{queue} {message}"


def _effects(effects: tuple[int, ...], queues: int, *, identified: bool) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, count in enumerate(effects):
        key = effect_key(QUEUES[place % queues], place // queues if identified else None)
        found[key] = min(MANY, found.get(key, 0) + count)
    return {key: found[key] for key in sorted(found) if found[key]}


def _sent(row: Outgoing, database: Database, *, identified: bool) -> dict[str, Any]:
    message, is_held = row.message if identified else None, row.token > 0 and not row.lapsed
    told = {
        "message": message,
        "of": row.inbox if row.inbox and database.inbox[row.inbox - 1] else 0,
        "round": row.round,
        "state": row.state,
        "held": is_held,
    }
    return {**told, "epoch": row.epoch}


def _received(row: Row, *, identified: bool) -> dict[str, Any]:
    return {
        "message": row.message if identified else None,
        "queue": QUEUES[row.queue - 1],
        "round": row.round,
        "state": row.state,
        "attempts": row.attempts,
        "claimed": row.token > 0,
        "content": row.content,
        "at broker": row.at_broker,
        **_run(row, started=row.started, interrupted=row.interrupted),
    }


def _held(one: Consumer) -> int:
    return len(one.copies) - int(one.acked) if one.live and one.phase != IDLE else 0
