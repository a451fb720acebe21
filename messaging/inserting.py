"""Inserting rows where the ORM would take longer than the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import InsertQuery

from messaging.database import batches

Row = TypeVar("Row", bound=models.Model)
Field: TypeAlias = "models.Field[Any, Any]"

AS_THEY_ARE = {None: "NULL", "": "''", True: "TRUE", False: "FALSE"}  # values that need no parameter


def insert(rows: Sequence[Row], database: str, size_of: Callable[[Row], int]) -> None:
    """Insert unsaved rows of one model, all or none, and set what the database adds: keys and defaults.

    The database's defaults must be constant within a statement, as the moment is. As with the ORM, several rows are
    inserted without signals.

    Args:
        rows: in the order that their keys are to have.
        database: alias of `DATABASES`.
        size_of: the bytes of a row, roughly.
    """
    if len(rows) == 1:
        model = type(rows[0])
        if pre_save.has_listeners(model) or post_save.has_listeners(model) or not _insert(rows, connections[database]):
            rows[0].save(using=database, force_insert=True)
    elif rows:
        with transaction.atomic(using=database, savepoint=False):
            for batch in batches(rows, size_of):
                if not _insert(batch, connections[database]):
                    type(batch[0])._base_manager.using(database).bulk_create(batch)


def _insert(rows: Sequence[Row], connection: BaseDatabaseWrapper) -> bool:
    """Insert with one statement. Returns False, with nothing done, where that would not pay or cannot be."""
    if not connection.features.can_return_columns_from_insert:
        return False
    statement = _Statement(type(rows[0]), connection)
    for field, value_of in _columns(type(rows[0])):
        if not statement.add(field, list(map(value_of, rows))):
            return False
    if len(rows) > 1 and not statement.has_arrays:
        return False
    keys, defaults = statement.execute()
    for row, key in zip(rows, keys, strict=True):
        row.__dict__.update(defaults)
        row.pk = key
        row._state.adding, row._state.db = False, connection.alias
    return True


@cache
def _columns(model: type[models.Model]) -> list[tuple[Field, attrgetter[Any]]]:
    return [(field, attrgetter(field.attname)) for field in model._meta.concrete_fields if not field.primary_key]


class _Statement:
    """INSERT ... SELECT ... RETURNING, as it grows by one column after the other.

    A value that all rows have is written once, the others as one array per column: neither the driver nor the server
    handles each value of each row. PostgreSQL alone has arrays, and answers in their order.
    """

    def __init__(self, model: type[models.Model], connection: BaseDatabaseWrapper) -> None:
        self._model, self._connection = model, connection
        self._shared: dict[str, str] = {}  # SQL by column
        self._arrays: dict[str, str] = {}
        self._shared_params: list[Any] = []
        self._array_params: list[list[Any]] = []
        self._defaults: list[Field] = []

    def add(self, field: Field, values: list[Any]) -> bool:
        """One column, with its value in each row. Returns False for what this kind of statement cannot carry."""
        first, column = values[0], str(field.column)
        if set(map(type, values)) == {DatabaseDefault}:
            self._defaults.append(field)
        elif len(values) == 1 or _are_equal(values):
            self._shared[column] = self._compile(field, first)
        elif self._connection.vendor == "postgresql" and not any(hasattr(value, "as_sql") for value in values):
            # Without its length, because a cast would cut what is too long, where the column refuses it.
            self._arrays[column] = f"%s::{str(field.db_type(self._connection)).split('(')[0]}[]"
            self._array_params.append([field.get_db_prep_save(value, self._connection) for value in values])
        else:
            return False
        return True

    @property
    def has_arrays(self) -> bool:
        """Whether it inserts a row for each item of its arrays; else it inserts one."""
        return bool(self._arrays)

    def execute(self) -> tuple[list[Any], dict[str, Any]]:
        """Run it. Returns the keys, and by attribute what else the database added to each row."""
        returned: list[Any] = [self._model._meta.pk]
        if not self.has_arrays:
            returned += self._defaults
        with self._connection.cursor() as cursor:
            cursor.execute(self._sql(returned), [*self._shared_params, *self._array_params])
            found = cursor.fetchall()
        if self.has_arrays:  # drivers take their time over a moment, so it is read once for all
            names = [field.attname for field in self._defaults]
            first = self._model._base_manager.using(self._connection.alias).filter(pk=found[0][0])
            return [key for (key,) in found], first.values(*names).get() if names else {}
        converters = self._compiler.get_converters([field.cached_col for field in returned])
        ((key, *values),) = self._compiler.apply_converters(found, converters) if converters else found
        return [key], {field.attname: value for field, value in zip(self._defaults, values, strict=True)}

    def _sql(self, returned: list[Field]) -> str:
        quote = self._connection.ops.quote_name
        columns = ", ".join(map(quote, [*self._shared, *self._arrays]))
        selected = ", ".join([*self._shared.values(), *(["v.*"] if self._arrays else [])])
        source = f" FROM UNNEST({', '.join(self._arrays.values())}) AS v" if self._arrays else ""
        return (
            f"INSERT INTO {quote(self._model._meta.db_table)} ({columns}) SELECT {selected}{source} "
            f"RETURNING {', '.join(quote(str(field.column)) for field in returned)}"
        )

    def _compile(self, field: Field, value: Any) -> str:
        """The SQL of a value; its parameters are added to the others."""
        if value is None or value == "" or isinstance(value, bool):
            return AS_THEY_ARE[value]
        if isinstance(value, int):
            return str(int(value))
        params: Sequence[Any]
        if hasattr(value, "as_sql"):
            sql, params = self._compiler.compile(self._compiler.prepare_value(field, value))
        else:
            sql, params = "%s", [field.get_db_prep_save(value, self._connection)]
        self._shared_params += params
        return str(sql)

    @cached_property
    def _compiler(self) -> Any:
        return InsertQuery(self._model).get_compiler(connection=self._connection)


def _are_equal(values: list[Any]) -> bool:
    if isinstance(values[0], (dict, list)):  # equal ones may differ in what is inside: 1, 1.0 and True are equal
        return not any(values)
    return values.count(values[0]) == len(values)
