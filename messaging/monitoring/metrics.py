"""Counting for metrics, where that is on; and what the tables and the brokers tell for them.

Nothing imports this where metrics are off. Where they are on, each message costs some microseconds and no statement.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from django.db import Error, connections, transaction

from messaging import conf
from messaging.conf.rules import dead_queue
from messaging.db.clock import in_utc
from messaging.db.patience import bound_here
from messaging.handlers import queues_of, registry
from messaging.metrics import names
from messaging.metrics.names import Family
from messaging.metrics.tally import Found, Tally, Totals, open_in, read_folder
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring import counters, readings
from messaging.monitoring.conditions import alive, silent
from messaging.monitoring.databases import ask_each, home, known
from messaging.monitoring.snapshot import MOST, Snapshot
from messaging.monitoring.snapshot import read as look
from messaging.publishing import publisher
from messaging.publishing.rounds import not_back
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.metrics")

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # as prometheus-client has it
EVERY = 15.0  # seconds between two looks at the site, where a process of ours serves metrics
FRESH = 5.0  # seconds for which a look is good enough for a web process
PATIENCE = 10.0  # seconds for a database that gives no sign
_OUT = {
    "published": names.RELAYED,
    "unpublished": names.UNSENDABLE,
    "returned": names.RETURNED,
}
_IN = {"retried": names.RETRIED, "failed": names.FAILED, "interrupted": names.INTERRUPTED}

Gauge = tuple[Family, tuple[str, ...], float]


class Counting:
    """Counts what this process does. Safe to call from any thread.

    Args:
        make: makes the tally, when something is counted first, and again in a process that was forked.
        tally: the first one.
    """

    def __init__(self, make: Callable[[], Tally], tally: Tally | None = None) -> None:
        self._make = make
        self._tally = tally
        self._lock = threading.Lock()

    @property
    def tally(self) -> Tally:
        """Where this process counts."""
        return self._tally if self._tally is not None else self._first()

    def count(self, kind: str, alias: str, queue: str, handler: str, number: int) -> None:
        """See `counters.Observer`."""
        if kind in _OUT:
            self.tally.add(_OUT[kind], (alias, queue), number)
        else:
            self.tally.add(_IN[kind], (alias, queue, handler), number)

    def processed(self, alias: str, queue: str, handler: str, seconds: float, ids: Sequence[str]) -> None:
        """See `counters.Observer`."""
        tally, labels, number = self.tally, (alias, queue, handler), len(ids)
        tally.add(names.PROCESSED, labels, number)
        tally.observe(names.DURATION, labels, seconds, number)
        now = time.time()
        for made, share in counters.samples(ids):
            tally.observe(names.CRITICAL, labels, max(0.0, now - made), share)

    def saved(self, rows: Sequence[PublishedMessage], database: str) -> None:
        """Count rows once their transaction has committed."""
        found = Counter((row.alias, row.queue) for row in rows)
        transaction.on_commit(partial(self._committed, found), using=database, robust=True)

    def begin_with(self, alias: str) -> None:
        """Have a zero for whatever the handlers of an alias may come to, so that the first one is seen as a rise."""
        for handler in registry.all(alias):
            for family in (names.PROCESSED, names.RETRIED, names.FAILED):
                self.tally.add(family, (alias, handler.queue, handler.name), 0)

    def forked(self) -> None:
        """This process is a copy of another one, which goes on counting where it did."""
        self._tally = None
        self._lock = threading.Lock()

    def _first(self) -> Tally:
        with self._lock:
            if self._tally is None:
                self._tally = self._make()
            return self._tally

    def _committed(self, found: Counter[tuple[str, str]]) -> None:
        for labels, number in found.items():
            self.tally.add(names.PUBLISHED, labels, number)


_counting: Counting | None = None


def start(tally: Tally | None = None) -> Counting:
    """Count from now on.

    Args:
        tally: where; None for a process like others of its kind, such as those of a web server: in the folder that
            `PROMETHEUS_MULTIPROC_DIR` names, else in memory of its own.
    """
    global _counting
    if _counting is None and hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=_after_fork)
    # What a handler forks is no child of the supervisor's: nobody asks it.
    _counting = Counting(_own, None) if tally is None else Counting(Tally, tally)
    counters.observer = _counting
    publisher.on_saved = _counting.saved
    return _counting


def stop() -> None:
    """Count no longer. For tests."""
    counters.observer = publisher.on_saved = None


def read() -> Found:
    """What this process has counted, and all others that count in the same folder, with what the site tells now."""
    folder, own = _folder(), _counting
    found = read_folder(folder) if folder is not None else [own.tally.read()] if own is not None else []
    now = time.time()
    gauges = {(family.name, labels): (value, now) for family, labels, value in _fresh_gauges()}
    return Totals().with_([*found, gauges])


class SiteReader(threading.Thread):
    """Looks at the tables and the brokers now and then, so that no scrape waits for either.

    What it cannot read any more is no longer told, after `tally.OLD` seconds.

    Args:
        tally: where it tells.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__(name="messaging-metrics", daemon=True)
        self._tally = tally

    def run(self) -> None:
        """Until the process ends."""
        for database in known():
            bound_here(database, PATIENCE)
        while True:
            self._tally.set(gauges())
            connections.close_all()  # between two looks others need them more
            time.sleep(EVERY)


