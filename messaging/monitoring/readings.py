"""What the broker says about its queues right now: the one door through which the admin and metrics reach the broker.

A page must neither wait for a broker that is away nor burden one that is not: a reading is taken at most every
`FRESH` seconds per process, by one thread at a time, and nobody waits for it longer than `PATIENCE`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.db import connections
from django.utils.translation import gettext as _

from messaging import conf
from messaging.backends import get_backend
from messaging.backends.base import QueueDepth
from messaging.exceptions import ConfigurationError, MessagingError
from messaging.handlers import queues_of

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
    """

    alias: str
    address: str = ""
    depths: dict[str, QueueDepth] = field(default_factory=dict)
    taken_at: datetime | None = None
    error: str = ""

    @property
    def age(self) -> float | None:
        """Seconds since the last good reading; None without one."""
        return None if self.taken_at is None else max(0.0, (datetime.now(UTC) - self.taken_at).total_seconds())

    @property
    def source(self) -> str:
        """Where the numbers come from, as the backend names it."""
        return ", ".join(sorted({depth.source for depth in self.depths.values() if depth.source}))


def read(alias: str, queues: Iterable[str]) -> Reading:
    """The newest reading of these queues, at most `FRESH` seconds old where the broker answers. Never raises."""
    try:
        settings = conf.get(alias)
    except ConfigurationError as error:
        return Reading(alias, error=str(error))
    return _reader(settings).read(tuple(sorted(set(queues))))


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
    found = {}
    for reader in readers:
        reading = reader.poke()
        if reading.error or reading.age is None or reading.age > OLD:
            continue
        for queue, depth in reading.depths.items():
            if depth.unattended and queue in queues_of(reading.alias):
                found[reading.alias, queue] = depth.unattended
    return found


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
        with self.lock:
            stale = time.monotonic() - self.asked_at >= FRESH or not set(queues) <= set(self.queues)
            if self.thread is None and stale:
                if not self.settings.hosts:  # the broker is a table: another thread would see another transaction
                    self.asked_at, self.queues = time.monotonic(), queues
                    self._take(queues)
                    return self.reading
                self._begin(queues)
            thread = self.thread
        if thread is not None:
            thread.join(PATIENCE)
            if thread.is_alive():
                return self._failed(_("It did not answer in time."))
        return self.reading

    def poke(self, queues: Iterable[str] = ()) -> Reading:
        """The last reading, of whatever age; a newer one is begun where that is due, of these queues as well."""
        with self.lock:
            is_due = time.monotonic() - self.asked_at >= FRESH and self.thread is None
            wanted = tuple(sorted({*self.queues, *queues}))
            if is_due and self.settings.hosts and wanted:
                self._begin(wanted)
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
        except MessagingError as error:
            self.reading = self._failed(str(error))
        except Exception as error:  # noqa: BLE001  whatever a broker answers, the page still renders
            self.reading = self._failed(f"{type(error).__name__}: {error}")
        finally:
            self.thread = None

    def _failed(self, text: str) -> Reading:
        last = self.reading
        return Reading(last.alias, last.address, last.depths, last.taken_at, self._safe(text))

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
