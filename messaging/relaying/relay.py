"""The relay: from the outbox to the broker.

Rows are leased in a short transaction, sent without waiting for each other, and marked when the broker has answered.
No transaction is open while waiting. A crash at any point leaves rows whose lease lapses: they are sent again.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from django.db import connections, reset_queries

from messaging import conf, signals
from messaging.backends.allowance import default_limit
from messaging.backends.base import Fate, Outgoing
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.killpoints import kill_point
from messaging.models.light import LIGHT
from messaging.publishing.rows import address, seal
from messaging.relaying.connection import Uplink
from messaging.relaying.leases import MARK_DELAY, Held, Leases
from messaging.relaying.listener import Listener, can_listen
from messaging.relaying.verdicts import Judge, Proof, probe
from messaging.wire.bodies import storable

logger = logging.getLogger("messaging.relay")

WINDOW = 4000  # rows held at most: sent and not confirmed, or confirmed and not marked
WINDOW_BYTES = 64 * 1024 * 1024  # their bodies at most; less where there is little memory
BATCH = 1000  # rows leased at once
TOO_LARGE = (
    "Its body has {} bytes as it is stored, more than a relay here can send in the memory that it has. Give the relay "
    'more, set MESSAGING["{}"]["HELD_BYTES"] to at least {}, then publish it again.'
)
HEARTBEAT = 10.0  # seconds between updates of the relay's `Worker` row
LISTENING_POLL = 1.0  # seconds between looks where notifications are known to arrive
BUSY = 0.25  # share of `POLL_INTERVAL` between looks where they are not, soon after one that found something
BUSY_SECONDS = 1.0  # how soon
PACE = 0.005  # seconds between two looks, however often it is woken
BLOCKED_POLL = 0.5  # seconds to wait for news while nothing may be sent
PATIENCE = 30.0  # seconds to keep what is in doubt while the broker cannot be reached; another relay may reach it
GOODBYE = 10.0  # seconds that what is under way gets when the relay stops


class Relay:
    """Sends one alias's outbox. Any number of relays share the work. Not thread-safe, but for `wake()`.

    Args:
        alias: alias of `MESSAGING`.
        name: shown to operators, unique among running processes; host and process id unless given.
        databases: whose outboxes; the alias's `DATABASES` unless given.
        held_bytes: bytes of messages that it may hold; what the settings say, or a share of the memory, unless given.

    Raises ConfigurationError where `RELAY` forbids it.
    """

    def __init__(
        self,
        alias: str,
        *,
        name: str | None = None,
        databases: Sequence[str] | None = None,
        held_bytes: int | None = None,
    ) -> None:
        self.settings = conf.get(alias)
        if not self.settings.relay:
            raise ConfigurationError(
                f'MESSAGING["{alias}"]["RELAY"] is False: nothing is sent from here, and what is published waits.'
            )
        self.alias = alias
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:relay:{alias}"
        self._uplink = Uplink(self.settings)
        self._leases = [
            Leases(database, alias, self.name, self.settings.lease, self._uplink.wake)
            for database in databases or self.settings.databases
        ]
        self._home = self._leases[0]
        self._listeners: dict[str, Listener] = {}
        self._under_way: dict[str, Held | None] = {}  # None for a probe
        self._spans: dict[str, Callable[[str, str], None]] = {}  # what ends them, by token, where there are traces
        self._judge = Judge(self.settings.unroutable)
        self._proof = Proof()
        self._tokens = itertools.count(1)
        self._most = held_bytes or self.settings.held_bytes or default_limit()
        self._window_bytes = min(WINDOW_BYTES, self._most)
        self._heavy: deque[Held] = deque()  # leased, and read when there is room for them
        self._bytes = 0  # of what is under way
        self._body_size = self._window_bytes / 16  # bytes of a typical body; unknown at first, so begin with few
        self._woken = threading.Event()
        self._last_look = self._next_look = self._next_report = self._busy_until = 0.0
        self.looped_at = time.monotonic()  # when it last went round

    def run(self, stop: threading.Event, *, burst: bool = False) -> None:
        """Relay until `stop` is set (call `wake()` after setting it), or with `burst` until nothing is due.

        A broker or database that cannot be reached is waited for. What is under way at the end gets 10 seconds.
        """
        self._listen()
        try:
            while not stop.is_set() and not (self.run_once(stop) == 0 and burst and self.is_idle):
                pass
        finally:
            self._finish()

    def run_once(self, stop: threading.Event | None = None, timeout: float | None = None) -> int:
        """Lease and send what is due, then wait for news and record it. Returns how many rows were sent.

        Args:
            stop: ends a wait for the broker.
            timeout: seconds to wait for news; None for as long as there is nothing to do.
        """
        reset_queries()  # which DEBUG collects
        self.looped_at = time.monotonic()
        self._report()
        if not self._uplink.connect():
            for held in (*self._judge.suspects.drain(), *self._heavy):  # another relay may reach the broker
                held.hand_back()
            self._heavy.clear()
            if self._uplink.down_for > PATIENCE:
                for held in self._judge.doubts.drain():
                    held.hand_back()
            self._record(0.0)
            pause = min(self._uplink.pause, 1.0)
            (stop or self._woken).wait(pause if timeout is None else min(pause, timeout))
            return 0
        self._proof.begin(self._uplink.openings, self._under_way)
        sent = self._feed()
        self._record(self._pause() if timeout is None else timeout)
        return sent

    def wake(self) -> None:
        """Look at the outbox now. From any thread."""
        self._woken.set()
        self._uplink.wake()

    @property
    def status(self) -> str:
        """What is wrong, with the broker or with a database; "" while all is well. From any thread."""
        troubles = [self._uplink.status, *(f"database: {one.trouble}" for one in self._leases if one.trouble)]
        return storable(next(filter(None, troubles), ""), 200)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and no database that answers has a row that is due."""
        return not any(map(len, self._leases)) and not any(one.wait() == 0 for one in self._leases if one.is_available)

    def _listen(self) -> None:
        for one in self._leases:
            if self.settings.notify and can_listen(one.database):
                self._listeners[one.database] = Listener(one.database, self.alias, self.wake)
                self._listeners[one.database].start()

    def _feed(self) -> int:
        """Send suspects one group at a time; lease and send other rows while none is left and there is room."""
        if self._uplink.is_blocked:
            return 0
        if self._heavy:
            return self._send_heavy()
        if self._judge.suspects:
            return 0 if self._under_way else self._send(self._judge.suspects.next_group())
        if self._judge.doubts.has_turn(is_quiet=not self._under_way):
            return 0 if self._under_way else self._try_doubts()
        if self._woken.is_set():
            self._woken.clear()
            for one in self._leases:
                one.expects_more = True
            self._next_look = min(self._next_look, self._last_look + PACE)
        if time.monotonic() < self._next_look or not self._room():
            return 0
        return self._look()

    def _try_doubts(self) -> int:
        """Send some of what is in doubt, if the connection has carried something; else a probe first."""
        if self._proof.holds:
            return self._send(self._judge.doubts.next_group())
        message = probe(next(self._tokens))
        with suppress(BrokerUnavailable):
            self._uplink.send([message])
            self._under_way[message.token] = None
        return 0

    def _look(self) -> int:
        """Lease from each database in turn what there is room for, and send it."""
        self._last_look = time.monotonic()
        sent, soonest = 0, math.inf
        for one in [lease for lease in self._leases if lease.is_available]:
            limit = self._room()
            if one.expects_more and limit:
                sent += self._send(self._judge.doubts.screen([Held(one, row) for row in one.take(limit)]))
            due = 0.0 if one.expects_more else one.wait()
            one.expects_more = due == 0
            soonest = soonest if due is None else min(soonest, due)
        self._leases.append(self._leases.pop(0))
        if sent:
            self._busy_until = self._last_look + BUSY_SECONDS
        patience = self.settings.poll_interval * (BUSY if self._last_look < self._busy_until else 1.0)
        self._next_look = self._last_look + min(soonest, LISTENING_POLL if self._hears_all() else patience)
        return sent

    def _room(self) -> int:
        """How many rows may be leased: none until a batch fits, so that leases stay few and large."""
        by_size = int(self._window_bytes / max(self._body_size, 1.0))
        window = min(WINDOW, max(by_size, 1))
        free = window - sum(map(len, self._leases)) + min(window, len(self._judge.doubts))
        batch = min(BATCH, max(by_size // 4, 1))
        return batch if free >= batch else 0

    def _send(self, held: Sequence[Held]) -> int:
        """Send what is small at once, the rest as far as there is room; returns how many were sent."""
        if not held:
            return 0
        kill_point("relay.leased")
        light: list[Held] = []
        if self._uplink.is_withholding:
            held = [one for one in held if not self._is_withheld(one)]
        for one in held:
            (light if one.row.size <= LIGHT else self._heavy).append(one)
            self._body_size = max(one.row.size, self._body_size * 0.95)
        return (self._hand_over(light) if light else 0) + self._send_heavy()

    def _send_heavy(self) -> int:
        """Read and send large ones while there is room for them, the first one in any case."""
        sent = 0
        while self._heavy and (not self._bytes or self._bytes + self._heavy[0].row.size <= self._window_bytes):
            one = self._heavy.popleft()
            if self._is_withheld(one):
                continue
            if one.row.size > 2 * self._most:
                one.fail(TOO_LARGE.format(one.row.size, self.alias, one.row.size))
                continue
            if one.leases.read(one.row):
                sent += self._hand_over([one])
                one.row.__dict__.pop("body")  # read again, should it be sent again
            else:
                one.hand_back()
        return sent

    def _is_withheld(self, held: Held) -> bool:
        """Whether a queue that is away would miss it; then it is left for later."""
        reason = self._uplink.withholds(*address(held.row))
        if reason:
            self._judge.withhold(held, reason)
        return bool(reason)

    def _hand_over(self, held: Sequence[Held]) -> int:
        outgoing = []
        for one in held:
            token = f"{one.row.id}.{next(self._tokens)}"
            try:
                exchange, routing_key, properties, body = seal(one.row)
            except Exception as error:  # noqa: BLE001 - one bad row must not stop the others
                one.fail(f"It cannot be encoded: {error}")
                continue
            outgoing.append(Outgoing(token, exchange, routing_key, properties, body, one.row.mandatory))
            self._under_way[token] = one
            self._bytes += one.row.size
            if signals.tracing is not None and (end_span := signals.tracing.send(one.row, self.settings)) is not None:
                self._spans[token] = end_span
        try:
            self._uplink.send(outgoing)
        except BrokerUnavailable:
            for message in outgoing:
                self._spans.pop(message.token, None)  # nothing was sent
                held_back = self._under_way.pop(message.token)
                if held_back is not None:
                    self._bytes -= held_back.row.size
                    held_back.hand_back()
            return 0
        kill_point("relay.sent")
        return len(outgoing)

    def _record(self, timeout: float) -> None:
        """Wait for news and write down what became of the messages."""
        outcomes = self._uplink.outcomes(timeout)
        for outcome in outcomes:
            held = self._under_way.pop(outcome.token, None)
            if self._spans and (end_span := self._spans.pop(outcome.token, None)) is not None:
                end_span("" if outcome.fate is Fate.CONFIRMED else outcome.fate.value, outcome.reason)
            if not self._proof.holds:
                self._proof.note(outcome)
            if held is not None:
                self._bytes -= held.row.size
                self._judge.decide(outcome, held)
        if any(outcome.fate is Fate.UNROUTABLE for outcome in outcomes):
            self._uplink.declare_again()
        for one in self._leases:
            one.write(at_once=not self._under_way)

    def _hears_all(self) -> bool:
        return all(one.database in self._listeners and self._listeners[one.database].has_heard for one in self._leases)

    def _pause(self) -> float:
        """Seconds to wait for news at most."""
        if self._uplink.is_blocked:
            return BLOCKED_POLL
        if self._judge.suspects or self._judge.doubts:
            return 0.0 if not self._under_way else BLOCKED_POLL
        wait = self._next_look - time.monotonic() if self._room() else BLOCKED_POLL
        if any(one.has_unmarked for one in self._leases):
            wait = min(wait, MARK_DELAY)
        return max(0.0, min(wait, 1.0))

    def _report(self) -> None:
        """Update the relay's `Worker` row, in the first of its databases."""
        if time.monotonic() < self._next_report:
            return
        self._next_report = time.monotonic() + HEARTBEAT
        if self._home.is_available:
            self._home.report(host=socket.gethostname(), pid=os.getpid(), status=storable(self._uplink.status, 255))

    def _finish(self) -> None:
        """Wait for what is under way, mark it, hand back the rest."""
        deadline = time.monotonic() + min(GOODBYE, self.settings.stop_timeout)
        while self._under_way and self._uplink.is_open and time.monotonic() < deadline:
            self._record(min(0.2, max(0.0, deadline - time.monotonic())))
        self._uplink.close()
        self._record(0.0)
        for listener in self._listeners.values():
            listener.stop()
        for one in self._leases:
            one.release_all()
            if one is self._home:
                one.sign_off()
            connections[one.database].close()
