"""The pages of rehearsals: for which messages they are offered, and what is said while one lasts and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from messaging.db.clock import Now
from messaging.handlers import handler, registry
from messaging.models import AuditRecord, ProcessedMessage, Rehearsal
from messaging.operations import Operator, rehearsals
from messaging.retention import ended_rehearsals
from tests.admin_rows import INCOMING, incoming, inline_code, staff

pytestmark = pytest.mark.django_db
RIGHTS = ("view_processedmessage", "rehearse_processedmessage")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {key: list(value) for key, value in registry._handlers.items()}
    handler("rehearsed", rehearse=True)(lambda message: None)
    handler("unrehearsed")(lambda message: None)
    yield
    registry._handlers.clear()
    registry._handlers.update(before)


def url(row: Any, page: str = "rehearse") -> str:
    return f"{INCOMING}{row.pk}/{page}/"


def page_of(rehearsal: Rehearsal) -> str:
    return f"{INCOMING}rehearsal/{rehearsal.pk}/"


def text_of(response: Any) -> str:
    return str(response.content.decode())


def test_is_asked_for_recorded_and_shown_until_it_has_ended(admin_client: Client) -> None:
    row = incoming(queue="rehearsed")
    assert url(row) in text_of(admin_client.get(url(row, "change")))
    asked = text_of(admin_client.get(url(row)))
    assert "HTTP calls are made" in asked
    assert not Rehearsal.objects.exists()
    answer = admin_client.post(url(row), {"reason": "after the fix"}, follow=True)
    rehearsal = Rehearsal.objects.get()
    assert answer.redirect_chain[-1][0] == page_of(rehearsal)
    assert "data-live-now" in text_of(answer), "it looks again by itself"
    assert not inline_code(text_of(answer))
    assert (AuditRecord.objects.get().action, AuditRecord.objects.get().reason) == ("rehearse", "after the fix")
    admin_client.post(url(row))
    assert Rehearsal.objects.count() == 1, "the one that waits stands for both"
    result = {"rows": 3, "messages": 1, "mails": 0, "tables": {"shop_order": 3}, "published": [["x", "y.z"]]}
    Rehearsal.objects.update(state="succeeded", result={**result, "seconds": 0.25})
    shown = text_of(admin_client.get(page_of(rehearsal)))
    assert "It would succeed: 3 rows written, 1 message published." in shown
    assert "shop_order" in shown
    assert "y.z" in shown
    assert "data-live-now" not in shown
    assert page_of(rehearsal) in text_of(admin_client.get(url(row, "change")))
    assert ProcessedMessage.objects.get().state == "failed"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": "failed", "error": "ValueError: no", "traceback": 'File "a.py", line 1, in x'}, "ValueError: no"),
        ({"state": "late", "error": "It took longer than 30 s"}, "took longer"),
        ({"state": "refused", "error": "a second connection"}, "a second connection"),
        ({"state": "died"}, "not run again by itself"),
        ({"state": "running", "worker": "w-1"}, "process of its own"),
    ],
)
def test_every_end_is_told(admin_client: Client, values: dict[str, str], said: str) -> None:
    rehearsal = Rehearsal.objects.create(row=incoming(queue="rehearsed").pk, round=1, **values)
    assert said in text_of(admin_client.get(page_of(rehearsal)))


def test_whose_runner_is_gone_says_so_before_anybody_else_does(admin_client: Client) -> None:
    row = incoming(queue="rehearsed")
    past = Now() - timedelta(seconds=1)
    rehearsal = Rehearsal.objects.create(row=row.pk, round=1, state="running", leased_until=past)
    shown = text_of(admin_client.get(page_of(rehearsal)))
    assert "its process died" in shown
    assert "data-live-now" not in shown
    admin_client.post(url(row))
    assert sorted(Rehearsal.objects.values_list("state", flat=True)) == ["died", "waiting"]


@pytest.mark.parametrize(
    "values", [{"queue": "unrehearsed"}, {"state": "processed"}, {"wire": None}, {"queue": "none"}]
)
def test_is_offered_only_where_the_handler_says_so(admin_client: Client, values: dict[str, Any]) -> None:
    row = incoming(**{"queue": "rehearsed", **values})
    assert url(row) not in text_of(admin_client.get(url(row, "change")))
    assert "rehearse=True" in text_of(admin_client.post(url(row)))
    assert not Rehearsal.objects.exists()


@pytest.mark.parametrize("missing", RIGHTS)
def test_takes_a_permission_of_its_own(missing: str) -> None:
    row = incoming(queue="rehearsed")
    rehearsal = Rehearsal.objects.create(row=row.pk, round=1)
    assert staff(*RIGHTS, name="both").get(url(row)).status_code == 200
    client = staff(*set(RIGHTS) - {missing})
    assert {client.get(url(row)).status_code, client.post(url(row)).status_code} == {403}
    assert client.get(page_of(rehearsal)).status_code == 403


def test_costs_few_queries(admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    row = incoming(queue="rehearsed")
    rehearsal = Rehearsal.objects.create(row=row.pk, round=1)
    for page in (url(row), page_of(rehearsal), url(row, "change")):
        with django_assert_max_num_queries(10):
            admin_client.get(page)


def test_ends_what_is_gone_and_deletes_what_is_old() -> None:
    row = incoming(queue="rehearsed")
    old = rehearsals.ask(row, Operator(name="anna"))
    Rehearsal.objects.update(created_at=Now() - timedelta(days=31))
    assert list(ended_rehearsals("default")) == [old]
    row.delete()
    assert rehearsals.run_waiting("default", "w") == 1
    old.refresh_from_db()
    assert (old.state, old.worker, old.lease_token) == ("refused", "w", None)
