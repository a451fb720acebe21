"""Rows inserted by a statement that was compiled once are what the ORM would have inserted, at less cost."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext

from messaging import publish
from messaging.db import insert_one
from messaging.db.clock import Now
from messaging.db.insert_one import exists, insert
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing import inbox
from tests.deliveries import arrived, envelope_of

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def row(**changes: Any) -> ProcessedMessage:
    delivery = arrived({"żółw": "\U0001f422"}, headers={"tenant": "a", "n": 1.5}, correlation_id="c", type="t")
    made = inbox.fresh("default", "work", envelope_of(delivery)).row
    for name, value in {"state": State.PROCESSED, "processed_at": Now(), "attempts": 1, **changes}.items():
        setattr(made, name, value)
    return made


def stored(key: uuid.UUID) -> dict[str, Any]:
    values = ProcessedMessage.objects.filter(key=key).values().get()
    return {name: bytes(value) if name == "wire" else value for name, value in values.items()}


def test_a_row_is_stored_as_the_orm_stores_it() -> None:
    one = row(body="", error="100 % {} \\ '", handler="x" * 255, lease_token=uuid.uuid4(), wire=b"\x00\xff%s")
    values = {name: value for name, value in one.__dict__.items() if name not in ("_state", "id", "key")}
    insert(one, "default", lock_wait=2.0)
    other = ProcessedMessage(key=uuid.uuid4(), **values)
    other.save(force_insert=True)
    ours, theirs = stored(one.key), stored(other.key)
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ <= {"id", "key", "created_at", "received_at", "processed_at"}
    assert abs(ours["processed_at"] - theirs["processed_at"]) < timedelta(seconds=60)


def test_the_row_knows_its_key_and_what_the_database_filled_in() -> None:
    one = row()
    insert(one, "default")
    assert (one._state.adding, one._state.db) == (False, "default")
    found = ProcessedMessage.objects.get(pk=one.pk)
    assert (one.received_at, one.processed_at, one.created_at) == (
        found.received_at,
        found.processed_at,
        found.created_at,
    )


def test_it_costs_one_statement() -> None:
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        insert(row(), "default", lock_wait=2.0)
    statements = [query["sql"] for query in queries if not query["sql"].startswith(("BEGIN", "COMMIT"))]
    assert len(statements) == (2 if connection.vendor == "mysql" else 1)


def test_what_most_messages_have_in_common_is_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Any]] = []
    execute = insert_one._execute

    def watched(wrapper: Any, sql: str, params: list[Any]) -> Any:
        given.append(params)
        return execute(wrapper, sql, params)

    monkeypatch.setattr("messaging.db.insert_one._execute", watched)
    published = publish("key", "text", exchange="events")
    own = ["default", published.message_id, "events", "key", "text/plain; charset=utf-8", "text", "pending"]
    assert [sorted(params) for params in given] == [sorted(own)]
    assert {type(value) for value in given[0]} == {str}


@pytest.mark.parametrize("mandatory", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_value_that_is_part_of_the_statement_is_stored_as_itself(mandatory: bool, number: int) -> None:
    published = publish("key", "text", mandatory=mandatory, priority=number)
    found = PublishedMessage.objects.get(pk=published.pk)
    assert (found.mandatory, found.priority, found.attempts, found.headers) == (mandatory, number, 0, {})


def test_the_second_of_a_kind_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(row(), "default")

    def fail(*_: Any) -> str:
        raise AssertionError("compiled again")

    monkeypatch.setattr("messaging.db.insert_one._compile", fail)
    insert(row(), "default")


def test_values_that_are_expressions_are_computed_by_the_database() -> None:
    one = row(leased_until=Now() + timedelta(hours=1))
    insert(one, "default", lock_wait=2.0)
    found = ProcessedMessage.objects.get(pk=one.pk)
    assert found.leased_until is not None
    assert timedelta(minutes=59) < found.leased_until - found.received_at < timedelta(minutes=61)


def test_who_listens_to_the_models_signals_hears_of_it() -> None:
    heard: list[ProcessedMessage] = []

    def hear(instance: ProcessedMessage, **_: Any) -> None:
        heard.append(instance)

    post_save.connect(hear, sender=ProcessedMessage)
    try:
        one = row()
        insert(one, "default", lock_wait=2.0)
    finally:
        post_save.disconnect(hear, sender=ProcessedMessage)
    assert heard == [one]


def test_a_second_row_of_the_same_message_is_refused() -> None:
    first, second = row(), row()
    second.key = first.key
    insert(first, "default", lock_wait=2.0)
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(second, "default", lock_wait=2.0)


def test_an_explicit_null_is_no_default() -> None:
    draft = PublishedMessage(message_id="draft", state=PublishedMessage.State.DRAFT, due_at=None)
    insert(draft, "default")
    assert PublishedMessage.objects.get(pk=draft.pk).due_at is None


def test_after_an_error_that_is_swallowed_nothing_is_committed() -> None:
    first, second, third = row(), row(), row()
    second.key = first.key
    insert(first, "default")
    with transaction.atomic():
        insert(third, "default")
        with suppress(IntegrityError):
            insert(second, "default")
        with pytest.raises(transaction.TransactionManagementError):
            insert(row(), "default")
    assert ProcessedMessage.objects.count() == 1


def test_a_row_is_found_by_all_of_its_values() -> None:
    one = row()
    insert(one, "default")
    assert exists(ProcessedMessage, "default", alias="default", queue="work", key=one.key)
    assert not exists(ProcessedMessage, "default", alias="default", queue="other", key=one.key)
    assert not exists(ProcessedMessage, "default", alias="default", queue="work", key=uuid.uuid4())
