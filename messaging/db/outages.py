"""Which databases are up, since when, and when they were away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from django.db import Error

from messaging.db.connections import is_database_error, is_lost, is_unable, is_unfit, is_up, reconnect
from messaging.exceptions import DatabaseUnavailable
from messaging.wire.text import one_line

T = TypeVar("T")

REMEMBERED = 16  # outages of one database; what lapsed in an older one was swept long ago


class Outages:
    """What one process knows about its databases; safe to share between threads."""

    def __init__(self) -> None:
        self.up_since: dict[str, float] = {}
        self._began = time.monotonic()
        self._seen: dict[str, float] = {}
        self._away_since: dict[str, float] = {}
        self._past: dict[str, deque[tuple[float, float]]] = {}

    @contextmanager
    def watch(self, database: str) -> Iterator[None]:
        """Turn the errors of a database that is away into DatabaseUnavailable; let others pass."""
        try:
            yield
        except Exception as error:
            self.raise_if_away(error, database)
            raise
        now = self._seen[database] = time.monotonic()
        self.up_since.setdefault(database, now)
        if database in self._away_since:
            self._end(database, now)

    def steadily(self, database: str, record: Callable[[], T]) -> T:
        """Do what may be done twice, once more on a new connection where the first one broke, or may be unfit.

        Raises DatabaseUnavailable where the database is away, or the second connection breaks as well.
        """
        with self.watch(database):
            try:
                return record()
            except Error as error:
                if not is_unfit(error, database):
                    raise
            reconnect(database)
            try:
                return record()
            except Error as error:
                if not is_lost(error, database):
                    raise
                words = f'The connection to the database "{database}" breaks ({one_line(error)})'
                raise DatabaseUnavailable(words, database) from error

    def raise_if_away(self, error: BaseException, database: str) -> None:
        """Raise DatabaseUnavailable if that is what an error comes from."""
        if is_database_error(error) and (is_unable(error) or not is_up(database)):
            self.up_since.pop(database, None)
            self._away_since.setdefault(database, self._seen.get(database, self._began))
            reconnect(database)  # an open connection may lead to a server that has become read-only
            words = f'The database "{database}" cannot be used ({one_line(error)})'
            raise DatabaseUnavailable(words, database) from error

    def leases_tell(self, database: str, lease: float) -> bool:
        """Whether an expired lease means a dead worker: after an outage every lease looks expired for a while."""
        since = self.up_since.get(database)
        return since is not None and time.monotonic() - since >= lease

    def seen(self, database: str) -> list[tuple[float, float]]:
        """The outages of a database that are over: seconds since each began, at the earliest, and since it ended."""
        now = time.monotonic()
        return [(now - begin, now - end) for begin, end in tuple(self._past.get(database, ()))]

    def _end(self, database: str, now: float) -> None:
        begin = self._away_since.pop(database, now)
        self._past.setdefault(database, deque(maxlen=REMEMBERED)).append((begin, now))
