"""What follows from the fate that the broker gave a sent message.

Where a channel or a connection is lost, the broker does not say over which message. So those that were under way are
sent once more in small groups, then alone, until the one is found.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from messaging import conf
from messaging.backends.base import Fate, Outgoing, SendOutcome
from messaging.models import PublishedMessage
from messaging.models.outbox import UNROUTABLE
from messaging.monitoring import counters
from messaging.relaying.leases import Held, Unsent
from messaging.wire.properties import Properties

T = TypeVar("T")

GROUP = 64  # of thousands of suspects nearly all are innocent; the mates of the culprit are sent once more each
OFTEN = 3  # losses in a row after which a message is in doubt, and losses alone after which it is convicted
MANY = 100_000  # rows of which something is remembered at once
PROBE = "probe"  # how the tokens of messages begin that are sent to see whether a connection carries any

Key = tuple[str, int, str]
LONGEST_PAUSE = 60.0  # seconds between tries of a message that its queue does not take now
# Shares of a pause: few, so that many rows have the same and are written together.
JITTER = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
LOST = f"Each connection is lost over it: {OFTEN} times it was sent alone, where others had been sent before."


class Suspects(Generic[T]):
    """What waits to be sent again with fewer others under way, then with none."""

    def __init__(self) -> None:
        self._first: deque[T] = deque()
        self._again: deque[T] = deque()
        self._group: list[T] = []

    def __len__(self) -> int:
        return len(self._first) + len(self._again)

    def add(self, item: T) -> None:
        """Take in a suspect; one that was in the last group will be sent alone."""
        (self._again if self._is_in_group(item) else self._first).append(item)

    def next_group(self) -> list[T]:
        """The next ones to send while nothing else is under way."""
        if self._again:
            self._group = [self._again.popleft()]
        else:
            self._group = [self._first.popleft() for _ in range(min(GROUP, len(self._first)))]
        return self._group

    def is_alone(self, item: T) -> bool:
        """Whether it was sent alone, so that the fault is its own."""
        return len(self._group) == 1 and self._is_in_group(item)

    def drain(self) -> list[T]:
        """Give up all of them, and return them."""
        items = [*self._again, *self._first]
        self._first.clear()
        self._again.clear()
        return items

    def _is_in_group(self, item: T) -> bool:
        return any(item is one for one in self._group)


class Doubts:
    """What one relay knows of the rows whose fate it never learned."""

    def __init__(self) -> None:
        self._lost: Counter[Key] = Counter()  # in a row, among others
        self._lost_alone: Counter[Key] = Counter()
        self._waiting: Suspects[Held] = Suspects()
        self._is_trying = self._is_others_turn = False

    def __len__(self) -> int:
        return len(self._waiting)

    def lost(self, held: Held) -> bool:
        """Note that a connection was lost with it under way. Returns whether it was to blame."""
        if len(self._lost) > MANY:
            self._lost.clear()
            self._lost_alone.clear()
        if not self._waiting.is_alone(held):
            self._lost[held.key] += 1
            return False
        self._lost_alone[held.key] += 1
        return self._lost_alone[held.key] >= OFTEN

    def answered(self, held: Held) -> None:
        """The broker has said something of it."""
        if self._lost:
            self._lost.pop(held.key, None)
            self._lost_alone.pop(held.key, None)

    def keep(self, held: Held) -> bool:
        """Keep it, if it is in doubt, to be sent with few others or none. Returns whether it is."""
        if self._lost[held.key] < OFTEN:
            return False
        self._waiting.add(held)
        return True

    def screen(self, rows: list[Held]) -> list[Held]:
        """Those of newly leased rows that may be sent with all others; the rest is kept."""
        return [held for held in rows if held.key not in self._lost or not self.keep(held)] if self._lost else rows

    def has_turn(self, *, is_quiet: bool) -> bool:
        """Whether nothing else may be sent now: some of these are under way, or are next.

        Args:
            is_quiet: whether nothing is under way, so that what was tried is answered; then others have their turn.
        """
        if self._is_trying and is_quiet:
            self._is_trying, self._is_others_turn = False, True
        if self._is_trying or (len(self) and not self._is_others_turn):
            return True
        self._is_others_turn = False
        return False

    def next_group(self) -> list[Held]:
        """The next ones to send while nothing else is under way."""
        self._is_trying = True
        return self._waiting.next_group()

    def drain(self) -> list[Held]:
        """Give up those that wait, and return them; what is known of them is kept."""
        return self._waiting.drain()


def probe(number: int) -> Outgoing:
    """A message that nobody gets, to see whether a connection carries any."""
    return Outgoing(
        f"{PROBE}.{number}", "", f"{PROBE}.{uuid.uuid4()}", Properties.build().encode(), b"", mandatory=False
    )


class Proof:
    """Whether the connection of now has carried a message, so that what is lost on it is not the network's doing.

    Attributes:
        holds: that.
    """

    def __init__(self) -> None:
        self.holds = False
        self._opening = 0
        self._earlier: frozenset[str] = frozenset()

    def begin(self, opening: int, under_way: Iterable[str]) -> None:
        """Tell it which opening the present connection is of; what is under way at a new one went by the one before."""
        if opening != self._opening:
            self._opening, self._earlier, self.holds = opening, frozenset(under_way), False

    def note(self, outcome: SendOutcome) -> None:
        """Take an answer into account."""
        is_answer = outcome.fate in (Fate.CONFIRMED, Fate.UNROUTABLE, Fate.NACKED)
        is_refusal = outcome.fate is Fate.REFUSED and outcome.token.startswith(PROBE)  # not one of this side's
        self.holds |= (is_answer or is_refusal) and outcome.token not in self._earlier


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

    def decide(self, outcome: SendOutcome, held: Held) -> None:
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

    def withhold(self, held: Held, reason: str) -> None:
        """Leave for later what was not sent."""
        held.leases.judged(held.row, Unsent(reason, LONGEST_PAUSE * random.choice(JITTER), spend=False))

    def _unknown(self, held: Held, reason: str) -> None:
        if self.doubts.lost(held):
            self.doubts.answered(held)
            held.fail(f"{LOST} {reason}".rstrip())
        elif not self.doubts.keep(held):
            held.hand_back(reason or "The connection was lost.")

    def _unroutable(self, held: Held, reason: str) -> None:
        row = held.row
        counters.tell("returned", row.alias, row.queue)
        problem = f"{UNROUTABLE} {reason}".rstrip()
        if row.attempts < len(self._unroutable_pauses):
            held.leases.judged(row, Unsent(problem, self._unroutable_pauses[row.attempts], unrouted=True))
            return
        held.fail(f"{problem} {_way_out(row)}, then publish it again.")

    def _nacked(self, held: Held, reason: str) -> None:
        """Trouble of the queue's, not of the message: it waits, however long that takes, and nothing is spent."""
        if len(self._nacks) > MANY:
            self._nacks.clear()
        self._nacks[_key(held)] += 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(self._nacks[_key(held)] - 1, 10)) * random.choice(JITTER)
        held.leases.judged(held.row, Unsent(reason or "The broker does not take it now.", pause, spend=False))


def _way_out(row: PublishedMessage) -> str:
    if row.queue:
        return "Create that queue"
    return "Make sure that the exchange exists and that a queue is bound to it, by a handler or by `bindings` in QUEUES"


def _key(held: Held) -> tuple[str, int]:
    return held.leases.database, held.row.id
