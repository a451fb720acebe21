"""A rehearsal: a handler is run on a failed message with today's code, in a transaction that is rolled back.

It needs a process of its own, which runs nothing else: as long as it lasts, no other connection is opened by it, and
mail goes to memory. Nothing is acknowledged, no outcome is recorded or told, and no commit hook runs.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings
from django.core import mail
from django.core.mail.backends import smtp
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext as _

from messaging import conf
from messaging.db.connections import is_doomed
from messaging.exceptions import CommitNotProven, WireError
from messaging.handlers import Handler, registry
from messaging.message import HandlerContext, ReceivedMessage
from messaging.models import ProcessedMessage, Rehearsal
from messaging.processing.error_text import describe, traceback_of
from messaging.processing.execution import UNPROVEN, call
from messaging.processing.surrounding import surrounded

State = Rehearsal.State

LOCK_WAIT = 2.0  # seconds for a lock: what waits for one keeps others waiting too
LISTED = 20  # published messages and tables that are named
IN_MEMORY = "django.core.mail.backends.locmem.EmailBackend"

_WRITES = re.compile(
    r"\s*(?:/\*.*?\*/\s*)*(?:INSERT(?:\s+IGNORE)?\s+INTO|REPLACE\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?)"
    r"\s+((?:[\"`\w]+\.)?[\"`]?[\w$]+[\"`]?)",
    re.IGNORECASE | re.DOTALL,
)
# What ends a transaction; on MariaDB and MySQL much else does.
_ENDS = r"BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|ROLLBACK(?!(\s+(WORK|TRANSACTION))?\s+TO\b)|PREPARE\s+TRANSACTION"
_ENDS_ON_MYSQL = (
    r"|SET\s+(SESSION\s+|@@(SESSION\.)?)?AUTOCOMMIT|CREATE(?!\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|ALTER|TRUNCATE|RENAME"
    r"|LOCK|UNLOCK|GRANT|REVOKE|ANALYZE|OPTIMIZE|REPAIR|FLUSH|CALL|XA"
)


class CannotBeRehearsed(Exception):
    """Something that no rollback takes back, or no rehearsal of its kind; says which, for people."""


@dataclass(slots=True)
class Report:
    """How a rehearsal ended: the columns of its row that say so."""

    state: str
    handler: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    traceback: str = ""


def rehearse(row: ProcessedMessage, round_: int, seconds: float) -> Report:
    """Run today's handler of a failed message, and take back what it did.

    Args:
        row: the message.
        round_: that it must still be in.
        seconds: that a statement may take; who calls this ends its process once that is over.
    """
    handler = registry.find(row.alias, row.queue, row.routing_key)
    name = handler.name if handler is not None else ""
    watch = _Watch(connections[row._state.db or "default"])
    try:
        known, message = _fit(row, round_, handler)
        result = _run(known, message, watch, seconds)
    except CannotBeRehearsed as error:
        return Report(State.REFUSED, name, error=str(error))
    except BaseException as error:  # noqa: BLE001  SystemExit is a failed attempt as well
        if not watch.refused:
            return Report(State.FAILED, name, error=describe(error), traceback=traceback_of(error))
    if watch.refused:
        return Report(State.REFUSED, name, error=watch.refused)
    return Report(State.SUCCEEDED, name, result)


def _fit(row: ProcessedMessage, round_: int, handler: Handler | None) -> tuple[Handler, ReceivedMessage]:
    """The handler, and the message as a requeue would bring it. Raises CannotBeRehearsed."""
    if row.state != ProcessedMessage.State.FAILED or row.round != round_:
        raise CannotBeRehearsed(_("The message is not failed any more, or has gone round since."))
    if handler is None:
        raise CannotBeRehearsed(_("No handler takes it."))
    if not (handler.rehearse and handler.atomic):
        raise CannotBeRehearsed(_("Its handler is not registered with rehearse=True."))
    if handler.database != row._state.db:
        text = _("Its handler works in the database “%(name)s”, and the message is in another one.")
        raise CannotBeRehearsed(text % {"name": handler.database})
    try:
        envelope = replace(row.envelope(), round=row.round + 1)
    except WireError as error:
        raise CannotBeRehearsed(_("Its stored content is damaged: %(error)s") % {"error": error}) from error
    return handler, ReceivedMessage(envelope, queue=row.queue)


def _run(handler: Handler, message: ReceivedMessage, watch: _Watch, seconds: float) -> dict[str, Any]:
    connection = watch.connection
    context = HandlerContext(message, handler.database, True, None, using=handler.using, rehearsed=[])
    handler = surrounded(conf.get(handler.using), handler)
    with _mail_in_memory() as mails, watch.alone(), transaction.atomic(using=handler.database, durable=True):
        _limit(connection, seconds)
        began = time.monotonic()
        try:
            with connection.execute_wrapper(watch):
                call(handler, [message] if handler.batch is not None else message, context)
            if is_doomed(connection):
                raise CommitNotProven(UNPROVEN)
            if connection.vendor == "postgresql":
                connection.check_constraints()  # those that the commit would check
        finally:
            took = time.monotonic() - began
            watch.settle()
            if connection.in_atomic_block:
                transaction.set_rollback(True, using=handler.database)
    published = [[row.queue or row.exchange, row.routing_key] for row in context.rehearsed or ()]
    return {
        "seconds": round(took, 3),
        "rows": watch.rows.total(),
        "tables": dict(watch.rows.most_common(LISTED)),
        "messages": len(published),
        "published": published[:LISTED],
        "mails": len(mails),
    }


@dataclass(slots=True)
class _Watch:
    """Sees to it that all goes through one connection and stays in its transaction, and counts what is written.

    It wraps the execution of statements, as Django has it.

    Attributes:
        connection: the one.
        rows: how many were written, by table.
        refused: why this is no rehearsal; "" while it is one. Whatever the handler makes of the error.
    """

    connection: BaseDatabaseWrapper
    rows: Counter[str] = field(default_factory=Counter)
    refused: str = ""
    _returning: str = ""  # the table of a statement whose rows SQLite counts once they are read
    _seen: int = 0

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Mapping[str, Any]) -> Any:
        """Execute a statement, unless it ends the transaction."""
        pattern = _ENDS + (_ENDS_ON_MYSQL if self.connection.vendor == "mysql" else "")
        text = sql if isinstance(sql, str) else str(sql.as_string(self.connection.connection))  # psycopg's own
        if re.search(rf"(?:^|;)\s*(?:{pattern})\b", text, re.IGNORECASE):
            raise self._refuse(_("The handler ends its transaction itself, which no rehearsal could take back."))
        self.settle()
        result = execute(sql, params, many, context)
        written = _WRITES.match(text)
        if written is not None:
            self._note(re.sub(r'["`]', "", written[1]), context["cursor"].rowcount)
        return result

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have no other connection opened in this process, by whichever thread: it would commit on its own."""
        self.connection.ensure_connection()
        self._seen = self._changes()
        before = BaseDatabaseWrapper.connect

        def connect(other: BaseDatabaseWrapper) -> None:
            text = _("The handler uses a second connection (database “%(name)s”), which no rehearsal could take back.")
            raise self._refuse(text % {"name": other.alias})

        setattr(BaseDatabaseWrapper, "connect", connect)  # noqa: B010  of the class: other threads have other objects
        try:
            yield
        finally:
            setattr(BaseDatabaseWrapper, "connect", before)  # noqa: B010

    def settle(self) -> None:
        """Count what has been written since it was last counted."""
        now = self._changes()
        if self._returning and now > self._seen:
            self.rows[self._returning] += now - self._seen
        self._returning, self._seen = "", now

    def _note(self, table: str, count: int) -> None:
        if table.startswith("messaging_"):
            return  # what is published is told apart
        if self.connection.vendor == "sqlite":
            self._returning = table
        elif count > 0:
            self.rows[table] += count

    def _changes(self) -> int:
        raw: Any = self.connection.connection
        return int(raw.total_changes) if self.connection.vendor == "sqlite" and raw is not None else 0

    def _refuse(self, why: str) -> CannotBeRehearsed:
        self.refused = self.refused or why
        return CannotBeRehearsed(why)


