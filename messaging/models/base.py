"""What the models share; and conditions on a row's state."""

from __future__ import annotations

import uuid
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import CharField, F, Func, Q
from django.db.models.base import ModelState
from django.db.models.functions import Coalesce
from django.db.models.lookups import In
from django.db.models.sql.compiler import SQLCompiler
from django.utils.translation import gettext_lazy as _

from messaging.db.clock import MomentField, Now
from messaging.wire.bodies import unpack_body


class PolledIndex(models.Index):
    """A partial index that becomes a full one where the database has no partial indexes (MySQL, MariaDB).

    Django skips a conditional index there, and what is polled would be scanned.
    """

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        """The CREATE INDEX statement."""
        if self.condition is None or schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using, **kwargs)
        full = models.Index(fields=self.fields, name=self.name)
        return full.create_sql(model, schema_editor, using, **kwargs)

    def remove_sql(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, **kwargs: Any) -> Any:
        """The DROP INDEX statement."""
        if self.condition is None or schema_editor.connection.features.supports_partial_indexes:
            return super().remove_sql(model, schema_editor, **kwargs)
        full = models.Index(fields=self.fields, name=self.name)
        return full.remove_sql(model, schema_editor, **kwargs)


def set_only(foreign_key: str, name: str) -> models.Index:
    """The index of a foreign key that hardly any row has: no entry for each row that has none.

    Where there are no partial indexes (MySQL, MariaDB) it has all rows, and stands in for the foreign key's own.
    """
    return models.Index(fields=[foreign_key], name=name, condition=Q(**{f"{foreign_key}__isnull": False}))


if TYPE_CHECKING:
    TextColumn = models.CharField[str | models.expressions.Combinable, str]
else:  # it takes no types at run time
    TextColumn = models.CharField


class NameField(TextColumn):
    """A name that is case-sensitive in RabbitMQ or in the settings, and so in its column, whatever the collation."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """The column's type, with a binary collation on MySQL and MariaDB."""
        parameters: Any = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


def written(model: type[models.Model]) -> Any:
    """The rows of one of our models, in the database that a router has them written to: a replica may lag behind it."""
    return model._default_manager.using(router.db_for_write(model))


