"""Which databases are up, and since when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from messaging.database import is_database_error, is_up
from messaging.exceptions import DatabaseUnavailable


class Outages:
    """What one process knows about its databases; safe to share between threads."""

    def __init__(self) -> None:
        self.up_since: dict[str, float] = {}

    @contextmanager
    def watch(self, database: str) -> Iterator[None]:
        """Turn the errors of a database that is away into DatabaseUnavailable; let others pass."""
        try:
            yield
        except Exception as error:
            self.raise_if_away(error, database)
            raise
        self.up_since.setdefault(database, time.monotonic())

    def raise_if_away(self, error: BaseException, database: str) -> None:
        """Raise DatabaseUnavailable if that is what an error comes from."""
        if is_database_error(error) and not is_up(database):
            self.up_since.pop(database, None)
            raise DatabaseUnavailable(f'The database "{database}" does not answer.') from error

    def leases_tell(self, database: str, lease: float) -> bool:
        """Whether an expired lease means a dead worker: after an outage every lease looks expired for a while."""
        since = self.up_since.get(database)
        return since is not None and time.monotonic() - since >= lease
