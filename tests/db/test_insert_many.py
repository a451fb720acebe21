"""Rows inserted past the ORM are the rows that the ORM would have inserted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, DataError, connection, transaction
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext

from messaging.db.clock import Now, in_utc
from messaging.db.connections import BATCH
from messaging.db.insert_many import insert_many
from messaging.db.insert_one import insert
from messaging.models import PublishedMessage
from tests.settings import TEST_DB

pytestmark = pytest.mark.django_db
rows = PublishedMessage.objects
AT = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
ODD = [
    {"body": "ä €\\n\\\\ \" ' {a,b} NULL %s", "headers": {"n": 1}},
    {"body": "", "headers": {"n": True}, "priority": 0, "wire": b"\x00\xff\\"},
    {"body": "NULL", "headers": {"n": 1.0}, "priority": 255, "mandatory": False, "publish_at": AT},
    {"body": "[]", "headers": {}, "expiration": 2**32, "publish_at": AT + timedelta(days=1)},
]


def inserted(*values: dict[str, Any]) -> list[PublishedMessage]:
    made = [PublishedMessage(message_id=str(number), **one) for number, one in enumerate(values)]
    if len(made) == 1:
        insert(made[0], "default")
    else:
        insert_many(made, "default", lambda row: len(row.body))
    return made


@contextmanager
def counted() -> Iterator[CaptureQueriesContext]:
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        yield queries


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_is_stored_is_what_was_given(number: int, is_watched: bool) -> None:
    for first in range(len(ODD)):
        given = (ODD + ODD)[first : first + number]
        with counted() if is_watched else nullcontext():
            made = inserted(*given)
        for row, values in zip(made, given, strict=True):
            stored = rows.get(pk=row.pk)
            assert stored.message_id == row.message_id
            for name, value in values.items():
                found = getattr(stored, name)
                found = in_utc(found) if isinstance(found, datetime) else found
                assert (bytes(found) if name == "wire" else found) == value
            assert [type(value) for value in stored.headers.values()] == [type(v) for v in values["headers"].values()]
            assert (stored.state, stored.round, stored.attempts, stored.error) == ("pending", 1, 0, "")
        rows.all().delete()


@pytest.mark.parametrize("number", [1, 3])
def test_a_row_knows_what_the_database_added(number: int) -> None:
    made = inserted(*[{"body": "x"}] * number)
    assert len({row.pk for row in made}) == number
    for row in made:
        stored = rows.get(pk=row.pk)
        assert (row.created_at, row.publish_at, row.due_at) == (stored.created_at, stored.publish_at, stored.due_at)
        assert not row._state.adding
        row.error = "changed"
        row.save()
    assert rows.filter(error="changed").count() == number


@pytest.mark.skipif(TEST_DB != "mariadb", reason="what a server tells that returns no rows, as MySQL")
def test_a_server_that_returns_no_rows_has_them_numbered_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(connection.features), "can_return_columns_from_insert", False)
    inserted({"body": "before"})
    made = inserted(*[{"body": str(number), "publish_at": Now() + timedelta(hours=1)} for number in range(300)])
    found = rows.in_bulk()
    for row in made:
        stored = found[row.pk]
        assert (row.message_id, row.body) == (stored.message_id, stored.body)
        assert (row.created_at, row.publish_at, row.due_at) == (stored.created_at, stored.publish_at, stored.due_at)


@pytest.mark.parametrize("number", [1, 3])
def test_expressions_are_the_databases_to_compute(number: int) -> None:
    soon = Now() + timedelta(hours=1)
    made = inserted(*[{"publish_at": soon, "due_at": Now() + timedelta(hours=one - 0.5)} for one in range(number)])
    assert rows.filter(pk__in=[row.pk for row in made], publish_at__gt=Now() + timedelta(minutes=59)).count() == number
    assert rows.filter(due_at__lte=Now()).count() == 1


@pytest.mark.skipif(TEST_DB == "sqlite", reason="SQLite does not limit a column's length")
@pytest.mark.parametrize("number", [1, 2])
def test_what_does_not_fit_its_column_is_refused_not_cut(number: int) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        inserted(*[{"routing_key": str(one) + "x" * 255} for one in range(number)])
    assert not rows.exists()


def test_a_receiver_of_the_models_signals_is_heard_for_one_row_as_ever() -> None:
    heard: list[Any] = []
    receive = lambda instance, **kwargs: heard.append(instance)  # noqa: E731
    post_save.connect(receive, sender=PublishedMessage, weak=False)
    try:
        (row,) = inserted({"body": "x"})
    finally:
        post_save.disconnect(receive, sender=PublishedMessage)
    assert heard == [row]


def test_one_row_is_one_statement() -> None:
    with counted() as queries:
        inserted({"body": "x"})
    assert len(queries) == 1


@pytest.mark.skipif(TEST_DB != "postgres", reason="only PostgreSQL has arrays")
def test_a_thousand_rows_are_two_statements_whose_text_does_not_grow() -> None:
    with counted() as queries:
        inserted(*[{"body": str(number), "headers": {"n": number}} for number in range(1000)])
    assert len(queries) == 2  # the rows; the moment that they were given
    made = queries[0]["sql"].replace("\n", " ")
    assert made.count("SELECT") == 1
    assert rows.count() == 1000
    assert rows.filter(body="999", headers={"n": 999}).exists()


MANY = 2 * BATCH + 1


def many(**odd: dict[str, Any]) -> list[dict[str, Any]]:
    """Values of so many rows that they take three statements; `odd` gives some by their number, as "_7"."""
    return [{"body": str(number), "headers": {"n": number}, **odd.get(f"_{number}", {})} for number in range(MANY)]


def test_rows_of_several_statements_are_each_what_they_were_given() -> None:
    made = inserted(*many(_7={"publish_at": Now() + timedelta(hours=1)}))  # the first statement takes the ORM's way
    assert [row.pk for row in made] == sorted(row.pk for row in made)
    found = rows.in_bulk()
    assert len(found) == MANY
    for row in made:
        stored = found[row.pk]
        assert (row.message_id, row.body, row.headers) == (stored.message_id, stored.body, stored.headers)
        assert (row.created_at, row.due_at) == (stored.created_at, stored.due_at)


@pytest.mark.skipif(TEST_DB == "sqlite", reason="SQLite keeps what is too long")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [0, BATCH, MANY - 1])
def test_one_refused_row_takes_all_along_and_the_callers_transaction(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction.atomic():
        rows.create(message_id="before")
        with pytest.raises(DataError, match="too long") as caught:
            inserted(*many(**{f"_{number}": {"routing_key": "x" * 256}}))
        assert caught.value.__cause__ is not None
        assert connection.needs_rollback
    assert not rows.exists()
    assert not caplog.records
    assert len(inserted(*many())) == rows.count() == MANY
