"""Migrations of tables that have rows in them, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, models
from django.db.migrations import AddField, AlterField, CreateModel
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ModelState, ProjectState

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


def unwritable(before: ProjectState, after: ProjectState) -> set[str]:
    """Columns of tables that were there before which `after` alone demands, so that code of `before` cannot insert."""
    return {
        f"{model}.{name}"
        for model, state in after.models.items()
        if model in before.models
        for name in demanded(state) - demanded(before.models[model])
    }


def demanded(model: ModelState) -> set[str]:
    """The columns that neither are nullable nor get a value from the database itself."""
    return {
        name
        for name, field in model.fields.items()
        if not (field.null or field.primary_key or field.many_to_many or field.generated or field.has_db_default())
    }


def test_the_code_of_the_release_before_can_write_its_rows_into_the_new_tables() -> None:
    loader = MigrationLoader(None)
    names = sorted(name for label, name in loader.disk_migrations if label == "messaging")
    states = [loader.project_state(("messaging", name)) for name in names]
    assert len(states) > 1
    for name, before, after in zip(names[1:], states, states[1:], strict=False):
        assert not unwritable(before, after), f"{name}: make them nullable, or give them a `db_default`"


@pytest.mark.parametrize(
    ("field", "is_refused"),
    [
        (models.TextField(), True),
        (models.TextField(default="of the new code alone"), True),
        (models.ForeignKey("messaging.Worker", models.CASCADE), True),
        (models.TextField(null=True), False),
        (models.TextField(db_default=""), False),
    ],
)
def test_a_new_column_that_the_release_before_cannot_leave_out_is_found(field: Any, is_refused: bool) -> None:
    before = MigrationLoader(None).project_state(("messaging", "0001_initial"))
    added, created = before.clone(), before.clone()
    AddField("attempt", "further", field).state_forwards("messaging", added)
    CreateModel("Further", [("further", field)]).state_forwards("messaging", created)
    assert bool(unwritable(before, added)) == is_refused
    assert not unwritable(before, created), "a new table is written by new code alone"
    nullable = before.clone()
    AddField("attempt", "further", models.TextField(null=True)).state_forwards("messaging", nullable)
    AlterField("attempt", "further", field).state_forwards("messaging", added := nullable.clone())
    assert bool(unwritable(nullable, added)) == is_refused
