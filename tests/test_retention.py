"""Only what ended well, or was discarded, ever goes."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from pytest_django import Settings

from messaging.db.clock import Now
from messaging.models import Attempt, AuditRecord, Operation, OperationItem, ProcessedMessage, PublishedMessage
from messaging.operations import Operator, requeue
from messaging.operations.stored import store
from messaging.retention import expired, prune
from tests import admin_rows
from tests.options import set_options
from tests.settings import TEST_DB

pytestmark = pytest.mark.django_db

In = ProcessedMessage.State
Out = PublishedMessage.State
OLD = Now() - timedelta(days=31)


def outgoing(state: str, *, when: Any = OLD, **fields: Any) -> PublishedMessage:
    values = {"message_id": str(uuid.uuid4()), "created_at": when, "published_at": when, "discarded_at": when, **fields}
    return PublishedMessage.objects.create(state=state, **values)


def incoming(state: str, *, when: Any = OLD, **fields: Any) -> ProcessedMessage:
    values = {"message_id": str(uuid.uuid4()), "key": uuid.uuid4(), "digest": uuid.uuid4(), "queue": "work", **fields}
    times = {"created_at": when, "received_at": when, "processed_at": when, "failed_at": when, "discarded_at": when}
    return ProcessedMessage.objects.create(state=state, **times, **values)


def run(**options: Any) -> str:
    out = io.StringIO()
    call_command("prune_messages", stdout=out, **options)
    return out.getvalue()


def test_only_old_rows_that_ended_well_or_were_discarded_go() -> None:
    for state in Out.values:
        outgoing(state)
        outgoing(state, when=Now())
    for state in In.values:
        incoming(state)
        incoming(state, when=Now())
    text = run()
    assert "default, default: 1 published deleted" in text
    assert sorted(PublishedMessage.objects.values_list("state", flat=True)) == sorted(
        [*Out.values, Out.DRAFT, Out.PENDING, Out.FAILED]
    )
    assert sorted(ProcessedMessage.objects.values_list("state", flat=True)) == sorted(
        [*In.values, In.PROCESSING, In.RETRYING, In.FAILED, In.REQUEUED]
    )


@pytest.mark.parametrize("state", [Out.PENDING, Out.DRAFT, Out.FAILED])
def test_dedupe_memory_stays_while_a_copy_may_still_come(state: str) -> None:
    by_id, by_row, free = incoming(In.PROCESSED), incoming(In.PROCESSED), incoming(In.PROCESSED)
    outgoing(state, message_id=by_id.message_id, when=Now())
    outgoing(state, message_id="another", inbox=by_row, when=Now())
    run()
    assert set(ProcessedMessage.objects.values_list("pk", flat=True)) == {by_id.pk, by_row.pk}
    PublishedMessage.objects.update(state=Out.PUBLISHED)
    run()
    assert not ProcessedMessage.objects.filter(pk__in=[by_id.pk, by_row.pk, free.pk]).exists()


def test_messages_without_an_id_do_not_keep_each_other() -> None:
    incoming(In.PROCESSED, message_id="")
    outgoing(Out.PENDING, message_id="")
    run()
    assert not ProcessedMessage.objects.exists()


def test_attempts_go_along_and_audit_records_stay() -> None:
    row = incoming(In.PROCESSED)
    Attempt.objects.create(message=row, number=1, round=1)
    AuditRecord.objects.create(action="requeue", kind="processed", message_pk=row.pk, alias="default", at=OLD)
    assert "1 processed deleted" in run()
    assert not Attempt.objects.exists()
    assert AuditRecord.objects.count() == 1


def test_a_dry_run_counts_and_deletes_nothing() -> None:
    outgoing(Out.PUBLISHED)
    assert "default, default: 1 published would go" in run(dry_run=True)
    assert PublishedMessage.objects.count() == 1


def test_batches_reach_the_last_row() -> None:
    for _ in range(7):
        outgoing(Out.PUBLISHED)
    assert prune(dict(expired("default"))["published"], 3) == 7
    assert not PublishedMessage.objects.exists()


def test_none_keeps_for_ever_and_zero_nothing(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"RETENTION": {"published": None, "processed": 0}}}
    outgoing(Out.PUBLISHED)
    incoming(In.PROCESSED, when=Now() - timedelta(seconds=1))
    run()
    assert PublishedMessage.objects.count() == 1
    assert not ProcessedMessage.objects.exists()


def test_other_aliases_keep_theirs(settings: Settings) -> None:
    settings.MESSAGING = {"default": {}, "other": {}}
    outgoing(Out.PUBLISHED)
    outgoing(Out.PUBLISHED, alias="other")
    assert "default" not in run(using="other").replace(", default", "")
    assert PublishedMessage.objects.get().alias == "default"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(CommandError, match="--batch"):
        run(batch=0)
    with pytest.raises(CommandError, match="no alias"):
        run(using="nowhere")


def test_rows_of_one_moment_go_in_batches_too() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    kept = [outgoing(Out.PENDING, when=moment) for _ in range(3)]
    for _ in range(7):
        outgoing(Out.PUBLISHED, when=moment)
    assert prune(dict(expired("default"))["published"], 2) == 7
    assert set(PublishedMessage.objects.values_list("pk", flat=True)) == {row.pk for row in kept}


def fill() -> None:
    """MariaDB reads a table of a few rows as a whole, and locks what it passes: both outbox and inbox get more."""
    for _ in range(100):
        outgoing(Out.DRAFT, when=Now())
        incoming(In.FAILED, when=Now())


def prune_all() -> int:
    return sum(prune(rows) for _, rows in expired("default"))


@contextmanager
def elsewhere(act: Callable[[], object]) -> Iterator[None]:
    """Another transaction that has done something and is not at its end; nobody here waits for it longer than that."""
    done, end = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with transaction.atomic():
                act()
                done.set()
                end.wait(60)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert done.wait(120)
        with connection.cursor() as cursor:
            setting = "lock_timeout = '2s'" if connection.vendor == "postgresql" else "innodb_lock_wait_timeout = 2"
            cursor.execute(f"SET {setting}")
        yield
    finally:
        end.set()
        thread.join(120)
        connection.close()


locks_rows = pytest.mark.skipif(TEST_DB == "sqlite", reason="needs row locks")


@locks_rows
@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_a_batch_that_is_being_deleted() -> None:
    for _ in range(10):
        outgoing(Out.PUBLISHED)
        incoming(In.PROCESSED)
    fill()
    pending, failed = outgoing(Out.PENDING, when=Now()), admin_rows.incoming()
    with elsewhere(prune_all):
        new = outgoing(Out.PENDING, when=Now())
        incoming(In.PROCESSED, when=Now())
        assert {row.pk for row in PublishedMessage.objects.lease("default", "relay", 15, 10)} == {pending.pk, new.pk}
        assert PublishedMessage.objects.mark_published([new]) == 1
        assert requeue(ProcessedMessage.objects.filter(pk=failed.pk), Operator(name="ann")).done == [failed.pk]
    assert PublishedMessage.objects.filter(state=Out.PUBLISHED).get() == new
    assert ProcessedMessage.objects.filter(state=In.PROCESSED).count() == 1


@locks_rows
@pytest.mark.django_db(transaction=True)
def test_pruning_waits_for_nobody_and_takes_what_was_locked_the_next_time() -> None:
    locked, free = outgoing(Out.PUBLISHED), incoming(In.PROCESSED)
    others = [outgoing(Out.PUBLISHED) for _ in range(3)]
    fill()
    with elsewhere(lambda: PublishedMessage.objects.select_for_update().get(pk=locked.pk)):
        assert prune_all() == len([*others, free])
        assert PublishedMessage.objects.filter(state=Out.PUBLISHED).get() == locked
    assert prune_all() == 1


def test_operations_go_when_they_ended_long_ago_and_their_items_with_them(settings: Settings) -> None:
    admin_rows.incoming("failed")
    ended, recent, waiting = (store(ProcessedMessage.objects.all(), "discard", Operator(name="x")) for _ in range(3))
    Operation.objects.filter(pk__in=[ended.pk, recent.pk]).update(state="done", ended_at=Now())
    Operation.objects.filter(pk=ended.pk).update(ended_at=Now() - timedelta(days=31))
    call_command("prune_messages", dry_run=True)
    assert Operation.objects.count() == 3
    call_command("prune_messages", batch=1)
    assert set(Operation.objects.values_list("pk", flat=True)) == {recent.pk, waiting.pk}
    assert set(OperationItem.objects.values_list("operation_id", flat=True)) == {recent.pk, waiting.pk}
    Operation.objects.update(ended_at=Now() - timedelta(days=400))
    set_options(settings, RETENTION={"discarded": None})
    call_command("prune_messages")
    assert Operation.objects.count() == 2
