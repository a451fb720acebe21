"""What the broker says about its queues now: the one door through which pages, metrics, health and alerts reach it.

A page must neither wait for a broker that is away nor burden one that is not: a reading is taken at most every
`FRESH` seconds per process, by one thread at a time, and nobody waits for it longer than `PATIENCE`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.db import connections
from django.utils.translation import gettext as _

from messaging import conf
from messaging.backends import get_backend
from messaging.backends.base import QueueDepth
from messaging.exceptions import BrokerUnavailable, ConfigurationError, MessagingError
from messaging.handlers import queues_of
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.admin")

FRESH = 5.0  # seconds for which a reading is not repeated
OLD = 60.0  # seconds after which a reading says nothing of now
PATIENCE = 2.5  # seconds that a page waits; a backend's own limit is about two


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known about an alias's queues.

    Attributes:
        alias: alias of `MESSAGING`.
        address: `host:port` of the broker, without credentials.
        depths: queue name to its last good reading; empty when there never was one.
        taken_at: when that was; None for never.
        error: why there is nothing newer, for people; "" when there is.
        is_unreachable: whether that is because the broker gives no answer.
    """

    alias: str
    address: str = ""
    depths: dict[str, QueueDepth] = field(default_factory=dict)
    taken_at: datetime | None = None
    error: str = ""
    is_unreachable: bool = False

    @property
    def age(self) -> float | None:
        """Seconds since the last good reading; None without one."""
        return None if self.taken_at is None else max(0.0, (datetime.now(UTC) - self.taken_at).total_seconds())

    @property
    def sources(self) -> list[str]:
        """Where the numbers come from, as the backend names it."""
        return sorted({depth.source for depth in self.depths.values() if depth.source})


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits at all brokers for somebody to consume it.

    Attributes:
        ready: messages that wait in queues without a consumer, by alias and queue.
        away: why nothing is known of the queues of an alias, by alias.
        unreachable: the aliases among these whose broker cannot be reached from here.
    """

    ready: Mapping[tuple[str, str], int] = field(default_factory=dict)
    away: Mapping[str, str] = field(default_factory=dict)
    unreachable: frozenset[str] = frozenset()


def read(alias: str, queues: Iterable[str]) -> Reading:
    """The newest reading of these queues, at most `FRESH` seconds old where the broker answers. Never raises."""
    try:
        settings = conf.get(alias)
    except ConfigurationError as error:
        return Reading(alias, error=str(error))
    return _reader(settings).read(tuple(sorted(set(queues))))


def waiting(*, brokers_alone: bool = False) -> Waiting:
    """What waits in all queues without a consumer, of each broker as by `read()`. Never raises.

    Args:
        brokers_alone: leave out the embedded broker, which is a database's table.
    """
    found: dict[tuple[str, str], int] = {}
    away: dict[str, str] = {}
    unreachable = set()
    for alias in conf.aliases():
        queues = queues_of(alias)
        if not queues or (brokers_alone and _is_table(alias)):
            continue
        reading = read(alias, queues)
        if reading.error or not queues <= reading.depths.keys():  # nothing is known of what was not asked
            away[alias] = one_line(reading.error)
            unreachable.update([alias] if reading.is_unreachable else [])
        else:
            found |= _unattended(reading)
    return Waiting(found, away, frozenset(unreachable))


def routes(alias: str, exchange: str, routing_key: str) -> list[str] | None:
    """The queues that a message would reach now, as the broker says; None where it does not, whyever. Never raises."""
    try:
        return get_backend(alias).routes(exchange, routing_key)
    except Exception as error:  # noqa: BLE001  whatever a broker answers, the page still renders
        logger.debug("Where a message would go is not known: %s", error)
        return None


def unattended() -> dict[tuple[str, str], int]:
    """What waits in queues without a consumer, by alias and queue, as far as the last readings know. Never waits.

    It begins a new reading of what was read before, unless the broker is a table.
    """
    with _guard:
        readers = [reader for reader in _readers.values() if reader.is_current]
    found: dict[tuple[str, str], int] = {}
    for reader in readers:
        reading = reader.poke()
        if reading.error or reading.age is None or reading.age > OLD:
            continue
        found |= _unattended(reading)
    return found


def _unattended(reading: Reading) -> dict[tuple[str, str], int]:
    depths, known = reading.depths.items(), queues_of(reading.alias)
    return {(reading.alias, queue): depth.unattended for queue, depth in depths if depth.unattended and queue in known}


def _is_table(alias: str) -> bool:
    try:
        return bool(conf.get(alias).broker_database)
    except ConfigurationError:
        return False


def ready(queues: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """What waits in these queues, by alias and queue, as far as the last readings know. Never waits.

    It begins a new reading of them, unless the broker is a table.
    """
    wanted: dict[str, list[str]] = {}
    for alias, queue in queues:
        wanted.setdefault(alias, []).append(queue)
    found = {}
    for alias, names in wanted.items():
        with suppress(ConfigurationError):
            reading = _reader(conf.get(alias)).poke(names)
            known = {} if reading.error or reading.age is None or reading.age > OLD else reading.depths
            numbers = ((queue, known[queue].ready) for queue in names if queue in known)
            found.update({(alias, queue): number for queue, number in numbers if number is not None})
    return found


def forget() -> None:
    """Drop every reading, so that the next one asks the broker. For tests."""
    with _guard:
        _readers.clear()


class _Reader:
    """The last reading of one broker, and the one thread that may be taking the next."""

    def __init__(self, settings: conf.AliasSettings) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        address = ", ".join(f"{host}:{port}" for host, port in settings.hosts)
        self.reading = Reading(settings.alias, address or settings.safe_url)
        self.queues: tuple[str, ...] = ()
        self.asked_at = -FRESH

    @property
    def is_current(self) -> bool:
        """Whether the settings still say what it was made for."""
        with suppress(ConfigurationError):
            return conf.get(self.settings.alias) == self.settings
        return False

    def read(self, queues: tuple[str, ...]) -> Reading:
        reading = self._read(queues)
        if not reading.error and not set(queues) <= reading.depths.keys():  # it was under way, of other queues
            reading = self._read(queues)
        return reading

    def _read(self, queues: tuple[str, ...]) -> Reading:
        if not self.lock.acquire(timeout=PATIENCE):  # somebody reads a table that gives no sign
            return self._late()
        try:
            stale = time.monotonic() - self.asked_at >= FRESH or not set(queues) <= set(self.queues)
            if self.thread is None and stale:
                if not self.settings.hosts:  # the broker is a table: another thread would see another transaction
                    self.asked_at, self.queues = time.monotonic(), queues
                    self._take(queues)
                    return self.reading
                self._begin(queues)
            thread = self.thread
        finally:
            self.lock.release()
        if thread is not None:
            thread.join(PATIENCE)
            if thread.is_alive():
                return self._late()
        return self.reading

    def poke(self, queues: Iterable[str] = ()) -> Reading:
        """The last reading, of whatever age; a newer one is begun where that is due, of these queues as well."""
        if not self.lock.acquire(blocking=False):  # somebody sees to it already
            return self.reading
        try:
            is_due = time.monotonic() - self.asked_at >= FRESH and self.thread is None
            wanted = tuple(sorted({*self.queues, *queues}))
            if is_due and self.settings.hosts and wanted:
                self._begin(wanted)
        finally:
            self.lock.release()
        return self.reading

    def _begin(self, queues: tuple[str, ...]) -> None:
        self.asked_at, self.queues = time.monotonic(), queues
        self.thread = threading.Thread(target=self._take_apart, args=(queues,), name="messaging-readings", daemon=True)
        self.thread.start()

    def _take_apart(self, queues: tuple[str, ...]) -> None:
        try:
            self._take(queues)
        finally:
            connections.close_all()  # of this thread: whatever it asked

    def _take(self, queues: tuple[str, ...]) -> None:
        try:
            depths = get_backend(self.settings.alias).depths(queues)
            self.reading = Reading(
                self.settings.alias,
                self.reading.address,
                {depth.queue: depth for depth in depths},
                datetime.now(UTC),
            )
        except BrokerUnavailable as error:
            self.reading = self._failed(str(error), is_unreachable=True)
        except MessagingError as error:
            self.reading = self._failed(str(error))
        except Exception as error:  # noqa: BLE001  whatever a broker answers, the page still renders
            self.reading = self._failed(f"{type(error).__name__}: {error}")
        finally:
            self.thread = None

    def _late(self) -> Reading:
        return self._failed(_("It did not answer in time."), is_unreachable=True)

    def _failed(self, text: str, *, is_unreachable: bool = False) -> Reading:
        last = self.reading
        return Reading(last.alias, last.address, last.depths, last.taken_at, self._safe(text), is_unreachable)

    def _safe(self, text: str) -> str:
        with suppress(MessagingError):
            user, password = self.settings.credentials()
            return text.replace(password, "…") if len(password) > 3 and password != user else text
        return text


_guard = threading.Lock()
_readers: dict[str, _Reader] = {}


def _reader(settings: conf.AliasSettings) -> _Reader:
    """The reader of an alias; a new one when its settings have changed."""
    with _guard:
        reader = _readers.get(settings.alias)
        if reader is None or reader.settings != settings:
            reader = _readers[settings.alias] = _Reader(settings)
        return reader
