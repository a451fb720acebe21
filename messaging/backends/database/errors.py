"""What a database's errors mean for a broker that lives in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from django.db import DatabaseError, InterfaceError, connections, transaction

from messaging.exceptions import BrokerUnavailable


@contextmanager
def broker_errors(database: str) -> Iterator[None]:
    """Turn an error of the database into BrokerUnavailable; the next use starts with a fresh connection.

    The caller's transaction, where there is one, survives the error.
    """
    is_inside = connections[database].in_atomic_block
    try:
        with transaction.atomic(using=database) if is_inside else nullcontext():
            yield
    except (DatabaseError, InterfaceError) as error:
        if not is_inside:
            connections[database].close()
        raise BrokerUnavailable(described(database, error)) from error


def described(database: str, error: Exception) -> str:
    """An error of the database, with the way out where it is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    missing = "no such table" in text or "does not exist" in text or "doesn't exist" in text
    way_out = f" Run `manage.py migrate --database {database}`." if missing else ""
    return f'The embedded broker\'s tables in the database "{database}" cannot be used: {text}.{way_out}'
