"""A task is part of the caller's transaction in whichever database of the alias that is."""

from __future__ import annotations

import pytest
from django.db import transaction
from pytest_django import Settings

from messaging.models import ProcessedMessage, PublishedMessage
from messaging.testing import drain
from tests.django_tasks import jobs
from tests.django_tasks.conftest import Use
from tests.django_tasks.test_behaviours import exceptions
from tests.options import set_options

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("second_database"),
]


@pytest.fixture(autouse=True)
def _two(settings: Settings, use: Use) -> None:
    set_options(settings, DATABASES=["default", "other"])
    use(database="other")


def count(database: str) -> int:
    return PublishedMessage.objects.using(database).count()


def test_a_task_joins_the_transaction_that_is_open() -> None:
    with transaction.atomic(using="other"):
        result = jobs.meaning.enqueue()
        assert jobs.meaning.get_result(result.id) == result
    assert (count("default"), count("other")) == (0, 1)
    with transaction.atomic():
        jobs.noop.enqueue()
        with transaction.atomic(using="other"):  # both: where messages go to by default
            jobs.noop.enqueue()
    jobs.noop.enqueue()
    assert (count("default"), count("other")) == (3, 1)
    drain()
    result.refresh()
    assert (result.status, result.return_value) == ("SUCCESSFUL", 42)
    assert ProcessedMessage.objects.using("other").count() == 4
    assert not ProcessedMessage.objects.exists()


def test_a_task_is_rolled_back_with_the_transaction_that_it_joined() -> None:
    with transaction.atomic(using="other"):
        result = jobs.noop.enqueue()
        transaction.set_rollback(True, using="other")
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        jobs.noop.get_result(result.id)


def test_what_one_task_enqueues_is_in_its_own_transaction() -> None:
    result = jobs.enqueue_another.enqueue("key")
    drain()
    result.refresh()
    assert count("other") == 1
    assert jobs.leave.get_result(result.return_value).status == "SUCCESSFUL"
