"""What one process has counted, in memory that others can read, and that is left when it dies. Standard library only.

Each process writes a tally of its own, without a lock between processes: a number is one aligned write of eight bytes.
A series, once made, stays where it is.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from messaging.metrics.names import BOUNDS, BY_NAME, COUNTED, OTHER, Family

SIZE = 1024 * 1024  # bytes: some thousand series
MOST = 200  # series of a family that one process tells apart: names of reply queues may be without number
MOST_TOLD = 1000  # that are told apart of all processes together, those that have ended included
OLD = 60.0  # seconds after which a gauge that nobody has set again says nothing
PATTERN = "messaging-{}.tally"  # the names of files
_MAGIC = b"DDMSUM01"
_HEAD = struct.Struct("<8sQ")  # and up to where there are series
_SERIES = struct.Struct("<II")  # bytes of its key, and how many numbers follow that
_NUMBER = 8  # bytes

Key = tuple[str, tuple[str, ...]]  # a family's name, and the labels' values
Found = dict[Key, tuple[float, ...]]


class Tally:
    """Counts of one process; safe to call from any of its threads.

    Args:
        fd: the file that holds them, of `SIZE` bytes; None for memory of this process alone.
        most: series of a family that are told apart.
    """

    def __init__(self, fd: int | None = None, *, most: int = MOST) -> None:
        self.fd = fd
        self._most = most
        self._memory = mmap.mmap(-1 if fd is None else fd, SIZE)
        self._numbers = memoryview(self._memory).cast("d")
        self._lock = threading.Lock()
        self._places: dict[tuple[Family, tuple[str, ...]], int] = {}
        self._made: dict[Family, int] = {}
        self._end = 0  # of the series
        magic, end = _HEAD.unpack_from(self._memory)
        if magic != _MAGIC:
            self._begin()
        else:
            self._end = end
        for (name, labels), at, _ in _series(self._memory):
            self._places[BY_NAME[name], labels] = at // _NUMBER
            self._made[BY_NAME[name]] = self._made.get(BY_NAME[name], 0) + 1
        for family in COUNTED:  # so that there is room for these whatever comes
            self._place(family, (OTHER,) * len(family.labels))

    def add(self, family: Family, labels: tuple[str, ...], number: float = 1) -> None:
        """Count; it takes about a microsecond."""
        with self._lock:
            self._numbers[self._at(family, labels)] += number

    def observe(self, family: Family, labels: tuple[str, ...], seconds: float, number: int = 1) -> None:
        """Enter into a histogram what took `seconds`, so many times; it takes about a microsecond."""
        with self._lock:
            at = self._at(family, labels)
            self._numbers[at + bisect_left(BOUNDS, seconds)] += number
            self._numbers[at + len(BOUNDS) + 1] += seconds * number

    def set(self, values: Iterable[tuple[Family, tuple[str, ...], float]]) -> None:
        """Say what gauges stand at now; those that are not among them say nothing any more."""
        now = time.time()
        with self._lock:
            for (family, _), at in self._places.items():
                if family.kind == "gauge":
                    self._numbers[at + 1] = 0.0
            for family, labels, value in values:
                at = self._at(family, labels)
                self._numbers[at] = value
                self._numbers[at + 1] = now

    def read(self) -> Found:
        """Everything that was counted or set, whoever counts; where something else has written, what is before that."""
        found: Found = {}
        with suppress(ValueError):
            for key, numbers in _read(self._memory):
                found[key] = numbers
        return found

    def clear(self) -> None:
        """Forget everything, for another process to count here. Nobody counts now."""
        with self._lock:
            self._places.clear()
            self._made.clear()
            self._begin()

    def _begin(self) -> None:
        self._memory[:] = bytes(SIZE)
        self._end = _HEAD.size
        _HEAD.pack_into(self._memory, 0, _MAGIC, self._end)

    def _at(self, family: Family, labels: tuple[str, ...]) -> int:
        """Where a series is; one beyond what is told apart is counted with others of its alias."""
        at = self._places.get((family, labels))
        if at is not None:
            return at
        if self._made.get(family, 0) >= self._most:
            labels = (labels[0], *[OTHER] * (len(labels) - 1))
        at = self._place(family, labels)
        return at if at is not None else self._places[family, (OTHER,) * len(labels)]

    def _place(self, family: Family, labels: tuple[str, ...]) -> int | None:
        """Make a series, unless it is there; None where there is no room."""
        at = self._places.get((family, labels))
        if at is not None:
            return at
        key = json.dumps([family.name, *labels], ensure_ascii=False).encode("utf-8", "replace")
        key += b" " * (-len(key) % _NUMBER)
        first = self._end + _SERIES.size + len(key)
        end = first + family.size * _NUMBER
        if end > SIZE:
            return None
        _SERIES.pack_into(self._memory, self._end, len(key), family.size)
        self._memory[self._end + _SERIES.size : first] = key
        # Who died here before has made no series, and may have left a longer key.
        self._memory[first:end] = bytes(end - first)
        self._end = end
        _HEAD.pack_into(self._memory, 0, _MAGIC, end)
        self._places[family, labels] = first // _NUMBER
        self._made[family] = self._made.get(family, 0) + 1
        return first // _NUMBER


def create() -> Tally:
    """An empty one in memory that a child process may inherit. Raises OSError where there is no room."""
    fd = os.memfd_create("messaging-tally") if hasattr(os, "memfd_create") else _unnamed_file()
    try:
        _allocate(fd)
        return Tally(fd)
    except OSError:
        os.close(fd)
        raise


def attach(fd: int) -> Tally:
    """The one behind an inherited descriptor, which is kept from this process's own children."""
    os.set_inheritable(fd, False)
    return Tally(fd)


