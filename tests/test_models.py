"""The verbs of the rows: each a compare-and-set."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.models import F
from django.utils import timezone

from messaging.db.clock import Now
from messaging.message import Message
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.publishing.publisher import publish, publish_many
from messaging.publishing.rows import compose_round
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

Out = PublishedMessage.State
In = ProcessedMessage.State
rows = PublishedMessage.objects


@pytest.mark.django_db
def test_the_migration_is_what_the_models_say() -> None:
    call_command("makemigrations", "messaging", check=True, dry_run=True, verbosity=0)


def test_wagtail_is_told_to_leave_every_one_of_them_alone() -> None:
    models = list(apps.get_app_config("messaging").get_models())
    assert [model for model in models if not getattr(model, "wagtail_reference_index_ignore", False)] == []


@pytest.mark.django_db
def test_a_lease_takes_due_rows_once() -> None:
    due = publish_many([Message("a", n) for n in range(3)])
    publish("later", 1, delay=3600)
    assert rows.wait("default") == 0
    first = rows.lease("default", "one", 600, 2)
    second = rows.lease("default", "two", 600, 10)
    assert [row.pk for row in first + second] == [row.pk for row in due]
    assert first[0].lease_token == first[1].lease_token != second[0].lease_token
    assert rows.lease("default", "three", 600, 10) == []
    assert rows.lease("other", "three", 600, 10) == []
    seconds = rows.wait("default")
    assert seconds is not None
    assert 500 < seconds <= 600


@pytest.mark.django_db
def test_a_lease_may_take_the_newest() -> None:
    made = [publish("k", 1, at=timezone.now() - timedelta(minutes=minutes)) for minutes in (3, 1, 2)]
    publish("k", 1, delay=3600)
    taken = [[row.pk for row in rows.lease("default", "one", 600, 1, newest=newest)] for newest in (True, False, True)]
    assert taken == [[made[1].pk], [made[0].pk], [made[2].pk]]
    assert rows.lease("default", "one", 600, 1, newest=True) == []


@pytest.mark.django_db
def test_nothing_pending_means_nothing_to_wait_for() -> None:
    publish("a", 1)
    rows.update(state=Out.FAILED)
    assert rows.wait("default") is None


@pytest.mark.django_db
def test_a_lapsed_lease_can_be_taken_and_the_old_holder_only_confirm() -> None:
    publish("a", 1)
    (old,) = rows.lease("default", "one", -1, 10)
    (new,) = rows.lease("default", "two", 15, 10)
    assert rows.renew([old], 15) == 0
    assert rows.release([old]) == 0
    assert not old.mark_failed("no")
    assert not old.back_off(5, "no")
    new.refresh_from_db()
    assert (new.state, new.error, new.lease_owner) == (Out.PENDING, "", "two")
    assert rows.mark_published([old]) == 1
    assert rows.mark_published([old]) == 0
    assert not new.mark_failed("late")
    new.refresh_from_db()
    assert (new.state, new.attempts, new.lease_token, new.due_at) == (Out.PUBLISHED, 1, None, None)


@pytest.mark.django_db
def test_renewing_releasing_and_backing_off() -> None:
    publish_many([Message("a", 1), Message("a", 2)])
    held = rows.lease("default", "one", 1, 10)
    assert rows.renew(held, 100) == 2
    assert (rows.wait("default") or 0) > 50
    assert rows.release(held) == 2
    assert rows.wait("default") == 0
    one, other = rows.lease("default", "one", 1, 10)
    assert one.back_off(30, "full\x00", spend=False)
    assert other.back_off(30, "lost")
    one.refresh_from_db()
    other.refresh_from_db()
    assert (one.attempts, one.error, one.lease_token) == (0, "full\\x00", None)
    assert (other.attempts, other.error) == (1, "lost")
    assert rows.lease("default", "one", 1, 10) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("state", "round_", "message_id", "ends"),
    [
        (In.RETRYING, 2, "a", In.FAILED),
        (In.REQUEUED, 2, "a", In.FAILED),
        (In.RETRYING, 3, "a", In.RETRYING),
        (In.DISCARDED, 2, "a", In.DISCARDED),
        (In.PROCESSED, 2, "a", In.PROCESSED),
        (In.RETRYING, 2, "another that got its number", In.RETRYING),
    ],
)
def test_a_failed_round_fails_its_incoming_message_if_that_still_waits_for_it(
    state: str, round_: int, message_id: str, ends: str
) -> None:
    identity = {"message_id": message_id, "key": uuid.uuid4(), "digest": uuid.uuid4()}
    received = ProcessedMessage.objects.create(state=state, queue="q", round=round_, retry_at=Now(), **identity)
    publish("q", 1, queue="q", message_id="a")
    rows.update(inbox=received, round=2)
    (row,) = rows.lease("default", "one", 15, 1)
    assert row.mark_failed("the queue is gone") is (ends != state)
    received.refresh_from_db()
    row.refresh_from_db()
    assert received.state == ends
    assert ("the queue is gone" in received.error) is (ends != state)
    assert row.state == (Out.FAILED if ends != state else Out.DISCARDED)
    assert (row.error, row.due_at, row.discarded_at is None) == ("the queue is gone", None, ends != state)


@pytest.mark.django_db
def test_a_late_mark_is_of_one_sending_of_one_message() -> None:
    publish_many([Message("a", n) for n in range(4)])
    late = rows.lease("default", "one", -1, 10)
    rows.filter(pk=late[1].pk).update(epoch=F("epoch") + 1)  # as an operator's replay does
    rows.filter(pk=late[2].pk).update(message_id="another that got its number")
    rows.filter(pk=late[3].pk).update(state=Out.DISCARDED)  # whatever was said since
    assert rows.mark_published(late) == 2
    assert [row.state for row in rows.order_by("pk")] == [Out.PUBLISHED, Out.PENDING, Out.PENDING, Out.PUBLISHED]


@pytest.mark.django_db
def test_any_message_id_can_be_marked() -> None:
    ids = ['a","b', "back\\slash\\", "{}", "NULL", "", " ", "żółw 🐢", "'quoted' %s", "line\nfeed\x01"]
    for number, message_id in enumerate(ids):
        publish("a", number, message_id=message_id or None)
    rows.filter(body=str(ids.index(""))).update(message_id="")  # as a round of a message without one
    assert rows.mark_published(rows.lease("default", "one", 15, 100)) == len(ids)


@pytest.mark.django_db
def test_a_late_mark_of_a_round_is_of_no_other_queue_with_the_same_message() -> None:
    content = {"message_id": "a", "wire": Envelope("", "k", Properties.build(message_id="a"), b"").to_wire()}
    received = [
        ProcessedMessage.objects.create(
            state=In.RETRYING, queue=queue, round=2, key=uuid.uuid4(), digest=uuid.uuid4(), **content
        )
        for queue in ("one", "two")
    ]
    lost = compose_round(received[0], Now())
    lost.save()
    (late,) = rows.lease("default", "one", 15, 10)
    lost.delete()  # a failover that forgot it, and gives its number to another
    again = compose_round(received[1], Now())
    again.pk = late.pk
    again.save(force_insert=True)
    assert rows.mark_published([late]) == 0
    assert rows.get().state == Out.PENDING


@pytest.mark.django_db
def test_a_copy_is_a_new_message_with_the_same_content() -> None:
    row = publish("a", {"x": 1}, headers={"raw": b"\xff"}, priority=3, expiration=5)
    copy = row.copied()
    assert copy.message_id != row.message_id
    assert copy.copy_of == row
    assert (copy.body, copy.headers, copy.priority, copy.expiration) == (row.body, row.headers, 3, 5000)
    assert copy.wire is not None
    assert copy.wire != row.wire


@pytest.mark.django_db
def test_an_inbox_row_moves_only_from_where_it_is() -> None:
    token = uuid.uuid4()
    row = ProcessedMessage.objects.create(
        state=In.PROCESSING, queue="q", key=uuid.uuid4(), digest=uuid.uuid4(), lease_token=token
    )
    assert not row.move(In.RETRYING, round=1, state=In.FAILED)
    assert not row.move(In.PROCESSING, round=2, state=In.FAILED)
    assert not row.move(In.PROCESSING, round=1, token=uuid.uuid4(), state=In.FAILED)
    assert row.renewed(10)
    assert row.move(In.PROCESSING, round=1, token=token, next_round=2, state=In.FAILED, failed_at=Now())
    assert (row.state, row.round) == (In.FAILED, 2)
    row.refresh_from_db()
    assert (row.state, row.round) == (In.FAILED, 2)
    assert not row.renewed(10)


@pytest.mark.django_db
def test_abandoned_claims_are_those_whose_lease_lapsed() -> None:
    def claim(seconds: int, wire: bytes | None = b"") -> ProcessedMessage:
        return ProcessedMessage.objects.create(
            state=In.PROCESSING,
            queue="q",
            key=uuid.uuid4(),
            digest=uuid.uuid4(),
            leased_until=Now() + timedelta(seconds=seconds),
            wire=wire,
        )

    lapsed = claim(-5)
    claim(60)
    claim(-5, wire=None)
    assert [row.pk for row in ProcessedMessage.objects.abandoned("default")] == [lapsed.pk]


@pytest.mark.django_db(transaction=True)
def test_two_that_lease_at_once_share_and_never_overlap() -> None:
    publish_many([Message("a", n) for n in range(200)])
    taken: dict[str, list[int]] = {"one": [], "two": []}
    ready = threading.Barrier(2)

    def work(owner: str) -> None:
        try:
            ready.wait(60)
            while found := PublishedMessage.objects.lease("default", owner, 60, 10):
                taken[owner] += [row.pk for row in found]
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(owner,)) for owner in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    everything = taken["one"] + taken["two"]
    assert len(everything) == len(set(everything))
    # Where rows cannot be locked, one that loses a race comes back with nothing and looks again later.
    everything += [row.pk for row in PublishedMessage.objects.lease("default", "three", 60, 1000)]
    assert len(set(everything)) == 200