def gauges() -> list[Gauge]:
    """What the tables and the brokers tell of the whole site. Never raises."""
    try:
        now = look()
        found = [*_of_outboxes(now), *_of_workers(now), *_of_rounds()]
        found += [(names.PAUSED, (pause.alias, pause.queue), 1.0) for pause in now.pauses]
        found += [(names.DATABASE_UP, (name,), 1.0) for name in now.by_database]
        found += [(names.DATABASE_UP, (name,), 0.0) for name in now.away]
    except Exception as error:  # noqa: BLE001  whatever it is, a scrape is answered
        logger.debug("The tables cannot be read: %s", one_line(error))
        found = [(names.DATABASE_UP, (home(),), 0.0)]
        if isinstance(error, Error):
            connections[home()].close()
    return [*found, *_of_queues()]


def _of_outboxes(now: Snapshot) -> Iterator[Gauge]:
    for alias, box in now.outboxes.items():
        late = (now.now - in_utc(box.oldest)).total_seconds() if box.oldest is not None else 0.0
        yield names.DUE, (alias,), box.due
        yield names.OLDEST_DUE, (alias,), max(0.0, late)
        yield names.UNROUTED, (alias,), box.unrouted
        yield names.UNSENT, (alias,), box.failed


def _of_workers(now: Snapshot) -> Iterator[Gauge]:
    kinds = [(alias, kind) for alias in conf.aliases() for kind in ("consume", "relay")]
    for family, workers in ((names.WORKERS, alive(now)), (names.SILENT, silent(now))):
        found = Counter(dict.fromkeys(kinds, 0))
        found.update((worker.alias, worker.kind) for worker in workers)
        yield from ((family, labels, number) for labels, number in found.items())


def _of_rounds() -> Iterator[Gauge]:
    found = Counter(dict.fromkeys(conf.aliases(), 0))
    for own in ask_each(_rounds_away).values():
        found.update(own)
    yield from ((names.NOT_BACK, (alias,), number) for alias, number in found.items())


def _rounds_away(database: str) -> dict[str, int]:
    rows = not_back(ProcessedMessage.objects.using(database)).order_by("state", "pk")
    return Counter(rows.values_list("alias", flat=True)[: MOST + 1])


def _of_queues() -> Iterator[Gauge]:
    for alias in conf.aliases():
        queues = queues_of(alias)
        reading = readings.read(alias, {*queues, *map(dead_queue, queues)})
        if reading.error or reading.age is None or reading.age > readings.OLD:
            continue
        for queue, depth in reading.depths.items():
            told = ((names.READY, depth.ready), (names.UNACKED, depth.unacked), (names.CONSUMERS, depth.consumers))
            yield from (
                (family, (alias, queue), float(number))
                for family, number in told
                if depth.exists and number is not None
            )


_guard = threading.Lock()
_last: tuple[float, Iterable[Gauge]] = (-FRESH, ())


def _fresh_gauges() -> Iterable[Gauge]:
    global _last
    if not _guard.acquire(timeout=FRESH):  # of several that ask at once, one looks, as long as that may take
        return _last[1]
    try:
        if time.monotonic() - _last[0] >= FRESH:
            _last = time.monotonic(), gauges()
        return _last[1]
    finally:
        _guard.release()


def _own() -> Tally:
    folder = _folder()
    if folder is not None:
        try:
            return open_in(folder)
        except (OSError, ImportError) as error:  # Windows has no locks of that kind
            logger.warning("Metrics of this process are not added up with others: %s", one_line(error))
    return Tally()


def _folder() -> Path | None:
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def _after_fork() -> None:
    if _counting is not None:
        _counting.forked()
