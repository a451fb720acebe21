"""PostgreSQL's NOTIFY, sent and heard, so that a relay need not wait for its next look at the outbox."""

from __future__ import annotations

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging import conf

CHANNEL = "messaging_outbox"


def wake_relays(database: str, settings: conf.AliasSettings) -> None:
    """Tell an alias's relays, where the database can: once per transaction, because each NOTIFY slows its commit."""
    connection = connections[database]
    if not settings.notify or connection.vendor != "postgresql":
        return
    if connection.in_atomic_block:
        told: dict[str, _Told] = connection.__dict__.setdefault("_messaging_told", {})
        hook = told.get(settings.alias)
        # Django forgets the hooks of what is rolled back, as PostgreSQL forgets its notifications.
        if hook is not None and any(entry[1] is hook for entry in connection.run_on_commit):
            return
        told[settings.alias] = hook = _Told()
        transaction.on_commit(hook, using=database)
    notify(connection, settings.alias)


def notify(connection: BaseDatabaseWrapper, alias: str) -> None:
    """Tell an alias's relays, with this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, alias])


class _Told:
    """A commit hook that does nothing: its presence says that an alias's relays are told by this transaction."""

    def __call__(self) -> None:
        pass
