"""Migrations of tables that have rows in them, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection

from messaging.models import ProcessedMessage, PublishedMessage
from tests import admin_rows

pytestmark = pytest.mark.django_db(transaction=True)
TABLES = (PublishedMessage, ProcessedMessage)
SINCE_0006 = {  # columns that are not there before
    "epoch", "at_broker", "started_at", "interrupted", "derivation", "headers_digest", "nonce",
    "process_died", "dead_lettered", "unrouted", "duration", "tries",
}  # fmt: skip
FOREIGN_KEYS = {"inbox_id", "copy_of_id", "edited_from_id"}


def migrate(name: str = "") -> None:
    call_command("migrate", "messaging", *filter(None, [name]), verbosity=0)


@pytest.fixture
def migrated() -> Iterator[None]:
    yield
    migrate()


def content() -> list[Any]:
    found = []
    for model in TABLES:
        names = [field.attname for field in model._meta.concrete_fields if field.name not in SINCE_0006]
        found.append(list(model._base_manager.order_by("pk").values(*names)))
    return found


def indexed() -> set[str]:
    """The foreign keys with an index."""
    found: set[str] = set()
    with connection.cursor() as cursor:
        for model in TABLES:
            constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
            found |= {one["columns"][0] for one in constraints.values() if one["index"] and one["columns"]}
    return found & FOREIGN_KEYS


@pytest.mark.usefixtures("migrated")
def test_the_foreign_keys_keep_their_values_and_an_index_back_and_forth() -> None:
    failed = admin_rows.incoming()
    ProcessedMessage.objects.filter(pk=admin_rows.incoming().pk).update(edited_from=failed)
    first = admin_rows.outgoing(inbox=failed)
    admin_rows.outgoing(copy_of=first)
    before = content()
    for name in (
        "0003",
        "0004",
        "0005",
        "0003",
        "0006",
        "0005",
        "0007",
        "0006",
        "0009",
        "0007",
        "0009",
        "0010",
        "0009",
        "0011",
        "0010",
        "0012",
        "0011",
        "0012",
    ):
        migrate(name)
        assert content() == before
        assert indexed() == FOREIGN_KEYS
    with pytest.raises(IntegrityError):
        PublishedMessage.objects.filter(pk=first.pk)._raw_delete("default")
