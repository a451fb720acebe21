"""What a relay does with the rows of the outbox: look, lease, renew, mark. Each change is a compare-and-set."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BooleanField, Case, F, Func, Q, TextField, Value, When
from django.db.models.functions import Length
from django.db.models.lookups import In
from django.db.models.sql.compiler import SQLCompiler

from messaging.db.clock import Now
from messaging.db.session import rows_of
from messaging.models import tries
from messaging.models.base import in_state
from messaging.models.light import LIGHT
from messaging.wire.bodies import storable

if TYPE_CHECKING:
    from messaging.models.published import PublishedMessage

OWNER_LENGTH = 200
UNROUTABLE = "Unroutable."  # how the error begins, for people, of a row that no queue took
# That no queue took a pending row when it was last sent. For one release also by the error's beginning: the release
# before says no more than that.
UNROUTED = Q(attempts__gt=0) & (Q(unrouted__isnull=False) | Q(error__startswith=UNROUTABLE))
# What a relay has to know of a row, its headers last. The rest is read from the database when it is asked for.
LEASED = (
    "id", "alias", "state", "lease_token", "message_id", "exchange", "queue", "routing_key", "type", "content_type",
    "correlation_id", "causation_id", "reply_to", "body", "body_encoding", "wire", "priority", "expiration",
    "mandatory", "created_at", "attempts", "round", "epoch", "inbox_id", "headers",
)  # fmt: skip

_COLUMNS = ("id", "size", *LEASED[1:])
_SPECIAL = {"size": "octet_length(body)", "body": f"CASE WHEN octet_length(body) <= {LIGHT} THEN body END"}
_RETURNED = ", ".join(_SPECIAL.get(name, name) for name in _COLUMNS[:-1])  # without the headers


class PublishedMessageQuerySet(models.QuerySet["PublishedMessage"]):
    """State changes are verbs; each is a compare-and-set and returns how many rows it changed."""

    def pending(self) -> Self:
        """Rows that are to be sent, now or later."""
        return self.filter(state=self.model.State.PENDING)

    def waiting_for_queue(self) -> Self:
        """Pending rows that no queue took when they were last sent."""
        return self.pending().filter(UNROUTED)

    def unsent(self) -> Self:
        """Pending rows whose time has come, and that do not wait for a queue: what people call due."""
        return self.pending().filter(publish_at__lte=Now()).exclude(UNROUTED)

    def scheduled(self, alias: str, **when: Any) -> Self:
        """Pending rows of an alias, the next first. They are found by `due_at`, which no others have.

        Args:
            alias: whose.
            when: conditions on `due_at` in place of "that there is one". PostgreSQL takes the two for independent, and
                expects a hundredth of the rows where one in a hundred is pending.
        """
        # Said by the other states: PostgreSQL has no statistics of such a condition. It guesses that one row in 200 is
        # in a given state, and might not trust the index to find enough that are.
        others = set(self.model.State) - {self.model.State.PENDING}
        found = Q(**when or {"due_at__isnull": False})
        return self.filter(~Q(in_state(*sorted(others))), found, alias=alias).order_by("due_at", "id")

    def due(self, alias: str) -> Self:
        """Pending rows of an alias whose time has come and that no relay holds, oldest first."""
        return self.scheduled(alias, due_at__lte=Now())

    def wait(self, alias: str) -> float | None:
        """Seconds until the next pending row of an alias can be taken, 0 when one can be now; None without any.

        By the database's clock; one look into the polled index.
        """
        found = self.scheduled(alias).annotate(now=Now()).values_list("due_at", "now")[:1]
        return next((max(0.0, (due - now).total_seconds()) for due, now in found if due is not None), None)

    def lease(
        self, alias: str, owner: str, seconds: float, limit: int, *, newest: bool = False
    ) -> list[PublishedMessage]:
        """Take up to `limit` due rows for `seconds`, the oldest or the newest; other relays leave them alone till then.

        Each row comes back with the columns `LEASED`, among them the lease's `lease_token`, which every later mark but
        `published` needs, and with the `size` of its body; a body above `LIGHT` is read when it is asked for.
        """
        owner, token = owner[:OWNER_LENGTH], uuid.uuid4()
        due = self.due(alias).reverse() if newest else self.due(alias)
        if transaction.get_connection(self.db).vendor == "postgresql":
            found = self._lease_at_once(due[:limit], owner, token, seconds)
        else:
            found = self._lease_in_steps(due, owner, token, seconds, limit)
        return [self._leased(values) for values in sorted(found, key=itemgetter(0))]

    def _leased(self, values: Sequence[Any]) -> PublishedMessage:
        columns = dict(zip(_COLUMNS, values, strict=True))
        if columns["body"] is None:
            del columns["body"]
        return self.model.of(columns, self.db)

    def renew(self, rows: Iterable[PublishedMessage], seconds: float) -> int:
        """Extend the leases of rows that are still held. Returns how many were."""
        return self._change_held(rows, due_at=after(seconds))

    def release(self, rows: Iterable[PublishedMessage], lost: str = "", by: str = "") -> int:
        """Hand rows that are still held back, so that any relay can take them now; nothing is spent.

        Args:
            rows: which.
            lost: why nobody knows whether the broker has them; "" where they were not sent.
            by: the relay's name.
        """
        told = {"tries": tries.noted(tries.LOST, storable(lost), by)} if lost else {}
        return self._change_held(rows, due_at=Now(), lease_owner="", lease_token=None, **told)

    def back_off(
        self,
        rows: Iterable[PublishedMessage],
        seconds: float,
        error: str,
        *,
        spend: bool = True,
        unrouted: bool = False,
        by: str = "",
    ) -> int:
        """Send rows that are still held again in `seconds`.

        Args:
            rows: which.
            seconds: from now.
            error: for people.
            spend: whether the attempt counts.
            unrouted: whether no queue took them.
            by: the relay's name.
        """
        error = storable(error)
        changes = {"due_at": after(seconds), "error": error, "attempts": F("attempts") + int(spend)}
        fate = tries.UNROUTED if unrouted else tries.REFUSED
        changes |= {"unrouted": unrouted or None, "tries": tries.noted(fate, error, by)}
        return self._change_held(rows, lease_owner="", lease_token=None, **changes)

    def fail(self, rows: Sequence[PublishedMessage], error: str, by: str = "") -> list[PublishedMessage]:
        """Rows that can never be sent, as the relay of that name found. Returns those that were still held, changed.

        The round of an incoming message takes that message along: it would wait for this row for ever. Where it does
        not wait for this round, nobody misses the row: it is laid aside.
        """
        error, failed = storable(error), self.model.State.FAILED
        changes = {"state": failed, "due_at": None, "error": error, "attempts": F("attempts") + 1}
        changes["tries"] = tries.noted(tries.FAILED, error, by)
        with transaction.atomic(using=self.db):
            if self._change_held(rows, lease_owner="", lease_token=None, **changes) < len(rows):
                found = self.filter(in_state(failed), self._among(rows), self._as_sent(rows))
                ids = set(found.values_list("pk", flat=True))
                rows = [row for row in rows if row.pk in ids]
            missed: list[PublishedMessage] = []
            needless: list[PublishedMessage] = []
            for row in rows:
                row.state, row.error = failed, error
                (missed if row.fail_round() else needless).append(row)
            if needless:
                found = self.filter(in_state(failed), self._among(needless), self._as_sent(needless))
                found.update(state=self.model.State.DISCARDED, discarded_at=Now())
        return missed

    def mark_published(self, rows: Sequence[PublishedMessage]) -> int:
        """The broker has confirmed them: published, whoever holds the lease now and whatever was said since.

        Only the sending that it confirmed: an operator may have had the row sent anew since, or a database that was set
        back may have given its number to another message.
        """
        published = self.model.State.PUBLISHED
        return self.filter(~Q(in_state(published)), self._among(rows), self._as_sent(rows)).update(
            state=published,
            published_at=Now(),
            due_at=None,
            lease_owner="",
            lease_token=None,
            attempts=F("attempts") + 1,
            error="",
        )

    def _change_held(self, rows: Iterable[PublishedMessage], **changes: Any) -> int:
        by_token: dict[uuid.UUID | None, list[PublishedMessage]] = {}
        for row in rows:
            by_token.setdefault(row.lease_token, []).append(row)
        return sum(
            self.filter(in_state(self.model.State.PENDING), self._among(held), lease_token=token).update(**changes)
            for token, held in by_token.items()
        )

    def _among(self, rows: Iterable[PublishedMessage]) -> Q | Func:
        """That a row is one of these."""
        ids = [row.id for row in rows]
        if transaction.get_connection(self.db).vendor != "postgresql":
            return Q(id__in=ids)
        return _any(F("id"), f"{{{','.join(map(str, ids))}}}", "bigint[]")

    def _as_sent(self, rows: Iterable[PublishedMessage]) -> In | Func:
        """That a row has the message and the epoch that one of these has. For rows that are found by their ids."""
        sendings = [f"{row.id} {row.epoch} {row.message_id}" for row in rows]
        if transaction.get_connection(self.db).vendor != "postgresql":
            return In(_Sending(), sendings)
        texts = "\0".join(sendings).replace("\\", r"\\").replace('"', r"\"").replace("\0", '","')  # no id has a NUL
        return _any(_Sending(), f'{{"{texts}"}}', "text[]")

    def _lease_at_once(self, rows: Self, owner: str, token: uuid.UUID, seconds: float) -> list[Any]:
        """One statement that locks, changes and returns; its commit does not wait for the disk.

        A lease that the server forgets in a crash has its row sent again, as when a relay dies.
        """
        connection = transaction.get_connection(self.db)
        due, params = rows.values("id").query.get_compiler(self.db).as_sql()
        found = rows_of(
            connection,
            f"UPDATE {self.model._meta.db_table} "  # noqa: S608 - our own model's names
            "SET lease_owner = %s, lease_token = %s, due_at = STATEMENT_TIMESTAMP() + %s "
            "FROM set_config('synchronous_commit', 'off', true) "
            f"WHERE id = ANY(ARRAY({due} FOR UPDATE SKIP LOCKED)) RETURNING {_RETURNED}, headers::text",
            [owner, token, timedelta(seconds=seconds), *params],
        )
        # Most have no headers, and a driver takes longer over their JSON than over the rest of the row.
        return [(*values, {} if headers == "{}" else json.loads(headers)) for *values, headers in found]

    def _lease_in_steps(self, due: Self, owner: str, token: uuid.UUID, seconds: float, limit: int) -> list[Any]:
        """Look, then change, then read what was changed."""
        changes = {"lease_owner": owner, "lease_token": token, "due_at": after(seconds)}
        if transaction.get_connection(self.db).features.has_select_for_update_skip_locked:
            with transaction.atomic(using=self.db):
                locked = due.select_for_update(skip_locked=True)
                ids = list(locked.values_list("id", flat=True)[:limit])
                self.filter(id__in=ids).update(**changes)
        else:  # Nothing is locked by looking, so the condition decides who wins, and an idle relay never writes.
            ids = list(due.values_list("id", flat=True)[:limit])
            if ids:
                due.order_by().filter(id__in=ids).update(**changes)
        if not ids:
            return []
        body = Case(When(size__lte=LIGHT, then=F("body")), output_field=TextField())
        found = self.filter(lease_token=token, id__in=ids).annotate(size=Length("body"), light_body=body)
        return list(found.values_list(*("light_body" if name == "body" else name for name in _COLUMNS)))


class _Sending(Func):
    """A row's number, epoch and message id as one text, which a list of many is searched for faster than for three."""

    template, arg_joiner = "(%(expressions)s)", " || ' ' || "

    def __init__(self, *expressions: Any, **extra: Any) -> None:
        super().__init__(*(expressions or ("id", "epoch", "message_id")), output_field=TextField(), **extra)

    def as_mysql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """There || is OR."""
        return self.as_sql(compiler, connection, template="CONCAT_WS(' ', %(expressions)s)", arg_joiner=", ", **context)


def _any(expression: Any, array: str, kind: str) -> Func:
    """That it is one of an array's: one parameter, written here, because a driver takes its time over a list."""
    options: Any = {"template": f"(%(expressions)s::{kind}))", "arg_joiner": " = ANY("}
    return Func(expression, Value(array), output_field=BooleanField(), **options)


def after(seconds: float) -> Any:
    """So many seconds from now, by the database's clock."""
    return Now() + timedelta(seconds=seconds)
