"""Rows that are read without a large body: many at once, or where only the database needs it."""

from __future__ import annotations

from typing import Any

from django.db.models import Case, F, Func, IntegerField, Model, QuerySet, TextField, When

LIGHT = 32 * 1024  # bytes of a body; a thousand such are read together, a larger one by itself, when it is asked for


class OctetLength(Func):
    """The length of a text in bytes, by the database."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite knows OCTET_LENGTH from 3.43 only."""
        return self.as_sql(compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context)


def light(rows: QuerySet[Any]) -> list[Any]:
    """Read messages without the bodies above `LIGHT`; each of those is read when it is asked for."""
    small = Case(When(octets__lte=LIGHT, then=F("body")), output_field=TextField())
    found = list(rows.defer("body").alias(octets=OctetLength("body")).annotate(small_body=small))
    for row in found:
        if (body := vars(row).pop("small_body")) is not None:
            row.body = body
    return found


def has_body(row: Model) -> bool:
    """Whether a message's body was read with it, or since."""
    return "body" in vars(row)


def forget_body(row: Model) -> None:
    """Let go of a body; it is read again when it is asked for."""
    vars(row).pop("body", None)
