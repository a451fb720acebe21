"""Inserting many rows where the ORM would take longer than the database; `compiled` inserts one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault
from django.db.models.sql import InsertQuery

from messaging.database import batches

Row = TypeVar("Row", bound=models.Model)
Field: TypeAlias = "models.Field[Any, Any]"


def insert_many(rows: Sequence[Row], database: str, size_of: Callable[[Row], int]) -> None:
    """Insert unsaved rows of one model, all or none, and set what the database adds: keys and defaults.

    The database's defaults must be constant within a statement, as the moment is. As with `bulk_create()` there are
    no signals, and the keys are known where the database can tell them.

    Args:
        rows: in the order that their keys are to have.
        database: alias of `DATABASES`.
        size_of: the bytes of a row, roughly.
    """
    with transaction.atomic(using=database, savepoint=False):
        for batch in batches(rows, size_of):
            statement = _statement(batch, connections[database])
            if statement is not None:
                statement.insert(batch)
            else:
                type(batch[0])._base_manager.using(database).bulk_create(batch)


def insert_values(
    model: type[models.Model],
    shared: Mapping[str, Any],
    each: Sequence[Mapping[str, Any]],
    database: str,
    size_of: Callable[[Mapping[str, Any]], int],
) -> None:
    """Insert rows of which nobody needs an instance, all or none.

    Args:
        model: of the rows.
        shared: what all of them have, by attribute; the rest is as the model says.
        each: what each has of its own, by attribute; the same attributes in each.
        database: alias of `DATABASES`.
        size_of: the bytes of a row, roughly.
    """
    with transaction.atomic(using=database, savepoint=False):
        for batch in batches(each, size_of):
            if not _insert_values(model, shared, batch, connections[database]):
                model._base_manager.using(database).bulk_create([model(**shared, **own) for own in batch])


def _insert_values(
    model: type[models.Model],
    shared: Mapping[str, Any],
    each: Sequence[Mapping[str, Any]],
    connection: BaseDatabaseWrapper,
) -> bool:
    if connection.vendor != "postgresql":
        return False
    statement = _Statement(model, connection)
    for field, _ in _columns(model):
        name = field.attname
        if name in each[0]:
            values = [own[name] for own in each]
        else:
            values = [shared[name] if name in shared else field.get_default()]
        if not statement.add(field, values):
            return False
    if statement.has_arrays:
        statement.run()
    return statement.has_arrays


def _statement(rows: Sequence[Row], connection: BaseDatabaseWrapper) -> _Statement | None:
    """The statement that inserts them all; None where it takes the ORM's."""
    if connection.vendor != "postgresql":  # it alone has arrays, and answers in their order
        return None
    statement = _Statement(type(rows[0]), connection)
    if all(statement.add(field, list(map(value_of, rows))) for field, value_of in _columns(type(rows[0]))):
        return statement if statement.has_arrays else None
    return None


@cache
def _columns(model: type[models.Model]) -> list[tuple[Field, attrgetter[Any]]]:
    return [(field, attrgetter(field.attname)) for field in model._meta.concrete_fields if not field.primary_key]


class _Statement:
    """INSERT ... SELECT ... FROM UNNEST(...), as it grows by one column after the other.

    A value that all rows have is written once, the others as one array per column: neither the driver nor the server
    handles each value of each row.
    """

    def __init__(self, model: type[models.Model], connection: BaseDatabaseWrapper) -> None:
        self._model, self._connection = model, connection
        self._shared: dict[str, str] = {}  # SQL by column
        self._arrays: dict[str, str] = {}
        self._shared_params: list[Any] = []
        self._array_params: list[list[Any]] = []
        self._defaults: list[str] = []  # attributes

    @property
    def has_arrays(self) -> bool:
        """Whether there is a column whose value differs, which makes it insert as many rows as there are."""
        return bool(self._arrays)

    def add(self, field: Field, values: list[Any]) -> bool:
        """One column, with its value in each row. Returns False for what this kind of statement cannot carry."""
        if set(map(type, values)) == {DatabaseDefault}:
            self._defaults.append(field.attname)
        elif _are_equal(values):
            self._shared[str(field.column)] = self._compile(field, values[0])
        elif any(hasattr(value, "as_sql") for value in values):
            return False
        else:
            # Without its length, because a cast would cut what is too long, where the column refuses it.
            self._arrays[str(field.column)] = f"%s::{str(field.db_type(self._connection)).split('(')[0]}[]"
            self._array_params.append([field.get_db_prep_save(value, self._connection) for value in values])
        return True

    def run(self) -> list[Any]:
        """Run it. Returns the keys of the rows, in the order of the arrays."""
        with self._connection.cursor() as cursor:
            cursor.execute(self._sql(), [*self._shared_params, *self._array_params])
            return [key for (key,) in cursor.fetchall()]

    def insert(self, rows: Sequence[models.Model]) -> None:
        """Run it for these rows, and set what the database added."""
        keys = self.run()
        defaults: dict[str, Any] = {}
        if self._defaults:  # drivers take their time over a moment, so it is read once for all
            first = self._model._base_manager.using(self._connection.alias).filter(pk=keys[0])
            defaults = first.values(*self._defaults).get()
        for row, key in zip(rows, keys, strict=True):
            row.__dict__.update(defaults)
            row.pk = key
            row._state.adding, row._state.db = False, self._connection.alias

    def _sql(self) -> str:
        quote = self._connection.ops.quote_name
        columns = ", ".join(map(quote, [*self._shared, *self._arrays]))
        selected = ", ".join([*self._shared.values(), "v.*"])
        head = f"INSERT INTO {quote(self._model._meta.db_table)} ({columns})"
        source = f"UNNEST({', '.join(self._arrays.values())})"
        key = quote(str(self._model._meta.pk.column))
        return f"{head} SELECT {selected} FROM {source} AS v RETURNING {key}"  # noqa: S608  quoted names, places for values

    def _compile(self, field: Field, value: Any) -> str:
        """The SQL of a value; its parameters are added to the others."""
        if value is None:
            return "NULL"
        if not hasattr(value, "as_sql"):
            self._shared_params.append(field.get_db_prep_save(value, self._connection))
            return "%s"
        sql, params = self._compiler.compile(self._compiler.prepare_value(field, value))
        self._shared_params += params
        return str(sql)

    @cached_property
    def _compiler(self) -> Any:
        return InsertQuery(self._model).get_compiler(connection=self._connection)


def _are_equal(values: list[Any]) -> bool:
    if isinstance(values[0], (dict, list)):  # equal ones may differ in what is inside: 1, 1.0 and True are equal
        return not any(values)
    return values.count(values[0]) == len(values)
