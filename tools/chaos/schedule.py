"""Which fault happens when: a pure function of the seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

PROCESSES, NETWORK, DATABASE, BROKER, OPERATOR = "processes", "network", "database", "broker", "operator"
FAILOVER = "database failed over"

# Seconds from one fault to the next in each lane; lanes run side by side.
PACE = {PROCESSES: 7.0, NETWORK: 20.0, DATABASE: 45.0, BROKER: 60.0, OPERATOR: 30.0}


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        lane: faults of one lane follow each other.
        cards: how often it is in the deck that its lane is dealt from.
        shortest, longest: seconds that it lasts.
    """

    lane: str
    cards: int = 1
    shortest: float = 0.0
    longest: float = 0.0


KINDS = {
    "relay killed": Kind(PROCESSES, 2),
    "consumer's child killed": Kind(PROCESSES, 2),
    "consumer's supervisor killed": Kind(PROCESSES),
    "publisher killed": Kind(PROCESSES),
    "consumer stopped": Kind(PROCESSES, 3, 0.0, 4.0),
    "process frozen": Kind(PROCESSES, 2, 1.0, 9.0),
    "connections reset": Kind(NETWORK, 2),
    "network silent": Kind(NETWORK, 1, 3.0, 15.0),
    "network slow": Kind(NETWORK, 1, 3.0, 8.0),
    "database sessions ended": Kind(DATABASE),
    "PostgreSQL killed": Kind(DATABASE, 1, 0.2, 4.0),
    "PostgreSQL stopped": Kind(DATABASE, 1, 0.2, 12.0),
    FAILOVER: Kind(DATABASE, 1, 0.2, 3.0),
    "RabbitMQ killed": Kind(BROKER, 2, 0.0, 3.0),
    "RabbitMQ restarted": Kind(BROKER, 1, 0.0, 3.0),
    "memory alarm": Kind(BROKER, 1, 1.0, 6.0),
    "messages replayed": Kind(OPERATOR, 2),
    "queue purged": Kind(OPERATOR, 2, 0.5, 4.0),
    "handlers moved": Kind(OPERATOR, 1),
    "release deployed": Kind(OPERATOR, 1, 2.0, 8.0),
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds from the start.
        kind: a key of `KINDS`.
        seconds: how long it lasts.
        choice: a number from 0 to 1 that chooses the victim.
    """

    at: float
    kind: str
    seconds: float
    choice: float

    @property
    def lane(self) -> str:
        """The lane of its kind."""
        return KINDS[self.kind].lane


def plan(seed: str, length: float, kinds: Collection[str] = tuple(KINDS)) -> list[Fault]:
    """The faults of a run of `length` seconds, in order; only of `kinds`.

    A short run is denser, so that each lane has its turn.
    """
    faults: list[Fault] = []
    for lane, pace in PACE.items():
        chance = random.Random(f"{seed} {lane}")
        dealt = _deal([kind for kind in kinds if KINDS[kind].lane == lane], chance)
        pause = min(pace, length / 2.5)
        at = pause * chance.uniform(0.3, 0.8)
        while at < length:
            kind = next(dealt, None)
            if kind is None:
                break
            seconds = chance.uniform(KINDS[kind].shortest, KINDS[kind].longest)
            faults.append(Fault(at, kind, min(seconds, length / 4), chance.random()))
            at += pause * chance.uniform(0.6, 1.4)
    return sorted(faults, key=lambda fault: fault.at)


def _deal(kinds: list[str], chance: random.Random) -> Iterator[str]:
    """Kinds from a shuffled deck, again and again; nothing from an empty one."""
    deck = [kind for kind in kinds for _ in range(KINDS[kind].cards)]
    while deck:
        chance.shuffle(deck)
        yield from deck
