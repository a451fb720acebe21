"""The relay: from the outbox to the broker.

Rows are leased in a short transaction, sent without waiting for each other, and marked when the broker has answered.
No transaction is open while waiting. A crash at any point leaves rows whose lease lapses: they are sent again.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Sequence

from django.db import connections, reset_queries

from messaging import conf, topology
from messaging.backends import get_backend
from messaging.backends.base import Fate, Outgoing
from messaging.exceptions import BrokerUnavailable, TopologyError
from messaging.fates import Held, Judge
from messaging.killpoints import kill_point
from messaging.leases import MARK_DELAY, Leases, Trouble
from messaging.message import storable
from messaging.sealing import seal
from messaging.wake import Listener, can_listen

logger = logging.getLogger("messaging.relay")

WINDOW = 2000  # messages under way at most
WINDOW_BYTES = 64 * 1024 * 1024  # their bodies, roughly
BATCH = 500  # rows leased at once
RECONNECT_PAUSE = 30.0  # seconds between tries to reach the broker, at most
DECLARE_PAUSE = 5.0  # seconds between declarations because of unroutable messages
HEARTBEAT = 10.0  # seconds between updates of the relay's `Worker` row
LISTENING_POLL = 1.0  # seconds between looks where notifications are known to arrive
PACE = 0.01  # seconds between two looks, however often it is woken
BLOCKED_POLL = 0.5  # seconds to wait for news while nothing may be sent
GOODBYE = 10.0  # seconds that what is under way gets when the relay stops


class Relay:
    """Sends one alias's outbox. Any number of relays share the work. Not thread-safe, but for `wake()`.

    Args:
        alias: alias of `MESSAGING`.
        name: shown to operators, unique among running processes; host and process id unless given.
        databases: whose outboxes; the alias's `DATABASES` unless given.
    """

    def __init__(self, alias: str, *, name: str | None = None, databases: Sequence[str] | None = None) -> None:
        self.settings = conf.get(alias)
        self.alias = alias
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:relay:{alias}"
        self._backend = get_backend(alias)
        self._sender = self._backend.sender()
        self._leases = [
            Leases(database, alias, self.name, self.settings.lease) for database in databases or self.settings.databases
        ]
        self._home = self._leases[0].database
        self._listeners: dict[str, Listener] = {}
        self._under_way: dict[str, Held] = {}
        self._judge = Judge()
        self._tokens = itertools.count(1)
        self._body_size = WINDOW_BYTES / 16  # bytes of a typical body; unknown at first, so begin with few
        self._woken = threading.Event()
        self._last_look = self._next_look = self._next_report = self._next_open = self._next_declare = 0.0
        self._failures = 0
        self._is_declared = False
        self._broker, self._alarm = Trouble(), Trouble()

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
        self._report()
        if not self._connect():
            self._record(0.0)
            pause = max(0.0, min(self._next_open - time.monotonic(), 1.0))
            (stop or self._woken).wait(pause if timeout is None else min(pause, timeout))
            return 0
        sent = self._feed()
        self._record(self._pause() if timeout is None else timeout)
        return sent

    def wake(self) -> None:
        """Look at the outbox now. From any thread."""
        self._woken.set()
        self._sender.wake()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and no database that answers has a row that is due."""
        return not any(map(len, self._leases)) and not any(one.wait() == 0 for one in self._leases if one.is_available)

    def _listen(self) -> None:
        for one in self._leases:
            if self.settings.notify and can_listen(one.database):
                self._listeners[one.database] = Listener(one.database, self.alias, self.wake)
                self._listeners[one.database].start()

    def _connect(self) -> bool:
        """Make sure of a connection. After each loss the topology is declared again."""
        if self._sender.is_open and self._is_declared:
            return True
        if self._is_declared and self._sender.trouble:
            self._broker.begin(f"Lost {self.settings.safe_url}; messages wait in the outbox", self._sender.trouble)
        self._is_declared = False
        if time.monotonic() < self._next_open:
            return False
        try:
            self._sender.open()
            self._declare()
            self._is_declared = True
        except BrokerUnavailable as error:
            self._failures += 1
            pause = min(RECONNECT_PAUSE, 0.25 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
            self._next_open = time.monotonic() + pause
            self._broker.begin(f"Cannot reach {self.settings.safe_url}; messages wait in the outbox", error)
            for held in self._judge.suspects.drain():  # another relay may reach it
                held.leases.returned(held.row)
            return False
        self._failures = 0
        self._broker.end(f"Connected to {self.settings.safe_url} again; messages are sent.")
        return True

    def _declare(self) -> None:
        self._next_declare = time.monotonic() + DECLARE_PAUSE
        try:
            topology.warn_once(self.alias, self._backend.declare(topology.build(self.alias)))
        except TopologyError as error:  # the consumer stops over it; what other queues take can still be sent
            topology.say_once(self.alias, str(error))

    def _feed(self) -> int:
        """Send suspects one group at a time; lease and send other rows while none is left and there is room."""
        if self._sender.is_blocked:
            why = self._sender.trouble or "a memory or disk alarm, or a slow disk"
            self._alarm.begin("The broker takes no messages for now; they wait in the outbox", why)
            return 0
        self._alarm.end("The broker takes messages again; they are sent.")
        if self._judge.suspects:
            return 0 if self._under_way else self._send(self._judge.suspects.next_group())
        if self._woken.is_set():
            self._woken.clear()
            self._next_look = min(self._next_look, self._last_look + PACE)
        if time.monotonic() < self._next_look or not self._room():
            return 0
        return self._look()

    def _look(self) -> int:
        """Lease from each database in turn what there is room for, and send it."""
        self._last_look = time.monotonic()
        sent, wait = 0, LISTENING_POLL if self._hears_all() else self.settings.poll_interval
        for one in [lease for lease in self._leases if lease.is_available]:
            due = one.wait()
            limit = self._room()
            if due == 0 and limit:
                rows = one.take(limit)
                sent += self._send([Held(one, row) for row in rows])
                due = 0 if len(rows) == limit else None
            wait = wait if due is None else min(wait, due)
        self._leases.append(self._leases.pop(0))
        self._next_look = self._last_look + wait
        return sent

    def _room(self) -> int:
        """How many rows may be leased: none until a batch fits, so that leases stay few and large."""
        by_size = int(WINDOW_BYTES / max(self._body_size, 1.0))
        free = min(WINDOW, max(by_size, 1)) - len(self._under_way)
        batch = min(BATCH, max(by_size // 4, 1))
        return batch if free >= batch else 0

    def _send(self, held: Sequence[Held]) -> int:
        if not held:
            return 0
        kill_point("relay.leased")
        outgoing = []
        for one in held:
            token = f"{one.row.pk}.{next(self._tokens)}"
            try:
                exchange, routing_key, properties, body = seal(one.row)
            except Exception as error:  # noqa: BLE001 - one bad row must not stop the others
                one.fail(f"It cannot be encoded: {error}")
                continue
            outgoing.append(Outgoing(token, exchange, routing_key, properties, body, one.row.mandatory))
            self._under_way[token] = one
            self._body_size = max(len(body), self._body_size * 0.98)
        try:
            self._sender.send(outgoing)
        except BrokerUnavailable:
            for message in outgoing:
                held_back = self._under_way.pop(message.token)
                held_back.leases.returned(held_back.row)
            return 0
        kill_point("relay.sent")
        return len(outgoing)

    def _record(self, timeout: float) -> None:
        """Wait for news and write down what became of the messages."""
        outcomes = self._sender.outcomes(timeout)
        for outcome in outcomes:
            held = self._under_way.pop(outcome.token, None)
            if held is not None:
                self._judge.decide(outcome, held)
        if any(outcome.fate is Fate.UNROUTABLE for outcome in outcomes) and time.monotonic() >= self._next_declare:
            try:
                self._declare()
            except BrokerUnavailable:
                self._next_declare = 0.0
        for one in self._leases:
            one.write(at_once=not self._under_way)

    def _hears_all(self) -> bool:
        return all(one.database in self._listeners and self._listeners[one.database].has_heard for one in self._leases)

    def _pause(self) -> float:
        """Seconds to wait for news at most."""
        if self._sender.is_blocked:
            return BLOCKED_POLL
        if self._judge.suspects:
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
        status = f"broker: {self._broker.reason}" if self._broker.reason else self._alarm.reason
        home = next(one for one in self._leases if one.database == self._home)
        if home.is_available:
            home.report(host=socket.gethostname(), pid=os.getpid(), status=storable(status, 255))

    def _finish(self) -> None:
        """Wait for what is under way, mark it, hand back the rest."""
        deadline = time.monotonic() + min(GOODBYE, self.settings.stop_timeout)
        while self._under_way and self._sender.is_open and time.monotonic() < deadline:
            self._record(min(0.2, max(0.0, deadline - time.monotonic())))
        self._sender.close(timeout=1.0)
        self._record(0.0)
        for listener in self._listeners.values():
            listener.stop()
        for one in self._leases:
            one.release_all()
            if one.database == self._home:
                one.sign_off()
            connections[one.database].close()
