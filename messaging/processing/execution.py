"""Calling handlers, and the proof that what they did is committed."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from inspect import isasyncgen, isawaitable, iscoroutinefunction
from types import GeneratorType
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connections, transaction

from messaging.db.connections import is_doomed, transaction_mode
from messaging.db.forks import end_fork
from messaging.db.savepoints import run_commit_hooks
from messaging.db.session import leave
from messaging.exceptions import CommitNotProven, HandlerNotRun
from messaging.handlers import Handler
from messaging.message import ReceivedMessage, Running, running
from messaging.processing.proof import UNPROVEN, Proof

logger = logging.getLogger("messaging.processor")

LAZY = (GeneratorType, map, filter)  # what does nothing until somebody asks for its items


@dataclass
class _Hook:
    """A commit hook; only that it ran proves the commit."""

    given: bool = False

    def __call__(self) -> None:
        self.given = True


@contextmanager
def proven_commit(database: str, what: object, *, mode: str) -> Iterator[Proof]:
    """A transaction that ends either proven to be committed, or with an error.

    A handler can leave its transaction normally and yet rolled back: so the `Proof` that is yielded is to be asked
    behind it. And a commit hook that raises does so after the commit: that is logged, since the work is done.

    Inside the transaction of Django's `TestCase`, which alone lets a durable block begin in it, this is a savepoint,
    and releasing it does what a commit would.

    Args:
        database: where.
        what: named in the log.
        mode: how SQLite begins the transaction.
    """
    connection, hook = connections[database], _Hook()
    in_test, hooks = connection.in_atomic_block, len(connection.run_on_commit)
    try:
        with transaction_mode(connection, mode), transaction.atomic(using=database, durable=True):
            connection.on_commit(hook)
            yield Proof(database, in_test=in_test)
            if is_doomed(connection):
                raise CommitNotProven(UNPROVEN)
            if in_test and connection.features.can_defer_constraint_checks:
                connection.check_constraints()
        if in_test:
            run_commit_hooks(connection, hooks)
    except BaseException:
        if not hook.given:
            raise
        logger.exception("%r is processed, but a commit hook failed.", what)
    leave(connection)
    if not hook.given:
        raise CommitNotProven(UNPROVEN)


def call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: Running) -> None:
    """Call a handler, sync or async, so that `publish()` inside it knows what it runs for.

    What it gives back is of no interest, unless that is work still to be done: it is waited for. Raises HandlerNotRun
    for what nobody can wait for.

    The language or time zone that it activates, and whatever else is a context variable, ends with it. So does a
    process that it forks and that comes back here.
    """
    own = os.getpid()
    try:
        copy_context().run(_call, handler, argument, context)
    finally:
        if os.getpid() != own:
            end_fork()


def _call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: Running) -> None:
    running.set(context)
    if iscoroutinefunction(handler.function):
        # async_to_sync brings the ORM's calls back into this thread, and so into this transaction.
        result = async_to_sync(handler.function)(argument)
    else:
        result = handler.function(argument)
    if result is not None:
        _finish(result, handler)


def _finish(result: Any, handler: Handler) -> None:
    """Do what a handler has left to whoever takes its result, as a decorated one does."""
    while result is not None:
        if isawaitable(result):
            result = async_to_sync(_awaited)(result)
        elif isinstance(result, Future):
            result = result.result()
        elif isinstance(result, LAZY) or isasyncgen(result):
            raise HandlerNotRun(
                f"The handler {handler.name} gave back a {type(result).__name__}, of which nothing has run: is there a "
                "`yield` in it, behind a decorator? Have it return nothing."
            )
        else:
            return


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