class StoredMessage(models.Model):
    """The message itself, as both the outbox and the inbox keep it.

    Text columns are for people and queries: what a database cannot store is shown escaped there. `wire` holds
    exchange, routing key and properties to the byte; `body` with `body_encoding` holds the payload to the byte.
    """

    alias = NameField(_("alias"), max_length=100, default="default")
    message_id = models.CharField(_("message id"), max_length=255, blank=True)
    queue = NameField(_("queue"), max_length=255, blank=True)
    exchange = models.CharField(_("exchange"), max_length=255, blank=True)
    routing_key = models.CharField(_("routing key"), max_length=255, blank=True)
    type = models.CharField(_("type"), max_length=255, blank=True)
    content_type = models.CharField(_("content type"), max_length=255, blank=True)
    correlation_id = models.CharField(_("correlation id"), max_length=255, blank=True)
    causation_id = models.CharField(_("causation id"), max_length=255, blank=True)
    reply_to = models.CharField(_("reply to"), max_length=255, blank=True)
    headers = models.JSONField(_("headers"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    body = models.TextField(_("body"), blank=True)
    body_encoding = models.CharField(_("body encoding"), max_length=10, blank=True)
    wire = models.BinaryField(_("envelope"), null=True, editable=False)
    round = models.PositiveIntegerField(_("round"), default=1)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    error = models.TextField(_("error"), blank=True)
    created_at = MomentField(_("created"), db_default=Now(), editable=False)
    discarded_at = MomentField(_("discarded"), null=True, editable=False)

    class Meta:
        abstract = True

    @classmethod
    @cache
    def blank_values(cls) -> dict[str, Any]:
        """The value of each column of a row that says nothing, by attribute; not to be changed."""
        return {field.attname: field.get_default() for field in cls._meta.concrete_fields}

    @classmethod
    def of(cls, values: dict[str, Any], database: str | None = None) -> Self:
        """An instance with these values by attribute: much faster than by the constructor, and without its signals.

        Args:
            values: of every column; one that is left out is read from the database when it is asked for.
            database: where it is stored; None for an unsaved one.
        """
        row = cls.__new__(cls)
        row.__dict__.update(values)
        row._state = ModelState()
        row._state.db, row._state.adding = database, database is None
        return row

    def refresh_from_db(self, using: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Read it again from where it is stored: what a router reads from may not have it yet."""
        super().refresh_from_db(using or self._state.db, *args, **kwargs)

    @property
    def raw_body(self) -> bytes:
        """The payload's bytes."""
        return unpack_body(self.body, self.body_encoding)


class Claimable(models.Model):
    """What an operator has asked for, and a worker carries out under a claim.

    `username` is the operator, and `language` theirs, for what is said. `worker` is who carries it out, from `began_at`
    to `ended_at`; its claim is `lease_token` with `leased_until`: where that has run out, it is gone. Each kind has a
    `state`, which is `RUNNING` while a claim is held.
    """

    RUNNING = "running"
    UNCLAIMED: dict[str, Any] = {"lease_token": None, "leased_until": None}

    username = models.CharField(_("user name"), max_length=255, blank=True)
    language = models.CharField(max_length=35, blank=True)
    created_at = MomentField(_("created"), db_default=Now())
    began_at = MomentField(_("began"), null=True)
    ended_at = MomentField(_("ended"), null=True)
    worker = models.CharField(_("worker"), max_length=200, blank=True)
    lease_token = models.UUIDField(null=True, editable=False)
    leased_until = MomentField(null=True, editable=False)

    class Meta:
        abstract = True

    @classmethod
    def claim(cls, free: models.QuerySet[Self], worker: str, seconds: float) -> Self | None:
        """Claim the oldest of the rows that nobody carries out; None where there is none.

        Args:
            free: those that may be claimed now.
            worker: who does.
            seconds: for which the claim holds, unless it is renewed.
        """
        while (found := free.order_by("pk").first()) is not None:
            token, until = uuid.uuid4(), Now() + timedelta(seconds=seconds)
            values = {"state": cls.RUNNING, "worker": worker[:200], "lease_token": token, "leased_until": until}
            as_read = free.filter(pk=found.pk, lease_token=found.lease_token)
            if as_read.update(**values, began_at=Coalesce("began_at", Now())):
                found.lease_token = token
                return found
        return None

    def claimed(self) -> Any:
        """Its row, as long as the claim holds that it was read with."""
        rows: Any = type(self)._base_manager.using(self._state.db)
        return rows.filter(pk=self.pk, state=self.RUNNING, lease_token=self.lease_token)


def in_state(*states: str) -> In:
    """That a row is in one of these states, for statements that find it by something else: its id, its inbox row.

    PostgreSQL learns of a backlog when it next analyzes the table, by default after a tenth of it has changed. Until
    then an index of unsent rows alone seems to hold none, and so to be the cheapest way to one whose id is given: each
    statement would read the whole backlog. This condition implies that of no partial index, so none is considered.
    """
    return In(_Unindexed(F("state"), output_field=CharField()), list(states))


def listed_in(state: str) -> Q:
    """That a row is in this state, for a list of such rows: sort it by state and number, and it is read in that order.

    A state that is said by an equation is no part of an order to PostgreSQL. It then may read the whole table in the
    order of its numbers, should it believe that many rows are in that state: they may all be at the other end.
    """
    return Q(state__gte=state, state__lte=state)


class _Unindexed(Func):
    """A text column as an expression that no index knows."""

    template = "%(expressions)s"

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """Concatenated with nothing."""
        return self.as_sql(compiler, connection, template="(%(expressions)s || '')", **context)
