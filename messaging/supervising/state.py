"""How a consumer or relay does, for whoever asks on its host: a small file, so that no broker or database is asked.

Its process keeps the file locked, so that one which a killed process left behind is told from others. The room is taken
at once and written over in place, so that a full disk does not make a healthy process look as if it hung. Standard
library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

VARIABLE = "MESSAGING_STATE_DIR"  # names the folder, where ours will not do
SHARED_MEMORY = "/dev/shm"  # noqa: S108  ours within it is checked; writable in most containers that are else read-only
EVERY = 1.0  # seconds between two writings
ROOM, ROOM_FOR_EACH = 2048, 1024  # bytes, and for each child
FORGOTTEN = 86400.0  # seconds after which nobody asks any more what became of a process
UNFINISHED = 60.0  # seconds that a process may take to make its file
NO_FOLDER = (
    "No folder takes the file that says how this process does, so manage.py messaging_health cannot tell: let "
    f"{VARIABLE} name one that can be written to."
)
_HEAD = 18  # bytes: length and checksum
_ENDING, _NEW = ".state", ".new"  # of the names of files, and of those of unfinished ones behind that
_NAME = re.compile(rf"[a-z]+-\d+-[0-9a-f]{{8}}{re.escape(_ENDING)}(?P<new>{re.escape(_NEW)})?")


@dataclass(frozen=True, slots=True)
class State:
    """What a process has last said of itself.

    Attributes:
        path: its file.
        lives: whether the process is there.
        facts: `kind` ("consumer" or "relay"), `alias`, `site`, `pid`, `at` (when they were written) and what else the
            kind has. All moments are of CLOCK_MONOTONIC, which is the same in every process.
    """

    path: str
    lives: bool
    facts: Mapping[str, Any]

    @property
    def age(self) -> float:
        """Seconds since it was written."""
        return time.monotonic() - float(self.facts["at"])


class StateFile:
    """A process's own file. `close()` removes it.

    Args:
        fd: of the file, open and locked.
        path: where it is.
        facts: those that never change.
    """

    def __init__(self, fd: int, path: str, facts: Mapping[str, Any]) -> None:
        self._fd, self._path, self._facts = fd, path, facts
        self._due = 0.0

    @classmethod
    def create(cls, kind: str, alias: str, site: str, children: int = 0) -> StateFile | None:
        """A file in the first folder that takes one; None where none does.

        Args:
            kind: "consumer" or "relay".
            alias: alias of `MESSAGING`.
            site: tells sites on one host apart.
            children: for how many processes there has to be room.
        """
        facts = {"kind": kind, "alias": alias, "site": site, "pid": os.getpid()}
        for folder in _folders():
            with suppress(OSError):
                _make(folder)
                _sweep(folder, facts)
                return cls(*_create(folder, kind, ROOM + ROOM_FOR_EACH * children), facts)
        return None

    @property
    def is_due(self) -> bool:
        """Whether it was written a second ago or more."""
        return self._fd >= 0 and time.monotonic() >= self._due

    def write(self, facts: Mapping[str, Any]) -> None:
        """Say how it is now. Where that cannot be written, the file goes: an old one would say that this hangs."""
        if self._fd < 0:
            return
        now = time.monotonic()
        self._due = now + EVERY
        text = json.dumps({**self._facts, **facts, "at": now}).encode()
        record = b"%08x %08x\n" % (len(text), zlib.crc32(text)) + text
        try:
            if not os.fstat(self._fd).st_nlink:
                self._make_another()
            if os.pwrite(self._fd, record, 0) < len(record):
                self.close()
        except OSError:
            self.close()

    def _make_another(self) -> None:
        """Somebody has tidied up: without a file this process would be missed. Raises OSError."""
        folder = os.path.dirname(self._path)
        _make(folder)
        fd, path = _create(folder, str(self._facts["kind"]), os.fstat(self._fd).st_size)
        os.close(self._fd)
        self._fd, self._path = fd, path

    def close(self) -> None:
        """This process ends in order."""
        if self._fd >= 0:
            with suppress(OSError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


def states(site: str) -> list[State]:
    """What the processes of a site on this host say of themselves, those included that were killed within a day."""
    found = [state for folder in _known_folders() for state in _states(folder)]
    return sorted(
        (state for state in found if state.facts.get("site") == site), key=lambda state: int(state.facts["pid"])
    )


def own_folder() -> str | None:
    """The first folder that takes files; None where none does."""
    for folder in _folders():
        with suppress(OSError):
            _make(folder)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def _folders() -> list[str]:
    """Where this user's files may be, in the order in which they are tried."""
    if named := os.environ.get(VARIABLE):
        return [named]
    return [os.path.join(parent, f"messaging-{os.getuid()}") for parent in _parents()]


