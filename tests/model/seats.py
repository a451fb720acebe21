"""The processes of a site: a relay with the row that it sends, and a consumer with what was delivered to it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from django.db import OperationalError, connections

from messaging.backends.base import Fate
from messaging.backends.database import letters
from messaging.db.clock import Now
from messaging.exceptions import DatabaseUnavailable
from messaging.handlers import Handler, Registry
from messaging.models import EmbeddedConnection, EmbeddedMessage, PublishedMessage
from messaging.processing.inbox import Place
from messaging.processing.processor import Processor
from messaging.processing.station import DONE, Settlement, Work
from messaging.relaying.relay import Relay
from messaging.supervising.ledger import Entry
from tests.deliveries import Arrived
from tests.model.acting import Actor, current

RELAY_STOPS = frozenset({"relay.leased", "relay.sent"})
# Where the ledger still shows a run whose outcome is committed.
OUTCOMES = frozenset({"processor.committed", "processor.recorded"})
STOPS = OUTCOMES | {"look", "admitted", "processor.claimed", "retire", "processor.moved", "handler", "absorb"}
STOPS |= {"begin", "processor.rolled_back"}
OUTAGE = (90_000.0, 85_800.0)  # seconds since one began and since it ended, of which every processor knows
_names = itertools.count(1)


class Stepped(Processor):
    """A processor that stops where a step of the model ends and the code has no kill point."""

    def _admit(self, work: Work) -> Place | None:
        current().passes("look")
        if current().order == "lose the claim's answer":
            lose_next_answer(work.database)
        place = super()._admit(work)
        if place is not None and place.token is not None:
            current().passes("admitted")
        return place


def lose_next_answer(database: str) -> None:
    """Have this thread's next commit succeed, and nobody hear of it."""
    connection = connections[database]
    commit = connection._commit

    def unheard() -> None:
        commit()
        del connection._commit
        connection.close()
        raise OperationalError("server closed the connection unexpectedly") from OperationalError()

    connection._commit = unheard


def stepped(handlers: Registry) -> Stepped:
    """The processor of a new process. What lapsed in the outage that it knows of is told from what lapsed since."""
    made = Stepped("default", f"worker {next(_names)}", handlers=handlers, running=_running)
    settle_outages(made)
    elsewhere = made._station.elsewhere
    retire = elsewhere.retire

    def stopped(rows: Any, database: str) -> None:
        if rows := list(rows):
            current().passes("retire")
            retire(rows, database)

    elsewhere.retire = stopped  # type: ignore[method-assign]
    attempts = made._attempts
    begin = attempts._begin

    def beginning(work: Work, place: Place) -> None:
        current().passes("begin")
        begin(work, place)

    attempts._begin = beginning  # type: ignore[method-assign]
    return made


@contextmanager
def _running(entry: Entry) -> Iterator[Callable[[], None]]:
    """What the ledger shows of a death, as long as the run is in it."""
    actor = current()
    with actor.running(entry) as lift:
        try:
            yield lift
        except BaseException:
            actor.entry = None
            raise


def settle_outages(processor: Processor) -> None:
    """Have it trust leases, and know of one outage long ago."""
    outages, now = processor.outages, time.monotonic()
    outages._away_since.clear()
    for database in connections:
        outages.up_since[database] = -1e9
        outages._past[database] = deque([(now - OUTAGE[0], now - OUTAGE[1])])


class RelaySeat:
    """One relay."""

    def __init__(self) -> None:
        self.actor: Actor | None = None
        self.name = ""
        self.relay: Relay | None = None

    def lease(self, database: str, pk: int) -> None:
        """Begin, with that row."""
        PublishedMessage.objects.using(database).filter(pk=pk).update(due_at=Now() - timedelta(days=2))
        self.name = f"relay {next(_names)}"
        self.actor = Actor(lambda: self._once(database), RELAY_STOPS)
        assert self.actor.go() == "relay.leased"

    def _once(self, database: str) -> None:
        self.relay = relay = Relay("default", name=self.name, databases=[database])
        for lease in relay._leases:
            lease._marker._has_failed = True  # it marks in this thread
        outcomes = relay._uplink.outcomes

        def heard(timeout: float) -> Any:
            found = outcomes(timeout)
            if current().order != "lose the confirm":
                return found
            return [replace(one, fate=Fate.UNKNOWN) for one in found]

        relay._uplink.outcomes = heard  # type: ignore[method-assign]
        relay.run_once(timeout=0)

    def go(self, place: str, order: str = "") -> None:
        """Go on to a place."""
        assert self.actor is not None
        reached = self.actor.go(order)
        assert reached == place, f"The relay is at {reached}, not at {place}."

    def kill(self) -> None:
        """Let it die."""
        if self.actor is not None:
            self.actor.kill()
        self.actor = None


