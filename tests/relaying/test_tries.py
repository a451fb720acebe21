"""What a row tells of the tries to send it that came to nothing, and that a success costs nothing for it."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from messaging import publish
from messaging.db.clock import Now
from messaging.message import Message
from messaging.models import PublishedMessage, tries
from messaging.models.tries import KEPT, LONGEST, told
from messaging.publishing.publisher import publish_many
from messaging.relaying.leases import Held, Leases
from messaging.relaying.verdicts import Judge
from tests.options import set_options
from tests.relays import Desk, relaying, state_is
from tests.waiting import wait_until

rows = PublishedMessage.objects


def of(row: PublishedMessage) -> list[tuple[str, str, str]]:
    row.refresh_from_db()
    return [(one.fate, one.answer, one.by) for one in told(row.tries)[0]]


@pytest.mark.django_db
def test_each_try_that_came_to_nothing_is_kept_with_its_answer() -> None:
    row = publish("a", 1)
    before = timezone.now() - timedelta(seconds=1)
    for number in range(3):
        held = rows.lease("default", "relay-1", 15, 10)
        rows.back_off(held, -1, f"answer {number}", unrouted=number == 0, by="relay-1")
    rows.release(rows.lease("default", "relay-2", 15, 10), "cut", "relay-2")
    rows.release(rows.lease("default", "relay-2", 15, 10))
    assert rows.fail(rows.lease("default", "relay-3", 15, 10), 'no "exchange" {…}\x00', "relay-3") == [row]
    assert of(row) == [
        (tries.UNROUTED, "answer 0", "relay-1"),
        (tries.REFUSED, "answer 1", "relay-1"),
        (tries.REFUSED, "answer 2", "relay-1"),
        (tries.LOST, "cut", "relay-2"),
        (tries.FAILED, 'no "exchange" {…}\\x00', "relay-3"),
    ]
    moments = [one.at for one in told(row.tries)[0]]
    assert before < moments[0]
    assert moments == sorted(moments)
    assert moments[-1] < timezone.now() + timedelta(seconds=1), "by the database's clock"


@pytest.mark.django_db
def test_a_try_is_at_the_millisecond_of_the_statement_that_notes_it() -> None:
    row = publish("a", 1)
    for _ in range(20):  # a wrong one may be right now and then
        rows.filter(pk=row.pk).update(due_at=Now(), tries=tries.noted(tries.LOST, ""))
        row.refresh_from_db()
        assert row.due_at is not None
        assert abs(told(row.tries)[0][-1].at - row.due_at) < timedelta(milliseconds=1)


@pytest.mark.django_db
def test_the_oldest_tries_make_room() -> None:
    row = publish("a", 1)
    for number in range(40):
        rows.back_off(rows.lease("default", "relay-1", 15, 10), -1, f"{number} " + "x" * 3 * LONGEST, by="relay-1")
    row.refresh_from_db()
    found, had_more = told(row.tries)
    assert row.tries is not None
    assert len(row.tries) == KEPT
    assert had_more
    assert found[-1].answer.startswith("39 ")
    assert {len(one.answer) for one in found} == {LONGEST}
    assert len(found) == KEPT // (LONGEST + 80)


@pytest.mark.parametrize(
    "text", [None, "", "nonsense", '{"at": "x"}', '{"at": 1e300, "by": "", "fate": "", "answer": ""}']
)
def test_what_says_nothing_is_no_try(text: str | None) -> None:
    assert told(text)[0] == []


@pytest.mark.django_db
def test_a_success_neither_writes_nor_reads_it() -> None:
    (row,) = publish_many([Message("a", 1)])
    with CaptureQueriesContext(connection) as queries:
        rows.mark_published(rows.lease("default", "relay-1", 15, 10))
    assert not [query["sql"] for query in queries if re.search(r"\btries\b", query["sql"])]
    row.refresh_from_db()
    assert (row.state, row.tries) == ("published", None)


@pytest.mark.django_db
def test_a_lost_answer_is_told_where_the_message_had_been_sent() -> None:
    one, other = publish("a", 1), publish("b", 2)
    leases = Leases("default", "default", "relay-1", 15)
    sent, unsent = (Held(leases, row) for row in leases.take(10))
    Judge()._unknown(sent, "the connection was reset")
    unsent.hand_back()
    leases.write()
    assert of(one) == [(tries.LOST, "the connection was reset", "relay-1")]
    assert of(other) == []
    assert rows.due("default").count() == 2


@pytest.mark.django_db
def test_a_relay_that_ends_tells_what_was_lost_and_hands_all_back() -> None:
    one, other = publish("a", 1), publish("b", 2)
    leases = Leases("default", "default", "relay-1", 15)
    lost, _unsent = (Held(leases, row) for row in leases.take(10))
    lost.hand_back("cut")
    leases.release_all()
    assert (of(one), of(other)) == ([(tries.LOST, "cut", "relay-1")], [])
    assert rows.due("default").count() == 2
    assert len(leases) == 0


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_publishing_to_nowhere_has_the_brokers_answers(desk: Desk, settings: Settings) -> None:
    set_options(settings, UNROUTABLE=[0.05, 0.05])
    row = publish("nobody.listens", 1)
    with relaying() as (relay,):
        wait_until(state_is(row, "failed"), what="failed at its end")
    assert [(fate, by) for fate, _, by in of(row)] == [
        (tries.UNROUTED, relay.name),
        (tries.UNROUTED, relay.name),
        (tries.FAILED, relay.name),
    ]
    assert all("nobody.listens" in answer or "NO_ROUTE" in answer for _, answer, _ in of(row))