def _parents() -> list[str]:
    try:
        usual = tempfile.gettempdir()
    except OSError:  # there is none that can be written to
        return [SHARED_MEMORY]
    return [SHARED_MEMORY, usual]


def _known_folders() -> Iterator[str]:
    """The folders that can be believed; for root those of every user."""
    if os.environ.get(VARIABLE) or os.getuid():
        yield from filter(_is_safe, _folders())
        return
    for parent in _parents():
        with suppress(OSError):
            names = [name for name in os.listdir(parent) if name.startswith("messaging-")]
            yield from filter(_is_safe, (os.path.join(parent, name) for name in names))


def _is_safe(folder: str) -> bool:
    """Whether nobody else can have put anything there; one that the variable names is the operator's business."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    if os.environ.get(VARIABLE):
        return True
    is_owners = folder.endswith(f"-{found.st_uid}") and os.getuid() in (0, found.st_uid)
    return stat.S_ISDIR(found.st_mode) and is_owners and not found.st_mode & 0o022


def _make(folder: str) -> None:
    """Raises OSError where there is no folder of ours, and none can be made."""
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if not _is_safe(folder):
        raise PermissionError(folder)


def _create(folder: str, kind: str, size: int) -> tuple[int, str]:
    """A new file, locked, with room in it. Its number is not enough for a name: containers may share the folder.

    Nobody sees it before it is locked: whoever reads it takes the lock for a moment.
    """
    path = os.path.join(folder, f"{kind}-{os.getpid()}-{secrets.token_hex(4)}{_ENDING}")
    fd = os.open(path + _NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.pwrite(fd, bytes(size), 0) < size:
            raise OSError("There is no room.")
        os.rename(path + _NEW, path)
    except OSError:
        os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(path + _NEW)
        raise
    return fd, path


def _sweep(folder: str, facts: Mapping[str, Any]) -> None:
    """Remove what the dead of the same kind have left, whom this process follows, and what tells nobody anything."""
    same = ("site", "kind", "alias")
    others = (state for state in _states(folder) if any(state.facts.get(name) != facts[name] for name in same))
    kept = {state.path for state in others}
    for name in filter(None, map(_NAME.fullmatch, os.listdir(folder))):
        path = os.path.join(folder, name[0])
        with suppress(OSError):
            is_unfinished = name["new"] and time.time() - os.stat(path).st_mtime < UNFINISHED
            if path not in kept and not is_unfinished and not _is_held(path):
                os.unlink(path)


def _is_held(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _is_locked(fd)
    finally:
        os.close(fd)


def _states(folder: str) -> Iterator[State]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(_ENDING))
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        with suppress(OSError, ValueError, KeyError, TypeError):  # it has gone meanwhile, or says nothing yet
            state = _read(path)
            if state is not None and (state.lives or time.time() - os.stat(path).st_mtime < FORGOTTEN):
                yield state


def _read(path: str) -> State | None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        lives = _is_locked(fd)
        for _ in range(3):  # once more where it was read while it was being written
            text = os.pread(fd, os.fstat(fd).st_size, 0)
            length, checksum = int(text[:8], 16), int(text[9 : _HEAD - 1], 16)
            record = text[_HEAD : _HEAD + length]
            if zlib.crc32(record) == checksum:
                facts = json.loads(record)
                return State(path, lives, {**facts, "pid": int(facts["pid"]), "at": float(facts["at"])})
            time.sleep(0.005)
    finally:
        os.close(fd)
    return None


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
