"""Connections to a database that do not wait for ever for a network that swallows packets."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from importlib import import_module
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

CONNECT_TIMEOUT = 5  # seconds
LONGER_THAN_A_LOCK = 4  # seconds; we wait two for one
LIBPQ_WITH_TCP_USER_TIMEOUT = 120_000
LINE = "messaging_line"


def bound(connection: BaseDatabaseWrapper, seconds: float | None = None) -> None:
    """Limit how long a connection that is not yet open takes to open and, with `seconds`, for the other end's signs.

    What the site's settings say stands, and the settings themselves are left alone: they are other threads' too.
    """
    limits = _limits(connection.vendor, seconds)
    if limits:
        options = {**limits, **connection.settings_dict.get("OPTIONS", {})}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}


def bound_here(database: str, seconds: float) -> None:
    """Limit this thread's connection to a database so, from its next opening on."""
    connection = connections[database]
    if not connection.in_atomic_block:
        connection.close()
        bound(connection, seconds)


def note_line(connection: BaseDatabaseWrapper) -> None:
    """Keep what `sever()` needs, in the connection's own thread: mysqlclient tells others nothing while it is busy."""
    if connection.vendor == "mysql":
        with suppress(Exception):  # it is not open
            fileno = connection.connection.fileno()
            connection.__dict__[LINE] = fileno, os.fstat(fileno).st_ino


def sever(connection: BaseDatabaseWrapper) -> None:
    """Cut a connection that another thread waits on, or has a transaction in, which the server rolls back."""
    with suppress(Exception):  # there is none, or none any more
        fileno, inode = connection.__dict__.get(LINE) or (connection.connection.fileno(), None)
        with socket.socket(fileno=os.dup(fileno)) as line:
            if inode in (None, os.fstat(line.fileno()).st_ino):  # else its number is another one's by now
                line.shutdown(socket.SHUT_RDWR)


def _limits(vendor: str, seconds: float | None) -> dict[str, Any]:
    if vendor not in ("postgresql", "mysql"):
        return {}
    limits = {"connect_timeout": CONNECT_TIMEOUT}
    if seconds is None:
        return limits
    whole = max(2, round(seconds))
    if vendor == "mysql":
        whole = max(whole, LONGER_THAN_A_LOCK)
        return {**limits, "read_timeout": whole, "write_timeout": whole}
    alive = {"keepalives": 1, "keepalives_idle": whole, "keepalives_interval": 2, "keepalives_count": 3}
    if _libpq() >= LIBPQ_WITH_TCP_USER_TIMEOUT:
        alive["tcp_user_timeout"] = 1000 * whole
    return {**limits, **alive}


def _libpq() -> int:
    """The version of the library under Django's driver for PostgreSQL."""
    try:
        from psycopg import pq
    except ImportError:
        return int(import_module("psycopg2.extensions").libpq_version())
    return pq.version()
