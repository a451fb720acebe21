"""Calling handlers, and the proof that what they did is committed, by the transaction that began for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from inspect import isasyncgen, isawaitable, iscoroutinefunction
from types import GeneratorType
from typing import Any

from asgiref.sync import async_to_sync
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.contracts.payloads import receive
from messaging.db.connections import Local, is_doomed, transaction_mode
from messaging.db.forks import end_fork
from messaging.db.savepoints import release, run_commit_hooks
from messaging.db.session import begin, leave, restore, tenants
from messaging.exceptions import CommitNotProven, HandlerNotRun
from messaging.handlers import Handler
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import ProcessedMessage
from messaging.processing.inbox import stands

# Seconds beyond a handler's timeout after which the server ends its idle transaction. More than a supervisor that still
# runs, on however busy a machine, takes to kill the process, so that this is what is recorded; less than anyone minds.
MARGIN = 10.0
LONGEST = 2**31 - 1  # milliseconds that PostgreSQL takes

UNPROVEN = (
    "The handler returned, but its transaction was rolled back: it called set_rollback(True), closed the database "
    "connection, or caught a database error without a savepoint of its own."
)
ENDED = (
    "The handler returned, but its transaction had ended before: it executed ROLLBACK or COMMIT itself, or caught a "
    "deadlock. What it did since is not part of the transaction that records the message."
)

# Whoever watches the server sees which sessions run handlers; at most 63 bytes are kept, and all are ASCII.
_MARK = ("application_name", "left(current_setting('application_name'), 40) || ' (message)'")
logger = logging.getLogger("messaging.processor")

LAZY = (GeneratorType, map, filter)  # what does nothing until somebody asks for its items


class Proof:
    """Made in a transaction that has just begun, it tells at the end whether that is still the open one.

    Args:
        connection: whose transaction.
        in_test: whether the transaction is a savepoint in that of a test.
    """

    def __init__(self, connection: BaseDatabaseWrapper, *, in_test: bool) -> None:
        self._connection, self._in_test = connection, in_test
        if not in_test:
            begin(connection)
        has_savepoint = in_test or connection.vendor == "sqlite"
        self._savepoint = connection.savepoint() if has_savepoint else None
        self._before = self._marked = _reported(connection)
        self._record: ProcessedMessage | None = None

    def local(self, timeout: float | None) -> Local:
        """What the statement that writes the record sets for this transaction.

        That of a machine that hangs would keep the message from all others for as long as its TCP connection lasts.

        Args:
            timeout: the handler's, in seconds.
        """
        if self._connection.vendor != "postgresql" or self._in_test:
            return ()
        return (_MARK,) if timeout is None else (_MARK, _idle_limit(timeout))

    def recorded(self, row: ProcessedMessage) -> None:
        """The record is written, and the handler is about to run."""
        self._record, self._marked = row, _reported(self._connection)

    def refuse_other(self) -> None:
        """Raise CommitNotProven where this transaction can only be rolled back, or has been; once, at its end."""
        if is_doomed(self._connection):
            raise CommitNotProven(UNPROVEN)
        if self._savepoint is not None:
            self._release(self._savepoint)
        elif self._record is not None and not self._is_marked() and not stands(self._record, self._connection.alias):
            raise CommitNotProven(ENDED)

    def _is_marked(self) -> bool:
        """Whether the driver knows that it is the same; without knowing it the database is asked."""
        return bool(self._marked != self._before and _reported(self._connection) == self._marked)

    def _release(self, savepoint: str) -> None:
        if self._in_test:
            release(self._connection, savepoint)
            return
        try:
            self._connection.savepoint_commit(savepoint)
        except Error as error:
            raise CommitNotProven(ENDED) from error


def _idle_limit(timeout: float) -> tuple[str, str]:
    """A lower limit of the site's own stays."""
    name = "idle_in_transaction_session_timeout"
    own = f"nullif(extract(epoch FROM current_setting('{name}')::interval) * 1000, 0)"
    return name, f"least({own}, {min(LONGEST, int((timeout + MARGIN) * 1000))})::bigint::text"


def _reported(connection: BaseDatabaseWrapper) -> Any:
    """The session's `application_name` as the driver knows it; None where there is none."""
    raw: Any = connection.connection
    if connection.vendor != "postgresql" or raw is None or raw.closed:
        return None
    if hasattr(raw, "pgconn"):  # past psycopg's own attributes, which take thirty times as long
        return raw.pgconn.parameter_status(b"application_name")
    return raw.info.parameter_status("application_name")


@dataclass
class _Hook:
    """A commit hook; only that it ran proves the commit."""

    given: bool = False

    def __call__(self) -> None:
        self.given = True


@contextmanager
def proven_commit(database: str, what: object, about: Callable[[], Mapping[str, Any]], *, mode: str) -> Iterator[Proof]:
    """A transaction that ends either proven to be committed, or with an error.

    A handler can leave its transaction normally and yet rolled back: so the `Proof` that is yielded is to be asked
    behind it. And a commit hook that raises does so after the commit: that is logged, since the work is done.

    Inside the transaction of Django's `TestCase`, which alone lets a durable block begin in it, this is a savepoint,
    and releasing it does what a commit would.

    Args:
        database: where.
        what: named in the log.
        about: what a log record says of it, as `extra`.
        mode: how SQLite begins the transaction.
    """
    connection, hook = connections[database], _Hook()
    in_test, hooks = connection.in_atomic_block, len(connection.run_on_commit)
    try:
        with transaction_mode(connection, mode), transaction.atomic(using=database, durable=True):
            connection.on_commit(hook)
            yield Proof(connection, in_test=in_test)
            if is_doomed(connection):
                raise CommitNotProven(UNPROVEN)
            if in_test and connection.features.can_defer_constraint_checks:
                connection.check_constraints()
        if in_test:
            run_commit_hooks(connection, hooks)
    except BaseException:
        if not hook.given:
            raise
        logger.exception("%r is processed, but a commit hook failed.", what, extra=about())
    leave(connection)
    if not hook.given:
        raise CommitNotProven(UNPROVEN)


def call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: HandlerContext) -> None:
    """Call a handler, sync or async, so that `publish()` inside it knows what it runs for.

    What it gives back is of no interest, unless that is work still to be done: it is waited for. Raises HandlerNotRun
    for what nobody can wait for.

    The language or time zone that it activates, and whatever else is a context variable, ends with it. So do the tenant
    that it chooses, and a process that it forks and that comes back here.
    """
    own, before = os.getpid(), tenants()
    try:
        copy_context().run(_call, handler, argument, context)
    finally:
        if os.getpid() != own:
            end_fork()
        if before:
            restore(before)


def _call(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: HandlerContext) -> None:
    handler_context.set(context)
    if handler.contract is not None:
        receive(handler, argument)
    if iscoroutinefunction(handler.function):
        # async_to_sync brings the ORM's calls back into this thread, and so into this transaction.
        result = async_to_sync(handler.function)(argument)
    else:
        result = handler.function(argument)
    if result is not None:
        finish(result, handler)


def finish(result: Any, handler: Handler) -> None:
    """Do what a handler has left to whoever takes its result, as a decorated one does. Raises HandlerNotRun."""
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
