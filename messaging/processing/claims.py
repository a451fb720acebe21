"""The claims that this process holds, kept alive while their handlers run."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.clock import Now
from messaging.db.outages import Outages
from messaging.db.patience import note_line
from messaging.models import ProcessedMessage
from messaging.processing.inbox import AlreadyRecorded

LATE = 2 / 3  # of a lease without a renewal, which is due each third


@dataclass(eq=False, slots=True)
class Claim:
    """One claim of this process.

    Attributes:
        token, database: which row it is.
        name: what the log calls its message.
        at_broker: whether its handler's transaction is recorded in the row, which it locks while it runs.
        connection: of the thread that runs it.
        renewed_at: when it was last made or renewed, CLOCK_MONOTONIC.
        is_idle: whether it runs nothing, because its database went away or a twin was in the way.
    """

    token: uuid.UUID
    database: str
    name: str = ""
    at_broker: bool = False
    connection: BaseDatabaseWrapper | None = None
    renewed_at: float = field(default_factory=time.monotonic)
    is_idle: bool = False


class Claims:
    """The inbox rows that this process has claimed; safe to share between threads.

    Args:
        lease: seconds for which a claim holds without being renewed.
        outages: what is known of the databases.
    """

    def __init__(self, lease: float, outages: Outages) -> None:
        self._lease = lease
        self._outages = outages
        self._claims: dict[uuid.UUID, Claim] = {}
        self._lock = threading.Lock()
        self.are_interrupted = False  # set once this process is asked to stop
        self.are_over = False  # set once it gives up what it runs
        self.told: set[str] = set()  # databases in which this worker says that it is stopping

    @contextmanager
    def held(
        self, token: uuid.UUID | None, database: str, *, name: str = "", at_broker: bool = False
    ) -> Iterator[None]:
        """Have a claim renewed while its handler runs; it stays ours whatever goes wrong in between."""
        if token is None:
            yield
            return
        claim = Claim(token, database, name, at_broker, connections[database])
        note_line(connections[database])
        with self._lock:
            self._claims[token] = claim
        try:
            yield
        except AlreadyRecorded:
            self.drop(claim)
            raise
        except BaseException:  # it may well stand: the database went away, or its answer was lost
            claim.is_idle = True
            raise
        self.drop(claim)

    def is_idle(self, token: uuid.UUID | None) -> bool:
        """Whether a claim is ours and runs nothing, so that its delivery may go on under it."""
        claim = self._claims.get(token) if token is not None else None
        return claim is not None and claim.is_idle

    def take(self, token: uuid.UUID | None) -> bool:
        """Go on under a claim that is ours and runs nothing. One delivery may, so that each of two twins has a row."""
        with self._lock:
            claim = self._claims.get(token) if token is not None else None
            if claim is None or not claim.is_idle:
                return False
            del self._claims[claim.token]
            return True

    def of(self, database: str) -> list[Claim]:
        """All of a database, idle ones too."""
        with self._lock:
            return [claim for claim in self._claims.values() if claim.database == database]

    def drop(self, claim: Claim) -> None:
        """Forget one that ended."""
        with self._lock:
            if self._claims.get(claim.token) is claim:
                del self._claims[claim.token]

    def renew(self, database: str) -> None:
        """Extend every running claim of a database. Raises DatabaseUnavailable."""
        # An idle claim may run out: its delivery may have gone to another process, which must not wait for us.
        claims = [claim for claim in self.of(database) if not claim.is_idle]
        if not claims:
            return
        now = time.monotonic()
        rows = ProcessedMessage.objects.using(database).filter(
            lease_token__in=[claim.token for claim in claims], state=ProcessedMessage.State.PROCESSING
        )
        with self._outages.watch(database), transaction.atomic(using=database):
            if connections[database].features.has_select_for_update_skip_locked:
                # A handler's own transaction locks its row while it runs: waiting for it, the others would lapse.
                free = rows.select_for_update(skip_locked=True).values_list("pk", flat=True)
                rows = ProcessedMessage.objects.using(database).filter(pk__in=list(free))
            rows.update(leased_until=Now() + timedelta(seconds=self._lease))
        for claim in claims:
            claim.renewed_at = now

    def end_here(self) -> None:
        """Never return, once this process gives up what it runs: it is about to end, and has cut the connection."""
        if self.are_over:
            connections.close_all()
            threading.Event().wait()

    def late(self) -> list[Claim]:
        """The running ones that could not be renewed for so long that they are about to lapse."""
        before = time.monotonic() - LATE * self._lease
        with self._lock:
            return [claim for claim in self._claims.values() if not claim.is_idle and claim.renewed_at < before]
