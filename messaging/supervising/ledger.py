"""What a worker process is running right now, where its supervisor can read it after its death.

One fixed-size slot per worker thread in a shared memory-mapped file; no lock, because each slot has one writer.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NoReturn

SLOT = 4096
_HEAD = struct.Struct("<BdIdI")  # state, started (CLOCK_MONOTONIC), length of the JSON, deadline (0: none), its CRC
_IDLE, _RUNNING, _RECORDING = range(3)
_NO_MEMORY = b"This process has no memory left, and ends; what it runs counts as an attempt.\n"


@dataclass(slots=True)  # not frozen: each message makes one, which then takes twice as long
class Entry:
    """One running attempt.

    Attributes:
        alias, queue, key, digest, round: the message's identity.
        message_id: as the inbox shows it.
        database: where its inbox row is.
        handler: dotted name.
        started: seconds since the epoch.
        timeout: seconds it may run, or None.
        token: the claim that it runs under; "" without one.
        session: the database's number of the session that it runs in; 0 where nobody knows it.
        headers_digest: what version 2 of the digest has beside `digest`; "" where the release before reports it.
        batch: how many messages run together; for more than one the entry serves time limits only, and nobody is
            blamed for a crash, because each of them comes back and then runs alone.
        row: number of its inbox row, where that was there before it began; else 0.
    """

    alias: str
    queue: str
    key: str
    digest: str
    round: int
    message_id: str
    database: str
    handler: str
    started: float
    timeout: float | None = None
    token: str = ""
    session: int = 0
    batch: int = 1
    headers_digest: str = ""
    row: int = 0

    def to_json(self) -> str:
        """As it crosses from a dead process to its successor.

        Written by hand, since each message does it: `json.dumps()` of all of it takes thrice as long.
        """
        limit = "null" if self.timeout is None else repr(self.timeout)
        return (
            f"{{{_parts(self.alias, self.queue, self.database, self.handler)}, "
            f'"message_id": {json.dumps(self.message_id)}, '
            f'"key": "{self.key}", "digest": "{self.digest}", "headers_digest": "{self.headers_digest}", '
            f'"round": {self.round}, "started": {self.started!r}, "timeout": {limit}, '
            f'"token": "{self.token}", "session": {self.session}, "batch": {self.batch}, "row": {self.row}}}'
        )

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Inverse of `to_json()`; of another release's too, which may know fewer fields, or more."""
        values = json.loads(text)
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})

    @property
    def identity(self) -> tuple[uuid.UUID, uuid.UUID]:
        """Key and digest."""
        return uuid.UUID(self.key), uuid.UUID(self.digest)

    @property
    def run(self) -> uuid.UUID:
        """Identifies the attempt; see `run_of()`."""
        return run_of(uuid.UUID(self.key), self.round, uuid.UUID(self.token) if self.token else None)


@lru_cache
def _parts(alias: str, queue: str, database: str, handler: str) -> str:
    """What one handler's messages have in common, as members of a JSON object."""
    return json.dumps({"alias": alias, "queue": queue, "database": database, "handler": handler})[1:-1]


def run_of(key: uuid.UUID, round_: int, token: uuid.UUID | None) -> uuid.UUID:
    """Identifies an attempt, so that a crash that is reported twice counts once: its claim where there is one.

    Without a claim only one of several copies can be in its handler, and whoever comes after it claims: so the first
    death of a round counts.
    """
    return token or uuid.uuid5(key, str(round_))


@dataclass(frozen=True, slots=True)
class RunningEntry:
    """An entry as its supervisor finds it.

    Attributes:
        slot: which worker thread runs it.
        since: when it started, CLOCK_MONOTONIC, the same clock in every process.
        entry: what runs.
    """

    slot: int
    since: float
    entry: Entry


