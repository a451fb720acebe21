"""Helpers of the backend tests: collecting outcomes and deliveries, with deadlines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

from messaging.backends.allowance import Allowance
from messaging.backends.base import Delivery, Fate, Outgoing, Sender, SendOutcome
from messaging.wire.properties import Properties
from tests.services import Broker
from tests.waiting import DEADLINE, wait_until


def unique(what: str) -> str:
    """A name that no other test uses."""
    return f"{what}-{uuid4().hex[:10]}"


def message(queue: str, body: bytes = b"body", **changes: Any) -> Outgoing:
    """A persistent message straight to a queue; `headers` and properties may be given, and `exchange`, `mandatory`."""
    exchange, key = str(changes.pop("exchange", "")), str(changes.pop("routing_key", queue))
    mandatory = bool(changes.pop("mandatory", True))
    properties = changes.pop("raw", None) or Properties.build(**{"delivery_mode": 2, **changes}).encode()
    assert isinstance(properties, bytes)
    return Outgoing(uuid4().hex, exchange, key, properties, body, mandatory)


def fates(sender: Sender, messages: list[Outgoing], deadline: float = DEADLINE) -> dict[str, SendOutcome]:
    """Wait for the outcome of each message, and that there is one only, by token."""
    found: dict[str, SendOutcome] = {}
    end = time.monotonic() + deadline
    while len(found) < len(messages):
        assert time.monotonic() < end, f"{len(messages) - len(found)} outcomes are missing"
        for outcome in sender.outcomes(0.2):
            assert outcome.token not in found
            found[outcome.token] = outcome
    assert set(found) == {one.token for one in messages}
    return found


def send(sender: Sender, *messages: Outgoing) -> list[SendOutcome]:
    """Send messages and return their outcomes in the same order."""
    sender.send(messages)
    found = fates(sender, list(messages))
    return [found[one.token] for one in messages]


def confirmed(outcomes: Iterable[SendOutcome]) -> bool:
    """Whether all were confirmed."""
    return all(outcome.fate is Fate.CONFIRMED for outcome in outcomes)


# The broker takes a queue to be down while its record says so. The record is kept elsewhere from RabbitMQ 4 on.
MARK = """
    Name = rabbit_misc:r(<<"VHOST">>, queue, <<"QUEUE">>),
    Mark = fun(Queue) -> amqqueue:set_state(Queue, STATE) end,
    case code:ensure_loaded(rabbit_db_queue) of
        {module, _} ->
            rabbit_db_queue:update(Name, Mark);
        _ ->
            {ok, Queue} = rabbit_amqqueue:lookup(Name),
            rabbit_misc:execute_mnesia_transaction(fun() -> rabbit_amqqueue:store_queue(Mark(Queue)) end)
    end.
"""


@contextlib.contextmanager
def crashed(broker: Broker, queue: str, vhost: str = "") -> Iterator[None]:
    """A classic queue that exists and cannot be used, as after its process has crashed too often, or with its node."""

    def mark(state: str) -> None:
        named = MARK.replace("VHOST", vhost or broker.vhost).replace("QUEUE", queue)
        broker.ctl("eval", named.replace("STATE", state))

    mark("crashed")
    try:
        yield
    finally:
        mark("live")


class Deliveries:
    """Collects what a receiver delivers, and counts its changes."""

    def __init__(self) -> None:
        self.all: list[Delivery] = []
        self.changes = 0
        self.thread = ""

    def on_delivery(self, delivery: Delivery) -> None:
        self.thread = threading.current_thread().name
        self.all.append(delivery)

    def on_change(self) -> None:
        self.changes += 1

    def wait(self, count: int, deadline: float = DEADLINE) -> list[Delivery]:
        """Wait until `count` deliveries have come."""
        wait_until(lambda: len(self.all) >= count, deadline=deadline, what=f"{count} deliveries")
        return list(self.all)


class CountedDeliveries(Deliveries):
    """Counts the bytes of what is delivered, as a consumer does.

    Attributes:
        allowance: what may be held.
        most: bytes that were held at once at most.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.allowance = Allowance(limit)
        self.most = 0

    def on_delivery(self, delivery: Delivery) -> None:
        self.allowance.held += len(delivery.body)
        self.most = max(self.most, self.allowance.held)
        super().on_delivery(delivery)

    def finish(self, delivery: Delivery) -> None:
        """Acknowledge it, and let go of it."""
        assert not delivery.redelivered, delivery
        assert delivery.ack()
        self.allowance.let_go(len(delivery.body))
