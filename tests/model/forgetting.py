"""A copy of a database that lags, and the failover to it: the broker, which is elsewhere, goes on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from django.core.management.color import no_style
from django.db import connections, models, transaction

from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage
from tests.app.models import Effect
from tests.model.rows import Names, Numbers

TABLES: tuple[type[models.Model], ...] = (ProcessedMessage, PublishedMessage, Attempt, AuditRecord, Effect)
DATABASE = "default"


@dataclass(frozen=True)
class Kept:
    """What a copy has: rows by table, and which of the model's they are."""

    rows: dict[type[models.Model], list[dict[str, Any]]]
    numbers: Numbers


def keep(names: Names) -> Kept:
    """The database as it is now."""
    rows = {table: list(table._base_manager.using(DATABASE).order_by("pk").values()) for table in TABLES}
    return Kept(rows, deepcopy(names.numbers))


def set_back(kept: Kept, names: Names) -> None:
    """Have the database be what it was, so that it gives numbers again that it has given since."""
    connection = connections[DATABASE]
    with transaction.atomic(using=DATABASE), connection.constraint_checks_disabled():
        for table in reversed(TABLES):
            table._base_manager.using(DATABASE).all()._raw_delete(DATABASE)
        for table in TABLES:
            made = [table(**values) for values in kept.rows[table]]
            table._base_manager.using(DATABASE).bulk_create(made)
        with connection.cursor() as cursor:
            for statement in connection.ops.sequence_reset_sql(no_style(), TABLES):
                cursor.execute(statement)
            if connection.vendor == "sqlite":
                for table in TABLES:
                    name = table._meta.db_table
                    last = max((values["id"] for values in kept.rows[table]), default=0)
                    cursor.execute("UPDATE sqlite_sequence SET seq = %s WHERE name = %s", [last, name])
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"ALTER TABLE {table._meta.db_table} AUTO_INCREMENT = 1")
    for (place, table), known in kept.numbers.items():
        if place == 0:
            names.numbers[place, table] = list(known)