class Slot:
    """One worker thread's place."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory = memory
        self._offset = index * SLOT

    @contextmanager
    def running(self, entry: Entry) -> Iterator[Callable[[], None]]:
        """Show `entry` as running for the duration of the block. Yields a function that lifts its time limit.

        A MemoryError that gets here means that not even the attempt could be recorded: it ends the process. One of a
        batch does not, whose messages each run alone next.
        """
        self._write(entry)
        try:
            yield self._lift
        except MemoryError:
            if entry.batch == 1:
                end_without_memory()
            raise
        finally:
            self._memory[self._offset] = _IDLE

    def _lift(self) -> None:
        self._memory[self._offset] = _RECORDING

    def _write(self, entry: Entry) -> None:
        text = entry.to_json().encode()
        if len(text) > SLOT - _HEAD.size:
            text = replace(entry, message_id="", handler=entry.handler[:255]).to_json().encode()
        now = time.monotonic()
        deadline = now + entry.timeout if entry.timeout is not None else 0.0
        head = _HEAD.pack(_IDLE, now, len(text), deadline, zlib.crc32(text))
        # The state goes off first and on last: whoever dies in between was running nothing yet.
        self._memory[self._offset] = _IDLE
        self._memory[self._offset : self._offset + _HEAD.size] = head
        self._memory[self._offset + _HEAD.size : self._offset + _HEAD.size + len(text)] = text
        self._memory[self._offset] = _RUNNING


def end_without_memory() -> NoReturn:
    """End this process, in which nothing works any more; the supervisor counts what the ledger shows as running."""
    os.write(2, _NO_MEMORY)
    os._exit(1)


def _unnamed_memory() -> int | None:
    """A file that needs no directory; None where the system has none."""
    try:
        return os.memfd_create("messaging-ledger")
    except (AttributeError, OSError):  # not on Linux; forbidden
        return None


def _allocate(fd: int, size: int) -> None:
    """Make room for good: to write into a hole on a full disk kills the process."""
    if os.pwrite(fd, bytes(size), 0) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Ledger:
    """The slots of one process. The supervisor creates it, the child attaches to it through an inherited descriptor."""

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._memory = mmap.mmap(fd, slots * SLOT)

    @classmethod
    def create(cls, slots: int) -> Ledger:
        """A new, empty ledger in memory, or else in an unnamed file; it goes away with its last process.

        Raises OSError where there is no room for it.
        """
        fd = _unnamed_memory()
        if fd is None:
            with tempfile.TemporaryFile(prefix="messaging-ledger-") as file:
                fd = os.dup(file.fileno())
        try:
            _allocate(fd, slots * SLOT)
            return cls(fd, slots)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, slots: int) -> Ledger:
        """The ledger behind an inherited descriptor, which is kept from this process's own children."""
        os.set_inheritable(fd, False)
        return cls(fd, slots)

    def slot(self, index: int) -> Slot:
        """The place of worker thread `index`, from 0."""
        return Slot(self._memory, index)

    def running_entries(self) -> list[RunningEntry]:
        """What is running, or was when the process died."""
        return [running for index in range(self.slots) if (running := self._read(index))]

    def overdue(self, now: float) -> list[RunningEntry]:
        """What has run longer than its timeout at `now` (CLOCK_MONOTONIC)."""
        return [running for index in range(self.slots) if (running := self._read(index, now))]

    def clear(self) -> None:
        """Forget everything; for the next process on the same slots."""
        for index in range(self.slots):
            self._memory[index * SLOT] = _IDLE

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.fd)

    def _read(self, index: int, overdue_at: float | None = None) -> RunningEntry | None:
        offset = index * SLOT
        state, since, length, deadline, checksum = _HEAD.unpack_from(self._memory, offset)
        if state == _IDLE or length > SLOT - _HEAD.size:
            return None
        if overdue_at is not None and not (state == _RUNNING and 0.0 < deadline <= overdue_at):
            return None
        text = self._memory[offset + _HEAD.size : offset + _HEAD.size + length]
        if zlib.crc32(text) != checksum:  # read while it was being written
            return None
        return RunningEntry(index, since, Entry.from_json(text.decode()))
