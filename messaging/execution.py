"""Calling handlers, and the proof that what they did is committed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction

from asgiref.sync import async_to_sync
from django.db import connections, transaction

from messaging.database import is_doomed, transaction_mode
from messaging.exceptions import CommitNotProven
from messaging.handlers import Handler
from messaging.inbox import stands
from messaging.message import ReceivedMessage, Running, running
from messaging.models import ProcessedMessage
from messaging.savepoints import run_commit_hooks

logger = logging.getLogger("messaging.processor")

UNPROVEN = (
    "The handler returned, but its transaction was rolled back: it called set_rollback(True), closed the database "
    "connection, or caught a database error without a savepoint of its own."
)


@dataclass
class _Proof:
    """A commit hook; only that it ran proves the commit."""

    given: bool = False

    def __call__(self) -> None:
        self.given = True


@contextmanager
def proven_commit(database: str, what: object, *, mode: str) -> Iterator[None]:
    """A transaction that ends either proven to be committed, or with an error.

    A handler can leave its transaction normally and yet rolled back. And a commit hook that raises does so after the
    commit: that is logged, since the work is done.

    Inside the transaction of Django's `TestCase`, which alone lets a durable block begin in it, this is a savepoint,
    and releasing it does what a commit would.

    Args:
        database: where.
        what: named in the log.
        mode: how SQLite begins the transaction.
    """
    connection, proof = connections[database], _Proof()
    in_test, hooks = connection.in_atomic_block, len(connection.run_on_commit)
    try:
        with transaction_mode(connection, mode), transaction.atomic(using=database, durable=True):
            connection.on_commit(proof)
            yield
            refuse_doomed(database)
            if in_test and connection.features.can_defer_constraint_checks:
                connection.check_constraints()
        if in_test:
            run_commit_hooks(connection, hooks)
    except BaseException:
        if not proof.given:
            raise
        logger.exception("%r is processed, but a commit hook failed.", what)
    if not proof.given:
        raise CommitNotProven(UNPROVEN)


def refuse_doomed(database: str, record: ProcessedMessage | None = None) -> None:
    """Raise CommitNotProven where the transaction will be, or was, rolled back, whatever its commit says.

    Args:
        database: where.
        record: an inbox row that the transaction wrote before the handler ran.
    """
    if is_doomed(connections[database]) or (record is not None and not stands(record, database)):
        raise CommitNotProven(UNPROVEN)


def call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: Running) -> None:
    """Call a handler, sync or async, so that `publish()` inside it knows what it runs for."""
    token = running.set(context)
    try:
        if iscoroutinefunction(handler.function):
            # async_to_sync brings the ORM's calls back into this thread, and so into this transaction.
            async_to_sync(handler.function)(argument)
        else:
            handler.function(argument)
    finally:
        running.reset(token)
