"""Statements that are compiled once, for what happens to every message: the ORM compiles them anew each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import compress
from operator import is_not
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
PLAIN = (models.CharField, models.TextField, models.IntegerField, models.BooleanField)

# What most rows have in common is part of their statement, so that no driver has to encode it. Few values: each
# combination is a statement of its own. By type, because True == 1.
_LITERALS: dict[type, dict[Any, str]] = {str: {"": "''"}, int: {0: "0", 1: "1"}, bool: {True: "TRUE", False: "FALSE"}}


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
    unusual: tuple[str, ...]
    given: tuple[str, ...]
    literal: tuple[tuple[str, str], ...]
    moments: tuple[str, ...]
    lock_wait: float | None
    local: Local


_NOTHING = object()

_questions: dict[_Question, str] = {}
_inserts: dict[_Shape, str] = {}


@dataclass(slots=True)
class _Values:
    """What one row brings along that most rows do not.

    Attributes:
        unusual: all attributes that are not as in most rows.
        given: prepared values by attribute; what is NULL is not named at all.
        literal: SQL by attribute, for values that need no parameter.
        moments: attributes that take the database's clock.
        defaults: attributes that the database has a default for.
    """

    unusual: tuple[str, ...]
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
    columns, attributes = _columns(type(row)), row.__dict__
    values = _Values(tuple(columns.unusual(attributes)))
    given, literal = values.given, values.literal
    of_database = {Now: values.moments, DatabaseDefault: values.defaults}
    for name in values.unusual:
        value, (column, is_plain, has_db_default) = attributes.get(name), columns.fields[name]
        if value is None:
            if has_db_default:
                return None
        elif is_plain and (kind := type(value)) in _LITERALS:
            if (kind is not str or not value) and (sql := _LITERALS[kind].get(value)) is not None:  # no body is hashed
                literal[name] = sql
            else:
                given[name] = value
        elif (left_to_database := of_database.get(type(value))) is not None:
            left_to_database.append(name)
        elif hasattr(value, "resolve_expression"):
            return None
        elif type(value) is dict and not value and isinstance(column, models.JSONField):
            literal[name] = "'{}'"
        else:
            given[name] = column.get_db_prep_save(value, connection)
    return values


class _Columns(NamedTuple):
    """The columns of a table as the values of a row are looked at.

    Attributes:
        names: all attributes.
        usual: what most rows have, in the same order.
        constants: SQL of what most rows have, where statements contain it.
        fields: by attribute: the field, whether every driver takes its plain values as they are, and whether NULL has
            to be said.
    """

    names: tuple[str, ...]
    usual: tuple[Any, ...]
    constants: dict[str, str]
    fields: dict[str, tuple[models.Field[Any, Any], bool, bool]]

    def unusual(self, attributes: dict[str, Any]) -> Iterator[str]:
        """The attributes that are not as in most rows; few of some fifty, so no line of Python runs for the others."""
        return compress(self.names, map(is_not, map(attributes.get, self.names), self.usual))


@cache
def _columns(model: type[models.Model]) -> _Columns:
    columns = _Columns(tuple(column.attname for column in model._meta.concrete_fields), (), {}, {})
    usual: list[Any] = []
    for column in model._meta.concrete_fields:
        is_plain, has_db_default, default = isinstance(column, PLAIN), column.has_db_default(), column.get_default()
        constant = _LITERALS.get(type(default), {}).get(default) if is_plain else None
        if constant is not None:
            columns.constants[column.attname] = constant
            usual.append(default)
        else:
            usual.append(_NOTHING if has_db_default else None)
        columns.fields[column.attname] = column, is_plain, has_db_default
    return columns._replace(usual=tuple(usual))


def _insert(
    row: models.Model,
    values: _Values,
    connection: BaseDatabaseWrapper,
    lock_wait: float | None = None,
    local: Local = (),
) -> None:
    given, literal, moments = tuple(values.given), tuple(values.literal.items()), tuple(values.moments)
    shape = _Shape(connection.alias, type(row), values.unusual, given, literal, moments, lock_wait, local)
    sql = _inserts.get(shape)
    if sql is None:
        sql = _inserts[shape] = _compile(type(row), values, connection, lock_wait, local)
    try:
        found = _execute(connection, sql, list(values.given.values()))
        row.pk = found[0]
        if lock_wait is not None:
            compare(connection, found[1])
    except Exception:
        # As with the ORM: a caller that swallows the error does not commit the rest.
        with transaction.mark_for_rollback_on_error(using=connection.alias):
            raise
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
    usual = {name: sql for name, sql in _columns(model).constants.items() if name not in values.unusual}
    literal = usual | values.literal
    named = [*values.given, *literal, *values.moments]
    names = ", ".join(quote(str(columns[name].column)) for name in named)
    places = [_place(columns[name], connection) for name in values.given]
    now = str(InsertQuery(model).get_compiler(connection=connection).compile(Now())[0])
    selected = ", ".join(places + [*literal.values()] + [now] * len(values.moments))
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