def _limit(connection: BaseDatabaseWrapper, seconds: float) -> None:
    """Bound what one statement and one lock may take, for this transaction or this process's own session."""
    whole, lock = max(1, int(seconds)), int(LOCK_WAIT)
    if connection.vendor == "postgresql":
        names = ("statement_timeout", "idle_in_transaction_session_timeout")
        statements = [
            f"SET LOCAL lock_timeout = {1000 * lock}",
            *(f"SET LOCAL {one} = {1000 * whole}" for one in names),
        ]
    elif connection.vendor == "mysql":
        is_mariadb = getattr(connection, "mysql_is_mariadb", False)
        longest = f"max_statement_time = {whole}" if is_mariadb else f"max_execution_time = {1000 * whole}"
        limits = (f"innodb_lock_wait_timeout = {lock}", f"lock_wait_timeout = {lock}", longest)
        statements = [f"SET SESSION {one}" for one in limits]
    else:
        statements = [f"PRAGMA busy_timeout = {1000 * lock}"]
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def _mail_in_memory() -> Iterator[list[Any]]:
    """Have mail kept instead of sent, by the site's backend or by Django's own for SMTP."""
    kept: list[Any] = []

    def keep(_backend: Any, messages: Any) -> int:
        found = list(messages)
        kept.extend(found)
        return len(found)

    # Django looks at MAILERS from 6.1 on, and there only where a site has it.
    name = "MAILERS" if hasattr(mail, "mailers") and hasattr(settings, "MAILERS") else "EMAIL_BACKEND"
    before, outbox = _quietly(getattr, settings, name), getattr(mail, "outbox", None)
    in_memory = {one: {"BACKEND": IN_MEMORY} for one in before or ("default",)} if name == "MAILERS" else IN_MEMORY
    send, mail.outbox = smtp.EmailBackend.send_messages, kept
    _quietly(setattr, settings, name, in_memory)
    setattr(smtp.EmailBackend, "send_messages", keep)  # noqa: B010  of those that a handler names itself
    try:
        yield kept
    finally:
        setattr(smtp.EmailBackend, "send_messages", send)  # noqa: B010
        _quietly(setattr, settings, name, before)
        if outbox is None:
            del mail.outbox
        else:
            mail.outbox = outbox


def _quietly(call: Any, *arguments: Any) -> Any:
    """Call it without a warning: that a site still has EMAIL_BACKEND is not for us to say."""
    with warnings.catch_warnings(action="ignore"):
        return call(*arguments)
