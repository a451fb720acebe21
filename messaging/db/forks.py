"""What a process that a handler forks has of ours: nothing. It must neither keep our connections alive nor act for us.

A connection lasts as long as any process has it open. The orphan of a consumer that was killed would keep the delivery
from all others, and the open transaction with it.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

from django.db import connections
from django.db.backends.signals import connection_created


class Line(Protocol):
    """A connection as the operating system knows it."""

    def fileno(self) -> int:
        """Its descriptor; -1, or an error, once it is closed."""


_lines: WeakSet[Any] = WeakSet()
_databases: WeakSet[Any] = WeakSet()  # Django's connections, whose descriptors change
_forking = threading.local()


def watch(*lines: Line) -> None:
    """Have what this process forks from now on part with its connections; once, before any database is connected to.

    Args:
        lines: those that it has already.
    """
    _lines.update(lines)
    connection_created.connect(_note, dispatch_uid="messaging.db.forks")
    os.register_at_fork(after_in_child=_part)
    os.register_at_fork(before=_hold_signal, after_in_parent=_release_signal, after_in_child=_release_signal)


def keep(line: Line) -> None:
    """Note a connection of ours; not one to a database."""
    _lines.add(line)


def end_fork() -> NoReturn:
    """End this process, which a handler forked and let return: the other one goes on. In a `finally`."""
    error = sys.exc_info()[1]
    status = 0 if error is None else 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def _note(connection: Any, **_: Any) -> None:
    _databases.add(connection)
    with suppress(Exception):  # SQLite has none; others' drivers do so themselves, or forget to
        os.set_inheritable(connection.connection.fileno(), False)


def _hold_signal() -> None:
    """Have a SIGTERM wait until the new process has the answer to it that `multiprocessing` counts on.

    What arrives earlier meets ours, which does nothing, and a pool that ends a worker at once would wait for ever.
    """
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_signal() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _part() -> None:
    """In the forked process: put a dead end in the place of each connection, and leave Django to open its own ones."""
    dead, other = socket.socketpair()
    other.close()
    for line in (*_lines, *(one.connection for one in list(_databases))):
        with suppress(Exception):  # it is not open
            fd = line.fileno()
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.dup2(dead.fileno(), fd, inheritable=False)
    dead.close()
    for alias in connections.settings:
        with suppress(AttributeError):  # this thread has none
            del connections[alias]
    # Ours does nothing, since only the supervisor decides: `multiprocessing` ends its processes by it.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