def open_in(folder: Path) -> Tally:
    """One in a folder that several processes count in: that of a process that has ended, else a new one.

    A lock on the file tells who has it, and goes with the process. Raises OSError.
    """
    import fcntl  # which Windows has not

    for path in sorted(folder.glob(PATTERN.format("*"))):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError, ValueError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size == SIZE:
                return Tally(fd)
        os.close(fd)
    fd = os.open(folder / PATTERN.format(token_hex(4)), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    _allocate(fd)
    return Tally(fd)


def read_folder(folder: Path) -> list[Found]:
    """What all processes have counted that count in a folder. What is no tally is left out."""
    found = []
    for path in sorted(folder.glob(PATTERN.format("*"))):
        with suppress(OSError, ValueError):
            found.append(dict(_read(path.read_bytes())))
    return found


class Totals:
    """The counts of many processes together, those that have ended included: no number ever falls."""

    def __init__(self) -> None:
        self._kept: dict[Key, list[float]] = {}
        self._told: dict[str, set[tuple[str, ...]]] = {}

    def keep(self, found: Mapping[Key, Sequence[float]]) -> None:
        """Add what a process has counted that has ended. Its gauges say nothing any more."""
        for (name, labels), numbers in found.items():
            if BY_NAME[name].kind != "gauge":
                _add(self._kept, self._key(name, labels), numbers)

    def with_(self, living: Iterable[Mapping[Key, Sequence[float]]]) -> Found:
        """All of it, together with what those have counted that go on. Of a gauge the newest value stands."""
        sums = {key: list(numbers) for key, numbers in self._kept.items()}
        for found in living:
            for (name, labels), numbers in found.items():
                if BY_NAME[name].kind != "gauge":
                    _add(sums, self._key(name, labels), numbers)
                elif numbers[1] > sums.get((name, labels), (0.0, 0.0))[1]:
                    sums[name, labels] = list(numbers)
        return {key: tuple(numbers) for key, numbers in sums.items()}

    def _key(self, name: str, labels: tuple[str, ...]) -> Key:
        told = self._told.setdefault(name, set())
        if labels not in told and len(told) >= MOST_TOLD:
            return name, (labels[0], *[OTHER] * (len(labels) - 1))
        told.add(labels)
        return name, labels


def _add(sums: dict[Key, list[float]], key: Key, numbers: Sequence[float]) -> None:
    sums[key] = [one + more for one, more in zip(sums.get(key, [0.0] * len(numbers)), numbers, strict=True)]


def _read(memory: mmap.mmap | bytes) -> Iterator[tuple[Key, tuple[float, ...]]]:
    """What is in it and says anything: what was never counted beyond the limits, and a gauge of long ago, does not."""
    oldest = time.time() - OLD
    for (name, labels), at, size in _series(memory):
        numbers = struct.unpack_from(f"={size}d", memory, at)
        is_idle = set(labels) == {OTHER} and not any(numbers)
        if not is_idle and (BY_NAME[name].kind != "gauge" or numbers[1] > oldest):
            yield (name, labels), numbers


def _series(memory: mmap.mmap | bytes) -> Iterator[tuple[Key, int, int]]:
    """Each series of a metric that this release knows, where its numbers begin, and how many they are.

    Raises ValueError where something else has written there.
    """
    if len(memory) < SIZE:
        return
    magic, end = _HEAD.unpack_from(memory)
    at = _HEAD.size
    while magic == _MAGIC and at < min(end, SIZE):
        try:
            length, size = _SERIES.unpack_from(memory, at)
            first = at + _SERIES.size + length
            name, *labels = json.loads(memory[at + _SERIES.size : first].decode())
            family = BY_NAME.get(name)
        except (struct.error, TypeError) as error:
            raise ValueError("It is no tally.") from error
        if family is not None and family.size == size and len(family.labels) == len(labels):
            yield (name, tuple(labels)), first, size
        at = first + size * _NUMBER


def _unnamed_file() -> int:
    with tempfile.TemporaryFile(prefix="messaging-tally-") as file:
        return os.dup(file.fileno())


def _allocate(fd: int) -> None:
    """Make room for good: to write into a hole on a full disk kills the process."""
    if os.pwrite(fd, bytes(SIZE), 0) < SIZE:
        raise OSError("no room is left")
