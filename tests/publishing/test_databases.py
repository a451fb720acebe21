"""Publishing where the caller's transaction may be in another database than the outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

from messaging import Message, publish, publish_many
from messaging.exceptions import PublishError
from messaging.message import HandlerContext, handler_context
from messaging.models import PublishedMessage

pytestmark = [
    pytest.mark.usefixtures("second_database"),
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "DATABASES": ["default", "other"]}}


def count(database: str = "default") -> int:
    return PublishedMessage.objects.using(database).count()


@pytest.mark.mode(55)
@pytest.mark.parametrize("publishing", [lambda: publish("k", 1), lambda: publish_many([Message("k", 1)] * 2)])
def test_a_message_is_no_part_of_another_databases_transaction(publishing: Callable[[], Any]) -> None:
    with transaction.atomic(using="other"), pytest.raises(PublishError) as caught:
        publishing()
    assert count() == count("other") == 0
    for words in ('database="other"', 'database="default"', 'atomic(using="default")'):
        assert words in str(caught.value)


def test_who_switched_autocommit_off_has_begun_a_transaction() -> None:
    transaction.set_autocommit(False, using="other")
    try:
        with pytest.raises(PublishError, match='open in the database "other"'):
            publish("k", 1)
    finally:
        transaction.rollback(using="other")
        transaction.set_autocommit(True, using="other")
    transaction.set_autocommit(False)
    try:
        with transaction.atomic(using="other"):
            publish("k", 1)
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert count() == 1


def test_a_caller_who_names_the_outbox_or_has_a_transaction_there_is_believed() -> None:
    with transaction.atomic(using="other"):
        publish("k", 1, database="default")
        publish("k", 1, database="other")
        with transaction.atomic():
            publish("k", 1)
    with transaction.atomic(), transaction.atomic(using="other"):
        publish("k", 1)
    publish("k", 1)
    assert (count(), count("other")) == (4, 1)


@pytest.mark.parametrize("atomic", [True, False])
def test_in_a_handler_its_own_database_counts(atomic: bool) -> None:
    token = handler_context.set(HandlerContext(message=None, database="default", atomic=atomic, cause=None))
    try:
        with transaction.atomic(using="other"), pytest.raises(PublishError):
            publish("k", 1)
        with transaction.atomic(), transaction.atomic(using="other"):
            publish("k", 1)
    finally:
        handler_context.reset(token)
    assert count() == 1


@pytest.mark.django_db(databases=["default", "other"])
def test_the_transaction_around_a_test_is_not_the_callers() -> None:
    publish("k", 1)
    with transaction.atomic(using="other"), pytest.raises(PublishError):
        publish("k", 1)
