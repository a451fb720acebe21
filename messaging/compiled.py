"""Statements that are compiled once, for what happens to every message: the ORM compiles them anew each time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import InsertQuery

from messaging.clock import Now
from messaging.database import brief_locks
from messaging.prepared import can_prepare, execute

# Fields whose plain values every driver takes as they are.
_PLAIN = (models.CharField, models.TextField, models.IntegerField, models.BooleanField)

_statements: dict[tuple[Any, ...], str] = {}


@dataclass(slots=True)
class _Values:
    """What one row brings along.

    Attributes:
        given: prepared values by attribute; what is NULL is not named at all.
        blank: attributes that are empty text, which needs no parameter.
        moments: attributes that take the database's clock.
        defaults: attributes that the database has a default for.
    """

    given: dict[str, Any] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)


def insert(row: models.Model, database: str, *, lock_wait: float | None = None) -> None:
    """Insert an unsaved row and set its key; what the database filled in is read when it is first asked for.

    Args:
        row: where its values are expressions, or someone listens to its model's signals, it takes the ORM's way.
        database: alias of `DATABASES`.
        lock_wait: seconds to wait for another transaction that inserts a row with the same key; None for the session's.
    """
    connection = connections[database]
    values = None if _is_watched(type(row)) else _values(row, connection)
    if values is not None and connection.vendor == "postgresql":
        _insert(row, values, connection, lock_wait)
        return
    limit: AbstractContextManager[None] = nullcontext() if lock_wait is None else brief_locks(connection, lock_wait)
    with limit:
        if values is None:
            row.save(using=database, force_insert=True)
        else:
            _insert(row, values, connection, None)


def exists(model: type[models.Model], database: str, **values: Any) -> bool:
    """Whether there is a row with these values.

    Args:
        model: of the row.
        database: alias of `DATABASES`.
        values: by field.
    """
    connection, options = connections[database], model._meta
    fields: list[Any] = [options.get_field(name) for name in values]
    shape = (connection.alias, model, *values)
    sql = _statements.get(shape)
    if sql is None:
        quote = connection.ops.quote_name
        places = " AND ".join(f"{quote(str(field.column))} = %s" for field in fields)
        sql = f"SELECT 1 FROM {quote(options.db_table)} WHERE {places} LIMIT 1"  # noqa: S608  names of ours
        _statements[shape] = sql
    with connection.cursor() as cursor:
        cursor.execute(sql, [field.get_db_prep_save(values[field.name], connection) for field in fields])
        return cursor.fetchone() is not None


def _is_watched(model: type[models.Model]) -> bool:
    return pre_save.has_listeners(model) or post_save.has_listeners(model)


def _values(row: models.Model, connection: BaseDatabaseWrapper) -> _Values | None:
    """The values of a row; None where one is an expression other than the database's clock, or NULL not by default."""
    values, attributes = _Values(), row.__dict__
    for column in row._meta.concrete_fields:
        name = column.attname
        value = attributes.get(name)
        if value is None:
            if column.has_db_default():
                return None
            continue
        if value == "" and type(value) is str:
            values.blank.append(name)
        elif type(value) in (str, int, bool) and isinstance(column, _PLAIN):
            values.given[name] = value
        elif isinstance(value, DatabaseDefault):
            values.defaults.append(name)
        elif type(value) is Now:
            values.moments.append(name)
        elif hasattr(value, "resolve_expression"):
            return None
        else:
            values.given[name] = column.get_db_prep_save(value, connection)
    return values


def _insert(row: models.Model, values: _Values, connection: BaseDatabaseWrapper, lock_wait: float | None) -> None:
    shape = (connection.alias, type(row), *values.given, "", *values.blank, None, *values.moments, lock_wait)
    sql = _statements.get(shape)
    if sql is None:
        sql = _statements[shape] = _compile(type(row), values, connection, lock_wait)
    # As with the ORM: a caller that swallows the error does not commit the rest.
    with transaction.mark_for_rollback_on_error(using=connection.alias):
        row.pk = _execute(connection, sql, list(values.given.values()))
    row._state.adding, row._state.db = False, connection.alias
    for name in (*values.moments, *values.defaults):
        del row.__dict__[name]


def _execute(connection: BaseDatabaseWrapper, sql: str, params: list[Any]) -> Any:
    """Run an INSERT; returns the row's key."""
    if can_prepare(connection):
        return execute(connection, sql, params)[0]
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if connection.features.can_return_columns_from_insert else cursor.lastrowid


def _compile(
    model: type[models.Model], values: _Values, connection: BaseDatabaseWrapper, lock_wait: float | None
) -> str:
    columns = {column.attname: column for column in model._meta.concrete_fields}
    quote = connection.ops.quote_name
    table, key = quote(model._meta.db_table), quote(str(model._meta.pk.column))
    named = [*values.given, *values.blank, *values.moments]
    names = ", ".join(quote(str(columns[name].column)) for name in named)
    places = [_place(columns[name], connection) for name in values.given]
    now = str(InsertQuery(model).get_compiler(connection=connection).compile(Now())[0])
    selected = ", ".join(places + ["''"] * len(values.blank) + [now] * len(values.moments))
    head = f"INSERT INTO {table} ({names})"
    if lock_wait is not None:
        # The limit is set before the row is inserted and taken back behind it: no statements of their own.
        limit = f"set_config('lock_timeout', '{int(lock_wait * 1000)}', true)"
        back = f"RETURNING {key}, set_config('lock_timeout', NULL, true)"
        return f"{head} SELECT {selected} FROM {limit} {back}"  # noqa: S608  quoted names and places for values
    returning = f" RETURNING {key}" if connection.features.can_return_columns_from_insert else ""
    return f"{head} VALUES ({selected}){returning}"


def _place(column: models.Field[Any, Any], connection: BaseDatabaseWrapper) -> str:
    is_binary = connection.vendor == "mysql" and isinstance(column, models.BinaryField)
    return "_binary %s" if is_binary else "%s"
