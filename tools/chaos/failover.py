"""A database and a copy that lags behind it; the copy takes over when the other is killed."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tools.janitor import Janitor
from tools.postgresql import PostgreSQL
from tools.proxy import Proxy
from tools.services import ServiceFailed, free_ports

LOOKED_AT = 20_000  # rows at the end of a table that a copy may not have
# It waits for more of the log, having replayed all there is; the last record may be there in part.
CAUGHT_UP = """SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'startup'
    AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')"""
WRITTEN = """SELECT pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, '0/0')"""
# What a message is known by; the oversized ones by their id.
KEY = """CASE body_encoding WHEN '' THEN substring(body from '"key": *"([0-9a-f]+([.][a-z]+)?)"') ELSE message_id END"""
RECEIVED = f"""SELECT queue, key, state, round, {KEY} FROM messaging_processedmessage
    WHERE state <> 'processed' OR processed_at > now() - interval '2 minutes'"""


@dataclass
class Memory:
    """What a server knows of late, each key as often as it is there.

    Attributes:
        expected: keys of the ledger.
        published: of outgoing messages.
        effects: of effects.
        received: of incoming messages, each in its state and round.
        wal: bytes of the log that it has written.
    """

    expected: Counter[str] = field(default_factory=Counter)
    published: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    received: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    wal: int = 0

    def __sub__(self, other: Memory) -> Memory:
        """What this one knows and the other does not."""
        return Memory(
            self.expected - other.expected,
            self.published - other.published,
            self.effects - other.effects,
            self.received - other.received,
            self.wal - other.wal,
        )

    def __add__(self, other: Memory) -> Memory:
        """What either knows."""
        return Memory(
            self.expected + other.expected,
            self.published + other.published,
            self.effects + other.effects,
            self.received + other.received,
            self.wal + other.wal,
        )


class Pair:
    """Two servers on two ports that stay the same; whoever is primary, the other follows it.

    Args:
        folder: for their data.
        janitor: ends them should this process die.
        databases: names of the databases that are looked at for what was forgotten.
        copied: whether there is a copy at all.

    Attributes:
        primary: the server that is written to.
        ports: where clients look for the primary.
        forgotten: what the copies that were promoted had never received.
        promoted: when that was, in seconds since the epoch.
    """

    def __init__(self, folder: Path, janitor: Janitor, databases: Collection[str], *, copied: bool) -> None:
        self.ports = free_ports(2)
        self.primary = PostgreSQL(folder / "postgresql", janitor, settings={"wal_keep_size": "2GB"}, port=self.ports[0])
        self.forgotten = Memory()
        self.promoted: list[float] = []
        self.copied = copied
        self._folder = folder
        self._janitor = janitor
        self._databases = databases
        self._copy: PostgreSQL | None = None
        self._link: Proxy | None = None  # through which the copy receives
        self._count = 0

    def start(self) -> None:
        """Start the primary."""
        self.primary.start()

    def follow(self) -> None:
        """Have the other server follow the primary from now on, from a new copy of its data."""
        if not self.copied:
            return
        self._count += 1
        self._link = Proxy("127.0.0.1", self.primary.port).__enter__()
        other = next(port for port in self.ports if port != self.primary.port)
        self._copy = PostgreSQL(
            self._folder / f"postgresql-{self._count}",
            self._janitor,
            settings={"wal_keep_size": "2GB"},
            port=other,
            source=self.primary,
            source_port=self._link.port,
        )
        self._copy.start()

    def cut(self) -> None:
        """Let the copy receive nothing more, while clients go on with the primary."""
        assert self._link is not None
        self._link.refuses = True
        self._link.blackhole()

    def fail_over(self) -> Memory:
        """Kill the primary, promote the copy as it is, and find out what it had never received, which is returned."""
        former, copy, link = self.primary, self._copy, self._link
        assert copy is not None
        assert link is not None
        former.kill()
        link.__exit__(None, None, None)
        _wait_for(copy, CAUGHT_UP)
        known = self._memory(copy, 2 * LOOKED_AT)
        copy.promote()
        self.promoted.append(time.time())
        self.primary, self._copy, self._link = copy, None, None
        former.port = free_ports(1)[0]  # nobody finds it there
        former.start()
        forgotten = self._memory(former, LOOKED_AT) - known
        former.kill()
        shutil.rmtree(former.folder / "data")
        self.forgotten += forgotten
        return forgotten

    def close(self) -> None:
        """End both."""
        if self._link is not None:
            self._link.__exit__(None, None, None)
        if self._copy is not None:
            self._copy.close()
        self.primary.close()

    def _memory(self, server: PostgreSQL, count: int) -> Memory:
        found = Memory()
        for database in self._databases:
            with psycopg.connect(server.dsn_of(database), autocommit=True) as connection:
                for counter, column, table in (
                    (found.expected, "key", "workload_expected"),
                    (found.effects, "key", "workload_effect"),
                    (found.effects, "key", "workload_meeting"),
                    (found.published, KEY, "messaging_publishedmessage"),
                ):
                    statement = f"SELECT {column} FROM {table} ORDER BY id DESC LIMIT {count}"
                    counter.update(key for (key,) in connection.execute(statement.encode()))
                found.received.update(connection.execute(RECEIVED.encode()))
                found.wal = int(connection.execute(WRITTEN.encode()).fetchone()[0])  # type: ignore[index]
        return found


def _wait_for(server: PostgreSQL, condition: str) -> None:
    deadline = time.monotonic() + 180
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        while not connection.execute(condition.encode()).fetchone()[0]:  # type: ignore[index]
            if time.monotonic() > deadline:
                raise ServiceFailed(f"The copy has not replayed what it received after 180 s: {server.folder}")
            time.sleep(0.05)
