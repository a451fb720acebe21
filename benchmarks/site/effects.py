"""What a handler does here, and every peer's task: one plain statement, so that it is not the ORM that is measured."""

from __future__ import annotations

from django.db import connection


def record(key: str) -> None:
    """Record that the message of that key had its effect."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench_effect (key) VALUES (%s)", [key])
