"""What a transaction does at its commit, where a savepoint inside a test's transaction has to stand for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.db.connections import is_doomed
from messaging.exceptions import DatabaseUnavailable

logger = logging.getLogger("messaging.processor")

SWALLOWED = (
    "A database error was caught inside the test's transaction, which cannot go on after it. Put the statement into "
    "transaction.atomic(), or use TransactionTestCase (pytest: transactional_db), where this code has no transaction."
)
TEST_ENDED = (
    "A handler ended the test's transaction: it executed ROLLBACK or COMMIT itself. Do not do that there, or use "
    "TransactionTestCase (pytest: transactional_db)."
)


def run_commit_hooks(connection: BaseDatabaseWrapper, start: int) -> None:
    """Run and forget the commit hooks from number `start` on, as a commit would, inside a test's transaction.

    Django has removed those of what was rolled back. One that raises is the last to run.
    """
    try:
        while len(connection.run_on_commit) > start:
            entry: Any = connection.run_on_commit.pop(start)
            _savepoints, hook, robust = entry
            try:
                with as_in_autocommit(connection):
                    hook()
            except Exception:
                if not robust:
                    raise
                logger.exception("A commit hook failed.")
    finally:
        del connection.run_on_commit[start:]


@contextmanager
def as_in_autocommit(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Inside a test's transaction: a database error in this block does not end the transaction as well.

    Raises TransactionManagementError for one that was caught inside the block, which a transaction does not survive,
    and DatabaseUnavailable where the block ended the transaction.
    """
    savepoint = connection.savepoint()
    assert savepoint is not None, "outside of a transaction"
    try:
        yield
        if is_doomed(connection):
            raise transaction.TransactionManagementError(SWALLOWED)
    except BaseException:
        if is_doomed(connection) and not connection.closed_in_transaction:
            connection.needs_rollback = False  # or going back would be refused
            connection.savepoint_rollback(savepoint)
        raise
    release(connection, savepoint)


def release(connection: BaseDatabaseWrapper, savepoint: str) -> None:
    """Release a savepoint inside a test's transaction. Raises DatabaseUnavailable where that has ended."""
    try:
        connection.savepoint_commit(savepoint)
    except Error as error:
        raise DatabaseUnavailable(TEST_ENDED, connection.alias) from error
