"""What follows from the fate that the broker gave a sent message."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from messaging import conf
from messaging.backends.base import Fate, Outcome
from messaging.models import PublishedMessage
from messaging.models.outbox import UNROUTABLE
from messaging.relaying.doubts import OFTEN, Doubts
from messaging.relaying.leases import Held, Verdict
from messaging.relaying.suspects import Suspects

LONGEST_PAUSE = 60.0  # seconds between tries of a message that its queue does not take now
# Shares of a pause: few, so that many rows have the same and are written together.
JITTER = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
LOST = f"Each connection is lost over it: {OFTEN} times it was sent alone, where others had been sent before."
MANY = 100_000  # rows whose refusals are counted at once


class Judge:
    """Decides, and notes the decision with the row's leases. `suspects` and `doubts` are for the relay to resend.

    Args:
        unroutable: seconds before each further try of a message that no queue took.
    """

    def __init__(self, unroutable: Sequence[float] = conf.UNROUTABLE) -> None:
        self._unroutable_pauses = unroutable
        self.suspects: Suspects[Held] = Suspects()
        self.doubts = Doubts()
        self._nacks: Counter[tuple[str, int]] = Counter()

    def decide(self, outcome: Outcome, held: Held) -> None:
        """Decide about one message."""
        if outcome.fate not in (Fate.UNKNOWN, Fate.UNANSWERED):
            self.doubts.answered(held)
        match outcome.fate:
            case Fate.CONFIRMED:
                if self._nacks:
                    self._nacks.pop(_key(held), None)
                held.leases.confirmed(held.row)
            case Fate.UNROUTABLE:
                self._unroutable(held, outcome.reason)
            case Fate.NACKED:
                self._nacked(held, outcome.reason)
            case Fate.SUSPECT if not self.suspects.is_alone(held):
                self.suspects.add(held)
            case Fate.REFUSED | Fate.SUSPECT:
                held.fail(outcome.reason or "The broker refuses it.")
            case Fate.UNKNOWN:
                self._unknown(held, outcome.reason)
            case Fate.UNANSWERED:
                held.hand_back()

    def _unknown(self, held: Held, reason: str) -> None:
        if self.doubts.lost(held):
            self.doubts.answered(held)
            held.fail(f"{LOST} {reason}".rstrip())
        elif not self.doubts.keep(held):
            held.hand_back()

    def _unroutable(self, held: Held, reason: str) -> None:
        row = held.row
        problem = f"{UNROUTABLE} {reason}".rstrip()
        if row.attempts < len(self._unroutable_pauses):
            held.leases.judged(row, Verdict(problem, self._unroutable_pauses[row.attempts]))
            return
        held.fail(f"{problem} {_way_out(row)}, then publish it again.")

    def _nacked(self, held: Held, reason: str) -> None:
        """Trouble of the queue's, not of the message: it waits, however long that takes, and nothing is spent."""
        if len(self._nacks) > MANY:
            self._nacks.clear()
        self._nacks[_key(held)] += 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(self._nacks[_key(held)] - 1, 10)) * random.choice(JITTER)
        held.leases.judged(held.row, Verdict(reason or "The broker does not take it now.", pause, spend=False))


def _way_out(row: PublishedMessage) -> str:
    if row.queue:
        return "Create that queue"
    return "Make sure that the exchange exists and that a queue is bound to it, by a handler or by `bindings` in QUEUES"


def _key(held: Held) -> tuple[str, int]:
    return held.leases.database, held.row.id
