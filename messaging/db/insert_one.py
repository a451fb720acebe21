"""Statements that are compiled once, for what happens to every message: the ORM compiles them anew each time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import InsertQuery

from messaging.db.clock import Now
from messaging.db.connections import Local, brief_locks, setting
from messaging.db.session import STATE, can_prepare, compare, execute

# Fields whose plain values every driver takes as they are.
_PLAIN = (models.CharField, models.TextField, models.IntegerField, models.BooleanField)

# What most rows have in common is part of their statement, so that no driver has to encode it. Few values: each
# combination is a statement of its own. By type as well, because True == 1.
_LITERALS = {(bool, True): "TRUE", (bool, False): "FALSE", (int, 0): "0", (int, 1): "1"}


class _Question(NamedTuple):
    """What the statement of an `ask()` depends on."""

    database: str
    model: type[models.Model]
    what: str
    fields: tuple[str, ...]


class _Shape(NamedTuple):
    """What the INSERT of a row depends on: all but the values that are given as parameters."""

    database: str
    model: type[models.Model]
    given: tuple[str, ...]
    literal: tuple[tuple[str, str], ...]
    moments: tuple[str, ...]
    lock_wait: float | None
    local: Local


_questions: dict[_Question, str] = {}
_inserts: dict[_Shape, str] = {}


@dataclass(slots=True)
class _Values:
    """What one row brings along.

    Attributes:
        given: prepared values by attribute; what is NULL is not named at all.
        literal: SQL by attribute, for values that need no parameter.
        moments: attributes that take the database's clock.
        defaults: attributes that the database has a default for.
    """

    given: dict[str, Any] = field(default_factory=dict)
    literal: dict[str, str] = field(default_factory=dict)
    moments: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)


def insert(row: models.Model, database: str, *, lock_wait: float | None = None, local: Local = ()) -> None:
    """Insert an unsaved row and set its key; what the database filled in is read when it is first asked for.

    Args:
        row: where its values are expressions, or someone listens to its model's signals, it takes the ORM's way.
        database: alias of `DATABASES`.
        lock_wait: seconds to wait for another transaction that inserts a row with the same key; None for the session's.
        local: what the same statement sets for the rest of the transaction, on PostgreSQL; only with `lock_wait`.

    With `lock_wait`, raises SessionChanged where an earlier transaction left its session in another state.
    """
    connection = connections[database]
    values = None if _is_watched(type(row)) else _values(row, connection)
    if values is not None and connection.vendor == "postgresql":
        _insert(row, values, connection, lock_wait, local)
        return
    limit: AbstractContextManager[None] = nullcontext()
    if lock_wait is not None:
        limit = brief_locks(connection, lock_wait, local)
    with limit:
        if values is None:
            row.save(using=database, force_insert=True)
        else:
            _insert(row, values, connection)


def exists(model: type[models.Model], database: str, **values: Any) -> bool:
    """Whether there is a row with these values; see `ask()`."""
    return ask(model, database, "1", **values) is not None


def ask(model: type[models.Model], database: str, what: str, **values: Any) -> Any:
    """The value of an SQL expression, where there is a row with these values; else None.

    Args:
        model: of the row.
        database: alias of `DATABASES`.
        what: the expression, which is never NULL.
        values: by field.
    """
    connection, options = connections[database], model._meta
    fields: list[Any] = [options.get_field(name) for name in values]
    question = _Question(connection.alias, model, what, tuple(values))
    sql = _questions.get(question)
    if sql is None:
        quote = connection.ops.quote_name
        places = " AND ".join(f"{quote(str(field.column))} = %s" for field in fields)
        sql = f"SELECT {what} FROM {quote(options.db_table)} WHERE {places} LIMIT 1"  # noqa: S608  names of ours
        _questions[question] = sql
    with connection.cursor() as cursor:
        cursor.execute(sql, [field.get_db_prep_save(values[field.name], connection) for field in fields])
        found = cursor.fetchone()
        return None if found is None else found[0]


def _is_watched(model: type[models.Model]) -> bool:
    return pre_save.has_listeners(model) or post_save.has_listeners(model)


def _values(row: models.Model, connection: BaseDatabaseWrapper) -> _Values | None:
    """The values of a row; None where one is an expression other than the database's clock, or NULL not by default."""
    values, attributes = _Values(), row.__dict__
    for name, column, is_plain, default, constant in _columns(type(row)):
        value = attributes.get(name)
        if value is default and constant is not None:  # nearly all
            values.literal[name] = constant
            continue
        kind = type(value)
        if value is None:
            if column.has_db_default():
                return None
        elif kind is DatabaseDefault:
            values.defaults.append(name)
        elif kind is Now:
            values.moments.append(name)
        elif hasattr(value, "resolve_expression"):
            return None
        elif (literal := _literal(value, column, is_plain)) is not None:
            values.literal[name] = literal
        else:
            is_ready = is_plain and kind in (str, int, bool)
            values.given[name] = value if is_ready else column.get_db_prep_save(value, connection)
    return values


