"""A relay's way to the broker: connected and declared, or trying to be; and what is wrong with it, said once."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterator, Sequence

from messaging import topology
from messaging.backends import get_backend
from messaging.backends.base import Outgoing, SendOutcome
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable, QueueUnavailable, TopologyError
from messaging.handlers import topic_matches
from messaging.monitoring.conditions import BROKER_TROUBLE
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.relay")
RECONNECT_PAUSE = 30.0  # seconds between tries to reach the broker, at most
DECLARE_PAUSE = 5.0  # seconds between declarations because of unroutable messages, or that failed


class Trouble:
    """Says once that something is wrong, and once that it is well again."""

    def __init__(self) -> None:
        self.reason = ""

    def begin(self, message: str, reason: object) -> None:
        """Log `message` unless this trouble was logged before."""
        if not self.reason:
            logger.warning("%s: %s", message, one_line(reason))
        self.reason = str(reason) or message

    def end(self, message: str) -> None:
        """Log `message` if there was trouble."""
        if self.reason:
            logger.warning("%s", message)
        self.reason = ""


class Uplink:
    """One publishing connection, replaced after each loss. Not thread-safe, but for `wake()`.

    Args:
        settings: the alias's.
    """

    def __init__(self, settings: AliasSettings) -> None:
        self._settings = settings
        self._backend = get_backend(settings.alias)
        self._sender = self._backend.sender()
        self._is_declared = False
        self._failures = 0
        self._down_since: float | None = None
        self.openings = 0  # how often a connection was made
        self._next_open = self._next_declare = self._next_look = 0.0
        self._broker, self._alarm, self._away = Trouble(), Trouble(), Trouble()
        self._withheld: frozenset[tuple[str, str]] = frozenset()  # exchanges and patterns

    @property
    def is_open(self) -> bool:
        """Whether the connection stands, as far as this side can tell."""
        return self._sender.is_open

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes nothing for now; said once."""
        if self._sender.is_blocked:
            why = self._sender.trouble or "a memory or disk alarm, or a slow disk"
            self._alarm.begin("The broker takes no messages for now; they wait in the outbox", why)
            return True
        self._alarm.end("The broker takes messages again; they are sent.")
        return False

    @property
    def status(self) -> str:
        """What is wrong, in words; "" while all is well."""
        broker = f"{BROKER_TROUBLE}{self._broker.reason}" if self._broker.reason else ""
        return broker or self._alarm.reason or self._away.reason

    @property
    def pause(self) -> float:
        """Seconds until the next try to connect."""
        return max(0.0, self._next_open - time.monotonic())

    @property
    def down_for(self) -> float:
        """Seconds since the broker was last to be reached; 0 unless a try has failed."""
        return 0.0 if self._down_since is None else time.monotonic() - self._down_since

    def connect(self) -> bool:
        """Make sure of a connection, as often as that may be tried. After each loss the topology is declared again."""
        if self._sender.is_open and self._is_declared:
            if self._away.reason and time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + RECONNECT_PAUSE
                self.declare_again()
            return True
        url = self._settings.safe_url
        if self._is_declared and self._sender.trouble:
            self._broker.begin(f"Lost {url}; messages wait in the outbox", self._sender.trouble)
        self._is_declared = False
        if self.pause:
            return False
        try:
            self._sender.open()
            self.openings += 1
            self._declare()
            self._is_declared = True
        except BrokerUnavailable as error:
            self._failures += 1
            self._down_since = self._down_since or time.monotonic()
            longest = DECLARE_PAUSE if self._sender.is_open else RECONNECT_PAUSE
            pause = min(longest, 0.25 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
            self._next_open = time.monotonic() + pause
            self._broker.begin(f"Cannot reach {url}; messages wait in the outbox", error)
            return False
        self._failures, self._down_since = 0, None
        self._broker.end(f"Connected to {url} again; messages are sent.")
        return True

    @property
    def is_withholding(self) -> bool:
        """Whether some messages must wait; see `withholds()`."""
        return bool(self._withheld)

    def withholds(self, exchange: str, routing_key: str) -> str:
        """Why a message must wait: a queue that is away would take it, and the broker knows no route there. Else ""."""
        is_missed = any(exchange == one and topic_matches(pattern, routing_key) for one, pattern in self._withheld)
        return self._away.reason if is_missed else ""

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Hand over messages. Raises BrokerUnavailable, with nothing handed over, when there is no connection."""
        self._sender.send(messages)

    def outcomes(self, timeout: float) -> list[SendOutcome]:
        """Wait up to `timeout` seconds for news and return all there is."""
        return self._sender.outcomes(timeout)

    def declare_again(self) -> None:
        """Declare the known topology, because something of it seems to be missing; not too often."""
        if time.monotonic() >= self._next_declare:
            try:
                self._declare()
            except BrokerUnavailable:
                self._next_declare = time.monotonic() + DECLARE_PAUSE

    def wake(self) -> None:
        """Make a waiting `outcomes()` return now. From any thread."""
        self._sender.wake()

    def close(self) -> None:
        """Disconnect."""
        self._sender.close(timeout=1.0)

    def _declare(self) -> None:
        self._next_declare = time.monotonic() + DECLARE_PAUSE
        alias = self._settings.alias
        try:
            topology.warn_once(alias, self._backend.declare(topology.build(alias)))
        except TopologyError as error:  # the consumer stops over it; what other queues take can still be sent
            topology.say_once(alias, str(error))
        except QueueUnavailable as error:
            self._withheld = frozenset(self._taken_by(error.queues))
            self._away.begin("A queue is away; what it would take waits, all else is sent", error)
            return
        self._withheld = frozenset()
        self._away.end("All queues are there again.")

    def _taken_by(self, queues: Collection[str]) -> Iterator[tuple[str, str]]:
        """Exchanges with the patterns of what these queues take; of others' exchanges, whose type is unknown, all."""
        for spec in topology.build(self._settings.alias).queues:
            if spec.name in queues:
                yield "", spec.name
                for exchange, pattern in spec.bindings:
                    yield exchange, pattern if exchange == self._settings.exchange else "#"
