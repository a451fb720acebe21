"""Many rows by one statement: thousands of copies of one, each with an identity of its own; PostgreSQL and SQLite."""

from __future__ import annotations

from typing import Any

from django.db import connection

RANDOM = {"postgresql": "gen_random_uuid()", "sqlite": "lower(hex(randomblob(16)))"}
# Unlike PostgreSQL's `generate_series`, both know this.
NUMBERS = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < %s)"


def copy(row: Any, number: int) -> None:
    """Write a stored message so many times more, each under an id, and a key and a digest where it has them, anew."""
    if number < 1:
        return
    fields = [field for field in row._meta.concrete_fields if not field.primary_key]
    random, quote = RANDOM[connection.vendor], connection.ops.quote_name
    own = {"key": random, "digest": random, "message_id": f"CAST({random} AS varchar(36))"}
    values = ", ".join(own.get(field.name, f"original.{quote(field.column)}") for field in fields)
    table, columns = quote(row._meta.db_table), ", ".join(quote(field.column) for field in fields)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({columns}) {NUMBERS} "
            f"SELECT {values} FROM {table} original, numbers WHERE original.id = %s",
            [number, row.pk],
        )


def create(row: Any, number: int) -> None:
    """Store an unsaved message so many times."""
    row.save(force_insert=True)
    copy(row, number - 1)
