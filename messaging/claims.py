"""The claims that this process holds, kept alive while their handlers run."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.db import connections, transaction

from messaging.clock import Now
from messaging.inbox import AlreadyRecorded
from messaging.models import ProcessedMessage
from messaging.outages import Outages


class Claims:
    """Tokens of the inbox rows that this process has claimed; safe to share between threads.

    Args:
        lease: seconds for which a claim holds without being renewed.
        outages: what is known of the databases.
    """

    def __init__(self, lease: float, outages: Outages) -> None:
        self._lease = lease
        self._outages = outages
        self._databases: dict[uuid.UUID, str] = {}
        self._idle: set[uuid.UUID] = set()
        self._lock = threading.Lock()

    @contextmanager
    def held(self, token: uuid.UUID | None, database: str) -> Iterator[None]:
        """Have a claim renewed while its handler runs; it stays ours whatever goes wrong in between."""
        if token is None:
            yield
            return
        with self._lock:
            self._databases[token] = database
            self._idle.discard(token)
        try:
            yield
        except AlreadyRecorded:
            self._drop(token)
            raise
        except BaseException:  # it may well stand: the database went away, or its answer was lost
            with self._lock:
                self._idle.add(token)
            raise
        self._drop(token)

    def is_waiting(self, token: uuid.UUID | None) -> bool:
        """Whether a claim is ours and runs nothing, so that its delivery may go on under it."""
        return token is not None and token in self._idle

    def take(self, token: uuid.UUID | None) -> bool:
        """Go on under a claim that is ours and runs nothing. One delivery may, so that each of two twins has a row."""
        with self._lock:
            if token is None or token not in self._idle:
                return False
            self._idle.discard(token)
            del self._databases[token]
            return True

    def renew(self) -> None:
        """Extend every claim. Raises DatabaseUnavailable."""
        with self._lock:
            # An idle claim may run out: its delivery may have gone to another process, which must not wait for us.
            claims = {token: where for token, where in self._databases.items() if token not in self._idle}
        for database in set(claims.values()):
            tokens = [token for token, where in claims.items() if where == database]
            rows = ProcessedMessage.objects.using(database).filter(
                lease_token__in=tokens, state=ProcessedMessage.State.PROCESSING
            )
            with self._outages.watch(database), transaction.atomic(using=database):
                if connections[database].features.has_select_for_update_skip_locked:
                    # A handler's own transaction locks its row while it runs: waiting for it, the others would lapse.
                    free = rows.select_for_update(skip_locked=True).values_list("pk", flat=True)
                    rows = ProcessedMessage.objects.using(database).filter(pk__in=list(free))
                rows.update(leased_until=Now() + timedelta(seconds=self._lease))

    def _drop(self, token: uuid.UUID) -> None:
        with self._lock:
            self._databases.pop(token, None)
            self._idle.discard(token)
