"""What is published: transactions of many messages of all kinds, each with the effects that it must have."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

from django.db import transaction

from messaging import Message, publish, publish_many
from tools.chaos.workload.handlers import AFTER, OVERSIZED
from tools.chaos.workload.models import Expected

# How often a kind is chosen. A deadly one takes its process along, and with it the work of its neighbours.
WEIGHTS = {
    "bulk": 7500,
    "bulk that fails": 4,
    "single": 1100,
    "direct": 250,
    "scheduled": 250,
    "twin": 80,
    "flaky": 120,
    "chain": 400,
    "long": 20,
    "wanderer": 150,
    "nomad": 20,
    "marathon": 2,
    "picky": 15,
    "deadly": 1,
    "forker": 2,
    "novel": 40,
    "large": 4,
    "oversized": 4,
}
BURST = 8  # large messages at once
LARGE, OVERSIZE = 300_000, 1_400_000  # bytes: of the first few fit into what their consumer may hold, of the last none
JOBS = ("long", "nomad", "marathon")  # have no transaction, and publish on
LARGEST = 80  # messages of one transaction, at most
FIRST = ("large", "oversized")  # what each publisher begins with: a short run has some of them, too
ROLLED_BACK = 0.05  # share of the transactions


class ChangedItsMind(Exception):
    """Rolls a transaction back on purpose."""


@dataclass
class Parcel:
    """The messages of one transaction, and the keys that its ledger rows have."""

    messages: list[Message] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    repeatable_keys: list[str] = field(default_factory=list)

    def add(self, kind: str, chance: random.Random) -> None:
        """One message more, two for a twin, several for large ones."""
        for _ in range(BURST if kind == "large" else 1):
            self._add_one(kind, chance)

    def _add_one(self, kind: str, chance: random.Random) -> None:
        key = uuid.UUID(int=chance.getrandbits(128)).hex + (OVERSIZED if kind == "oversized" else "")
        size = {"large": LARGE, "oversized": OVERSIZE}.get(kind) or chance.choice((10, 200, 200, 4000))
        payload: dict[str, object] = {"key": key, "filling": "x" * size}
        (self.repeatable_keys if kind in JOBS else self.keys).append(key)
        if kind == "chain" or kind in JOBS:
            self.keys.append(key + AFTER)
        if kind in ("flaky", "bulk that fails"):
            payload["failures"] = chance.randint(1, 3)
        elif kind == "wanderer":
            payload["failures"] = chance.choice((0, 0, 1, 3))
        elif kind == "marathon":
            payload["seconds"] = chance.uniform(4.0, 15.0)
        elif kind in JOBS:
            payload["seconds"] = chance.choice((0.05, 0.2, 1.0, 7.0))
            payload["failures"] = chance.choice((0, 0, 0, 1))
        elif kind == "deadly":
            payload["exits"] = chance.random() < 0.5
        elif kind == "forker":
            payload["hangs"], payload["seconds"] = chance.random() < 0.3, chance.choice((0.1, 2.0, 20.0))
        self.messages += _messages(kind, key, payload, chance)


def _messages(kind: str, key: str, payload: dict[str, object], chance: random.Random) -> list[Message]:
    match kind:
        case "direct":
            return [Message("chaos.single", payload, queue="single")]
        case "scheduled":
            return [Message("chaos.single", payload, delay=chance.uniform(0.5, 10.0))]
        case "twin":
            return [Message("chaos.single", payload, message_id=key)] * 2
        case "oversized":
            return [Message("chaos.oversized", payload, message_id=key)]  # its row shows no payload to be found by
        case "bulk that fails":
            return [Message("chaos.bulk", payload)]
    return [Message(f"chaos.{kind}", payload)]


def compose(chance: random.Random, *wanted: str) -> Parcel:
    """A parcel of up to `LARGEST` messages, or of the kinds that are `wanted`."""
    parcel = Parcel()
    for kind in wanted or chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=chance.randint(1, LARGEST)):
        parcel.add(kind, chance)
    return parcel


def send(parcel: Parcel, chance: random.Random) -> int:
    """Publish a parcel and write its ledger in one transaction, or roll both back. Returns how many were published."""
    try:
        with transaction.atomic():
            if chance.random() < 0.8:
                publish_many(parcel.messages)
            else:
                for message in parcel.messages:
                    _publish(message)
            rows = [Expected(key=key) for key in parcel.keys]
            Expected.objects.bulk_create(
                [*rows, *(Expected(key=key, may_repeat=True) for key in parcel.repeatable_keys)]
            )
            if chance.random() < ROLLED_BACK:
                raise ChangedItsMind
    except ChangedItsMind:
        return 0
    return len(parcel.messages)


def _publish(message: Message) -> None:
    publish(
        message.routing_key,
        message.payload,
        queue=message.queue,
        message_id=message.message_id,
        delay=message.delay,
    )
