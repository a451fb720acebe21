"""Inserting many rows where the ORM would take longer than the database; `insert_one` inserts one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault
from django.db.models.sql import InsertQuery

from messaging.db.connections import batches
from messaging.db.insert_one import PLAIN
from messaging.db.session import can_prepare, cursor_of

Row = TypeVar("Row", bound=models.Model)
Field: TypeAlias = "models.Field[Any, Any]"


def insert_many(rows: Sequence[Row], database: str, size_of: Callable[[Row], int]) -> None:
    """Insert unsaved rows of one model, all or none, and set what the database adds: keys and defaults.

    The database's defaults must be constant within a statement, as the moment is. As with `bulk_create()` there are
    no signals.

    Args:
        rows: in the order that their keys are to have.
        database: alias of `DATABASES`.
        size_of: the bytes of a row, roughly.
    """
    connection = connections[database]
    with transaction.atomic(using=database, savepoint=False):
        for batch in batches(rows, size_of):
            statement = _statement(batch, connection)
            if statement is not None:
                _complete(batch, statement.run(), statement.defaults, connection)
                continue
            type(batch[0])._base_manager.using(database).bulk_create(batch)
            if not connection.features.can_return_rows_from_bulk_insert:
                _number(batch, connection)


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


def _complete(
    rows: Sequence[models.Model], keys: Sequence[Any], defaults: Sequence[str], connection: BaseDatabaseWrapper
) -> None:
    """Set what the database added to the rows of one statement."""
    # Drivers take their time over a moment, so it is read once for all rows.
    first = type(rows[0])._base_manager.using(connection.alias).filter(pk=keys[0])
    added = first.values(*defaults).get() if defaults else {}
    key_name = rows[0]._meta.pk.attname
    for row, key in zip(rows, keys, strict=True):
        row.__dict__.update(added)
        row.__dict__[key_name] = key
        row._state.adding, row._state.db = False, connection.alias


def _number(rows: Sequence[models.Model], connection: BaseDatabaseWrapper) -> None:
    """Set the keys of rows that MySQL has just inserted with one statement: it tells the first, and the others follow.

    What it computed is read from it when it is asked for.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT LAST_INSERT_ID(), @@auto_increment_increment")
        first, step = cursor.fetchone()
    for number, row in enumerate(rows):
        row.pk = first + number * step
        for name in [name for name, value in vars(row).items() if hasattr(value, "resolve_expression")]:
            del row.__dict__[name]


def _insert_values(
    model: type[models.Model],
    shared: Mapping[str, Any],
    each: Sequence[Mapping[str, Any]],
    connection: BaseDatabaseWrapper,
) -> bool:
    if connection.vendor != "postgresql":
        return False
    statement = _Statement(model, connection)
    for field in _columns(model).fields:
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
    statement, columns = _Statement(type(rows[0]), connection), _columns(type(rows[0]))
    values = zip(*map(columns.values_of, map(vars, rows)), strict=True)  # without a line of Python for each row
    if all(map(statement.add, columns.fields, values)):
        return statement if statement.has_arrays else None
    return None


class _Columns(NamedTuple):
    """The columns of a table but for its key.

    Attributes:
        fields: of the columns.
        values_of: from the attributes of a row to its values, in the same order.
    """

    fields: list[Field]
    values_of: itemgetter[Any]


@cache
def _columns(model: type[models.Model]) -> _Columns:
    fields = [field for field in model._meta.concrete_fields if not field.primary_key]
    return _Columns(fields, itemgetter(*(field.attname for field in fields)))


class _Statement:
    """INSERT ... SELECT ... FROM UNNEST(...), as it grows by one column after the other.

    A value that all rows have is written once, the others as one array per column: neither the driver nor the server
    handles each value of each row.

    Attributes:
        defaults: the attributes that the database has a default for.
    """

    def __init__(self, model: type[models.Model], connection: BaseDatabaseWrapper) -> None:
        self._model, self._connection = model, connection
        # Django's cursors put the values into the text, and the driver writes an array's text slowly: 1 KB in 9 µs.
        self._is_direct = can_prepare(connection)
        self._shared: dict[str, str] = {}  # SQL by column
        self._arrays: dict[str, str] = {}
        self._shared_params: list[Any] = []
        self._array_params: list[list[Any]] = []
        self.defaults: list[str] = []

    @property
    def has_arrays(self) -> bool:
        """Whether there is a column whose value differs, which makes it insert as many rows as there are."""
        return bool(self._arrays)

    def add(self, field: Field, values: Sequence[Any]) -> bool:
        """One column, with its value in each row. Returns False for what this kind of statement cannot carry."""
        if type(values[0]) is DatabaseDefault and set(map(type, values)) == {DatabaseDefault}:
            self.defaults.append(field.attname)
        elif _are_equal(values):
            self._shared[str(field.column)] = self._compile(field, values[0])
        elif any(hasattr(value, "as_sql") for value in values):
            return False
        else:
            # Without its length, because a cast would cut what is too long, where the column refuses it.
            place = "%b" if self._is_direct else "%s"
            self._arrays[str(field.column)] = f"{place}::{str(field.db_type(self._connection)).split('(')[0]}[]"
            if set(map(type, values)) != {str} or not isinstance(field, PLAIN):
                values = [field.get_db_prep_save(value, self._connection) for value in values]
            self._array_params.append(list(values))
        return True

    def run(self) -> list[Any]:
        """Have it executed. Returns the keys of the rows, in the order of the arrays."""
        cursor = cursor_of(self._connection) if self._is_direct else self._connection.cursor()
        with self._connection.wrap_database_errors, cursor:
            cursor.execute(self._sql(), [*self._shared_params, *self._array_params])
            return [key for (key,) in cursor.fetchall()]

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


def _are_equal(values: Sequence[Any]) -> bool:
    if isinstance(values[0], (dict, list)):  # equal ones may differ in what is inside: 1, 1.0 and True are equal
        return not any(values)
    return values.count(values[0]) == len(values)
