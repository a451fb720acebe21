"""Emptying the databases after a test that commits: what is in the tables goes, and nothing else is done.

Django truncates every table, then makes content types and permissions anew: a third of a second on PostgreSQL, where
most of these tests write a dozen rows.
"""

from __future__ import annotations

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

KEPT = {model._meta.db_table for model in (ContentType, Permission)}  # the same in every test
LARGE = 1_000_000  # bytes of a table above which its file is given back: dead rows would slow down the tests after it


def empty(case: TransactionTestCase) -> None:
    """Delete every row that a test may have left; stands in for the flush of Django's own test case."""
    for name in case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        empty_database(name)


def empty_database(name: str) -> None:
    """Delete every row of one database."""
    connection = connections[name]
    with transaction.atomic(using=name), connection.constraint_checks_disabled(), connection.cursor() as cursor:
        for table in _left_in(connection):
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")


def _left_in(connection: BaseDatabaseWrapper) -> list[str]:
    """The tables that hold rows; the large ones of PostgreSQL are truncated at once."""
    quote, tables = connection.ops.quote_name, set(connection.introspection.django_table_names(only_existing=True))
    looks = [f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {quote(table)})" for table in sorted(tables - KEPT)]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND pg_relation_size(oid) > %s", [LARGE])
            large = {table for (table,) in cursor.fetchall()} & (tables - KEPT)
            if large:
                cursor.execute(f"TRUNCATE {', '.join(quote(table) for table in sorted(large))} CASCADE")
        cursor.execute(" UNION ALL ".join(looks))
        return [table for (table,) in cursor.fetchall()]