class Seat:
    """One consumer's worker, in a process of its own.

    Args:
        handlers: what it knows.
        atomic: whether the handler shares its transaction with the record.
        batch: the handler, where it takes batches.
    """

    def __init__(self, handlers: Registry, *, atomic: bool, batch: Handler | None) -> None:
        self.atomic, self.batch = atomic, batch
        self.actor: Actor | None = None
        self.holder = 0
        self.taken: list[int] = []
        self.deliveries: list[Arrived] = []
        self.start(handlers)

    @property
    def at(self) -> str:
        """Where its thread stands."""
        return self.actor.at if self.actor is not None else ""

    @property
    def is_answered(self) -> bool:
        """Whether what was acknowledged on the way is left to whoever took its claim."""
        return self.at == "end" and self.actor is not None and self.actor.result == DONE

    def start(self, handlers: Registry) -> None:
        """A new process."""
        self.handlers, self.processor = handlers, stepped(handlers)

    def die(self) -> None:
        """End it where it stands. What it held comes again."""
        if self.actor is not None:
            self.actor.kill()
        self.actor, self.taken, self.deliveries = None, [], []
        self.lose_channel()
        self.start(self.handlers)

    def lose_channel(self) -> None:
        """The broker gives its receiver up."""
        EmbeddedConnection.objects.end(self.holder)

    def take(self, pks: list[int]) -> None:
        """Have these delivered."""
        if not EmbeddedConnection.objects.filter(pk=self.holder).exists():
            until = Now() + timedelta(hours=1)
            self.holder = EmbeddedConnection.objects.create(process="model", leased_until=until).pk
        self.actor, self.taken, self.deliveries = None, [], []
        for pk in pks:
            queue = EmbeddedMessage.objects.get(pk=pk).queue
            rows = EmbeddedMessage.objects.take(queue.pk, self.holder, 100)
            row = next(one for one in rows if one.pk == pk)
            EmbeddedMessage.objects.free([one.pk for one in rows if one.pk != pk], self.holder, unseen=True)
            letter = letters.delivered(bytes(row.wire), row.deliveries)
            self.taken.append(pk)
            self.deliveries.append(Arrived(queue.name, *letter, bytes(row.body), row.deliveries > 1))
        if len(pks) == 1 and not queue.name.endswith(".dead"):
            self.begin()
            self.go("look")

    def begin(self) -> None:
        """Have the processor called."""
        self.actor = Actor(self._process, STOPS if self.atomic else STOPS | {"acked", "processor.handled"})

    def _process(self) -> object:
        try:
            if len(self.deliveries) > 1 and self.batch is not None:
                return self.processor.process_batch(self.batch, list(self.deliveries))
            one = self.deliveries[0]
            if one.queue.endswith(".dead"):
                return self.processor.record_dead(one)
            return self.processor.process(one, self._ack)
        except DatabaseUnavailable:
            return "held"

    def _ack(self) -> None:
        EmbeddedMessage.objects.remove([self.taken[0]], self.holder)
        current().passes("acked")

    def go(self, *places: str, order: str = "", by: tuple[str, ...] = ()) -> str:
        """Go on to one of these places, past those that lie between."""
        if self.actor is None:
            self.begin()
        assert self.actor is not None
        if self.is_answered:  # its claim was taken, so that nothing is left to do
            return "end"
        reached = self.actor.go(order)
        while reached in by and reached not in places:
            reached = self.actor.go(order)
        assert reached in places, f"It is at {reached}, not at {places}: {self.actor.result}."
        return reached

    def look(self) -> None:
        """Look again: within one call, or by another where the delivery was set aside or held."""
        by = ("begin", "handler", "processor.rolled_back", "acked", "processor.claimed", "processor.handled")
        if self.go("look", "end", by=by) == "end":
            self.come_again()

    def come_again(self) -> None:
        """Have what was set aside, or held, processed once more."""
        assert self.actor is not None
        result = self.actor.result
        if not self.is_answered:
            assert result == "held" or (isinstance(result, Settlement) and result.action == "set_aside"), result
            self.begin()
            self.go("look")

    def done(self, count: int) -> None:
        """Acknowledge so many deliveries."""
        if self.at in OUTCOMES:
            self.go("end", "look", by=tuple(OUTCOMES))
        EmbeddedMessage.objects.remove(self.taken[:count], self.holder)
        del self.taken[:count], self.deliveries[:count]
