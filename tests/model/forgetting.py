"""A copy of a database that lags, and the failover to it: the broker, which is elsewhere, goes on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from django.db import connections, models, transaction

from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage
from tests.app.models import Effect
from tests.model.rows import Names, Numbers

TABLES: tuple[type[models.Model], ...] = (ProcessedMessage, PublishedMessage, Attempt, AuditRecord, Effect)
DATABASE = "default"


@dataclass(frozen=True)
class Kept:
    """What a copy has: rows by table, which of the model's they are, and the last number that each table has given."""

    rows: dict[type[models.Model], list[dict[str, Any]]]
    numbers: Numbers
    given: dict[type[models.Model], int]


def keep(names: Names) -> Kept:
    """The database as it is now."""
    rows = {table: list(table._base_manager.using(DATABASE).order_by("pk").values()) for table in TABLES}
    with connections[DATABASE].cursor() as cursor:
        given = {table: _given(cursor, table) for table in TABLES}
    return Kept(rows, deepcopy(names.numbers), given)


def set_back(kept: Kept, names: Names) -> None:
    """Have the database be what it was, so that it gives numbers again that it has given since."""
    connection = connections[DATABASE]
    with transaction.atomic(using=DATABASE), connection.constraint_checks_disabled():
        for table in reversed(TABLES):
            table._base_manager.using(DATABASE).all()._raw_delete(DATABASE)
        for table in TABLES:
            made = [table(**values) for values in kept.rows[table]]
            table._base_manager.using(DATABASE).bulk_create(made)
    with connection.cursor() as cursor:  # MySQL commits before it
        for table, last in kept.given.items():
            _give_from(cursor, table, last)
    for (place, table), known in kept.numbers.items():
        if place == 0:
            names.numbers[place, table] = list(known)


def _given(cursor: Any, table: type[models.Model]) -> int:
    name, vendor = table._meta.db_table, connections[DATABASE].vendor
    if vendor == "sqlite":
        cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = %s", [name])
    elif vendor == "postgresql":
        cursor.execute(f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {name}_id_seq")
    else:
        cursor.execute(f"SELECT max(id) FROM {name}")
    found = cursor.fetchone()
    return (found and found[0]) or 0


def _give_from(cursor: Any, table: type[models.Model], last: int) -> None:
    name, vendor = table._meta.db_table, connections[DATABASE].vendor
    if vendor == "sqlite":
        cursor.execute("UPDATE sqlite_sequence SET seq = %s WHERE name = %s", [last, name])
    elif vendor == "postgresql":
        cursor.execute("SELECT setval(%s, %s, %s)", [f"{name}_id_seq", max(last, 1), last > 0])
    else:
        cursor.execute(f"ALTER TABLE {name} AUTO_INCREMENT = {last + 1}")