@cache
def _columns(model: type[models.Model]) -> list[tuple[str, models.Field[Any, Any], bool, Any, str | None]]:
    """Attribute, field, whether every driver takes its plain values as they are, default, and that in SQL if it can."""
    columns: list[tuple[str, models.Field[Any, Any], bool, Any, str | None]] = []
    for column in model._meta.concrete_fields:
        is_plain, default = isinstance(column, _PLAIN), column.get_default()
        constant = _literal(default, column, is_plain) if is_plain else None
        columns.append((column.attname, column, is_plain, default, constant))
    return columns


def _literal(value: Any, column: models.Field[Any, Any], is_plain: bool) -> str | None:
    """The SQL of one of the few values that statements contain; None for any other."""
    kind = type(value)
    if not is_plain:
        return "'{}'" if kind is dict and not value and isinstance(column, models.JSONField) else None
    if kind is str:
        return None if value else "''"
    return _LITERALS.get((kind, value)) if kind in (int, bool) else None


def _insert(
    row: models.Model,
    values: _Values,
    connection: BaseDatabaseWrapper,
    lock_wait: float | None = None,
    local: Local = (),
) -> None:
    literals = tuple(values.literal.items())
    given, moments = tuple(values.given), tuple(values.moments)
    shape = _Shape(connection.alias, type(row), given, literals, moments, lock_wait, local)
    sql = _inserts.get(shape)
    if sql is None:
        sql = _inserts[shape] = _compile(type(row), values, connection, lock_wait, local)
    # As with the ORM: a caller that swallows the error does not commit the rest.
    with transaction.mark_for_rollback_on_error(using=connection.alias):
        found = _execute(connection, sql, list(values.given.values()))
        row.pk = found[0]
        if lock_wait is not None:
            compare(connection, found[1])
    row._state.adding, row._state.db = False, connection.alias
    for name in (*values.moments, *values.defaults):
        del row.__dict__[name]


def _execute(connection: BaseDatabaseWrapper, sql: str, params: list[Any]) -> Any:
    """Run an INSERT; returns what it returns, first of all the row's key."""
    if can_prepare(connection):
        return execute(connection, sql, params)
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone() if connection.features.can_return_columns_from_insert else (cursor.lastrowid,)


def _compile(
    model: type[models.Model],
    values: _Values,
    connection: BaseDatabaseWrapper,
    lock_wait: float | None,
    local: Local,
) -> str:
    columns = {column.attname: column for column in model._meta.concrete_fields}
    quote = connection.ops.quote_name
    table, key = quote(model._meta.db_table), quote(str(model._meta.pk.column))
    named = [*values.given, *values.literal, *values.moments]
    names = ", ".join(quote(str(columns[name].column)) for name in named)
    places = [_place(columns[name], connection) for name in values.given]
    now = str(InsertQuery(model).get_compiler(connection=connection).compile(Now())[0])
    selected = ", ".join(places + [*values.literal.values()] + [now] * len(values.moments))
    head = f"INSERT INTO {table} ({names})"
    if lock_wait is not None:
        # The limit is set before the row is inserted and taken back behind it: no statements of their own.
        limit = f"set_config('lock_timeout', '{int(lock_wait * 1000)}', true)"
        back = f"RETURNING {key}, {STATE}, {setting((('lock_timeout', 'NULL'), *local))}"
        return f"{head} SELECT {selected} FROM {limit} {back}"  # noqa: S608  quoted names and places for values
    returning = f" RETURNING {key}" if connection.features.can_return_columns_from_insert else ""
    return f"{head} VALUES ({selected}){returning}"


def _place(column: models.Field[Any, Any], connection: BaseDatabaseWrapper) -> str:
    is_binary = connection.vendor == "mysql" and isinstance(column, models.BinaryField)
    return "_binary %s" if is_binary else "%s"
