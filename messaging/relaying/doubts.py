"""Finding the message over which the connection to the broker is lost, time after time, without a word of the broker's.

What was under way too often when that happened is in doubt. It stays leased, and is sent in small groups, then alone,
while nothing else is under way and only on a connection that has carried something: a broker that restarts, or a
network that cuts each connection, is nobody's fault. Between two tries other messages have their turn.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable

from messaging.backends.base import Fate, Outcome, Outgoing
from messaging.relaying.leases import Held
from messaging.relaying.suspects import Suspects
from messaging.wire.properties import Properties

OFTEN = 3  # losses in a row after which a message is in doubt, and losses alone after which it is convicted
MANY = 100_000  # rows of which something is remembered at once
PROBE = "probe"  # how the tokens of messages begin that are sent to see whether a connection carries any

Key = tuple[str, int, str]


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

    def note(self, outcome: Outcome) -> None:
        """Take an answer into account."""
        is_answer = outcome.fate in (Fate.CONFIRMED, Fate.UNROUTABLE, Fate.NACKED)
        is_refusal = outcome.fate is Fate.REFUSED and outcome.token.startswith(PROBE)  # not one of this side's
        self.holds |= (is_answer or is_refusal) and outcome.token not in self._earlier
