"""What operators do, as functions and as a command."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.utils import timezone

from messaging import operations, retention
from messaging.db.clock import Now
from messaging.management import options
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage, QueueControl
from messaging.operations import Operator, acting
from messaging.publishing import rounds
from messaging.wire.envelope import key_of, new_epoch
from tests.admin_rows import incoming, outgoing
from tests.deliveries import in_a_thread
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db
BY = Operator(name="script", reason="test")


def one(row: Any) -> Any:
    return type(row).objects.filter(pk=row.pk)


def round_of(row: Any, state: str) -> Any:
    """The outbox row of an incoming message's present round."""
    return outgoing(
        state, inbox=row, round=row.round, message_id=row.message_id, queue=row.queue, exchange="", epoch=new_epoch()
    )


def sent(row: Any, seconds_ago: float) -> Any:
    """The outbox row of a message's present round, which the broker confirmed so long ago."""
    out = round_of(row, "published")
    PublishedMessage.objects.filter(pk=out.pk).update(published_at=Now() - timedelta(seconds=seconds_ago))
    return out


def test_a_requeue_begins_a_round_with_fresh_attempts() -> None:
    row = incoming("failed", attempts=8, round=3)
    outcome = operations.requeue(one(row), BY)
    row.refresh_from_db()
    assert outcome.done == [row.pk]
    assert (row.state, row.round, row.attempts, row.retry_at) == ("requeued", 4, 0, None)
    out = PublishedMessage.objects.get()
    assert (out.state, out.exchange, out.queue, out.round, out.inbox_id) == ("pending", "", "billing", 4, row.pk)
    record = AuditRecord.objects.get()
    assert (record.action, record.state_before, record.state_after) == ("requeue", "failed", "requeued")
    assert (record.username, record.reason, record.message_pk) == ("script", "test", row.pk)


@pytest.mark.parametrize("act", [operations.requeue, operations.discard])
def test_acting_on_a_retrying_message_cancels_its_pending_round(act: Any) -> None:
    row = incoming("retrying", round=2)
    rounds = [round_of(row, state) for state in ("pending", "failed")]
    stranger = outgoing("pending", inbox=row, queue="billing", exchange="")  # its inbox row's number was given away
    act(one(row), BY)
    for sent in rounds:
        sent.refresh_from_db()
        assert (sent.state, sent.due_at) == ("discarded", None)
    stranger.refresh_from_db()
    assert stranger.state == "pending"


def test_discarding_fences_copies_and_restoring_makes_failed() -> None:
    row = incoming("failed")
    operations.discard(one(row), BY)
    row.refresh_from_db()
    assert (row.state, row.round) == ("discarded", 2)
    operations.restore(one(row), BY)
    row.refresh_from_db()
    assert row.state == "failed"
    assert list(AuditRecord.objects.order_by("pk").values_list("action", flat=True)) == ["discard", "restore"]


def test_every_verb_skips_what_is_in_another_state_and_says_why() -> None:
    held = {"processing": {"lease_token": uuid.uuid4(), "leased_until": Now() + timedelta(seconds=60)}}
    rows = [incoming(state, **held.get(state, {})) for state in ProcessedMessage.State.values]
    round_of(next(row for row in rows if row.state == "requeued"), "pending")
    outcome = operations.requeue(ProcessedMessage.objects.all(), BY)
    assert len(outcome.done) == 2
    assert outcome.skipped_count == len(rows) - 2
    assert "it is processed" in outcome.skipped


@pytest.mark.parametrize("act", [operations.requeue, operations.discard])
def test_a_requeued_message_that_was_sent_and_never_came_can_be_acted_upon(act: Any) -> None:
    row = incoming("requeued", round=2)
    sent(row, seconds_ago=rounds.LONG + 60)
    assert act(one(row), BY).done == [row.pk]
    row.refresh_from_db()
    assert row.round == 3


def test_a_second_requeue_is_skipped_until_the_first_was_sent_ten_minutes_ago() -> None:
    row = incoming("failed", attempts=8)
    assert operations.requeue(one(row), BY).done == [row.pk]
    for state, seconds_ago, is_done in (
        ("pending", None, False),
        ("published", 0, False),
        ("published", rounds.LONG - 60, False),
        ("published", rounds.LONG + 60, True),
    ):
        out = PublishedMessage.objects.filter(inbox=row, round=2)
        out.update(state=state, published_at=None if seconds_ago is None else Now() - timedelta(seconds=seconds_ago))
        outcome = operations.requeue(one(row), BY)
        assert bool(outcome.done) == is_done, (state, seconds_ago)
        if not is_done:
            assert "it is requeued, and was not sent yet or less than ten minutes ago" in outcome.skipped
    row.refresh_from_db()
    assert (row.state, row.round) == ("requeued", 3)
    assert AuditRecord.objects.filter(action="requeue").count() == 2


def test_what_an_earlier_round_did_does_not_keep_a_requeued_message() -> None:
    row = incoming("requeued", round=3)
    outgoing("published", inbox=row, round=2, message_id=row.message_id, queue=row.queue, published_at=Now())
    assert operations.requeue(one(row), BY).done == [row.pk]


def test_a_requeued_message_is_discarded_once_it_was_sent() -> None:
    row = incoming("failed")
    operations.requeue(one(row), BY)
    assert list(operations.discard(one(row), BY).skipped) == ["it is requeued, and was not sent yet"]
    PublishedMessage.objects.update(state="published", published_at=Now())
    assert operations.discard(one(row), BY).done == [row.pk]


@pytest.mark.django_db(transaction=True)
def test_a_row_that_a_running_handler_locks_is_left_out_and_does_not_make_operators_wait() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    rows = [incoming("retrying"), incoming("retrying")]
    locked, leave = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with transaction.atomic():
                list(one(rows[0]).select_for_update())
                locked.set()
                leave.wait(60)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert locked.wait(60)
    outcome = operations.requeue(ProcessedMessage.objects.all(), BY)
    assert thread.is_alive()
    leave.set()
    thread.join()
    assert outcome.done == [rows[1].pk]
    assert outcome.skipped == {"it changed meanwhile": [rows[0].pk]}


@pytest.mark.django_db(transaction=True)
def test_an_operation_that_meets_a_relay_in_a_deadlock_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("needs row locks, and one who is patient in a deadlock")
    monkeypatch.setattr(acting, "LOCK_WAIT", 60.0)
    row = incoming("retrying")
    retry = round_of(row, "pending")
    PublishedMessage.objects.filter(pk=retry.pk).update(lease_owner="relay", lease_token=uuid.uuid4())
    retry.refresh_from_db()
    relay_waits, operator_waits, sessions = threading.Event(), threading.Event(), list[int]()

    def fail_the_round() -> None:
        def wrap(execute: Any, sql: str, *arguments: Any) -> Any:
            if sql.startswith("UPDATE") and "processedmessage" in sql:
                sessions.append(connection.connection.info.backend_pid)
                relay_waits.set()
                assert operator_waits.wait(120)
            return execute(sql, *arguments)

        with transaction.atomic(), connection.execute_wrapper(wrap):
            connection.cursor().execute("SET LOCAL deadlock_timeout = '60s'")
            PublishedMessage.objects.fail([retry], "it is too large")

    def wrap(execute: Any, sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if "FOR UPDATE" in sql and not operator_waits.is_set():
            operator_waits.set()
            # Who waits last finds the deadlock, and gives way.
            wait_until(lambda: is_blocked(other, sessions[0]), what="the relay to wait for the operator")
        return result

    relay = in_a_thread(fail_the_round)
    assert relay_waits.wait(120)
    with closing(connection.copy()) as other, connection.execute_wrapper(wrap):
        outcome = operations.requeue(ProcessedMessage.objects.all(), BY)
    relay.join()
    assert outcome.done == [row.pk]
    assert outcome.skipped == {}
    row.refresh_from_db()
    assert row.state == "requeued"


def is_blocked(other: Any, session: int) -> bool:
    """Whether a session of PostgreSQL's waits for another one's lock."""
    with other.cursor() as cursor:
        cursor.execute("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [session])
        return cursor.fetchone() == (True,)


def test_a_selection_of_several_batches_is_done_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "BATCH", 5)
    for _ in range(13):
        outgoing("failed")
    outcome = operations.release(PublishedMessage.objects.all(), BY)
    assert len(outcome.done) == 13
    assert AuditRecord.objects.count() == 13


def test_a_damaged_row_is_skipped_and_does_not_stop_the_others() -> None:
    damaged = [incoming(wire=b"\x00"), incoming(body=b"\x00")]
    ProcessedMessage.objects.filter(pk=damaged[1].pk).update(body="A")
    sound = incoming()
    outcome = operations.requeue(ProcessedMessage.objects.all(), BY)
    assert outcome.done == [sound.pk]
    assert [reason[:29] for reason in outcome.skipped] == ["its stored content is damaged"] * 2
    out = outgoing("published", wire=b"\x00")
    assert operations.publish_copy(one(out), BY).skipped_count == 1


def test_a_row_of_an_alias_that_left_the_settings_is_acted_upon_all_the_same() -> None:
    row = incoming(alias="gone")
    assert operations.requeue(one(row), BY).done == [row.pk]


def test_rounds_are_refused_by_every_verb_of_the_outbox() -> None:
    row = incoming("retrying")
    pending = round_of(row, "failed")
    verbs = (
        operations.release, operations.replay, operations.publish_copy, operations.discard_published,
        operations.restore_published,
    )  # fmt: skip
    for verb in verbs:
        outcome = verb(one(pending), BY)
        assert (outcome.done, outcome.skipped_count) == ([], 1)
    pending.refresh_from_db()
    assert pending.state == "failed"


@pytest.mark.parametrize("state", ["processed", "failed", "discarded", "retrying"])
def test_a_round_that_failed_is_discarded_once_nobody_waits_for_it(state: str) -> None:
    row = incoming(state, round=2)
    failed = round_of(row, "failed")
    ProcessedMessage.objects.filter(pk=row.pk).update(round=3 if state == "retrying" else 2)
    assert operations.discard_published(one(failed), BY).done == [failed.pk]
    assert list(retention.deletable(one(row))) == [row]


@pytest.mark.parametrize(("act", "source"), [(operations.release, "draft"), (operations.release, "failed"),
                                             (operations.replay, "published")])  # fmt: skip
def test_what_is_sent_anew_has_an_epoch_of_its_own(act: Any, source: str) -> None:
    row = outgoing(source)
    assert act(one(row), BY).done == [row.pk]
    row.refresh_from_db()
    assert (row.state, row.epoch) == ("pending", 1)


@pytest.mark.parametrize(
    ("state", "values", "is_sent"),
    [
        ("retrying", {"round": 2}, True),
        ("requeued", {"round": 5}, True),
        ("processing", {"round": 2}, True),
        ("processing", {"round": 1}, False),  # what is replayed is this round
        ("processing", {"round": 2, "lease_token": uuid.uuid4()}, False),
        ("failed", {"round": 2}, False),
        ("processed", {"round": 2}, False),
    ],
)
def test_a_replay_sends_the_present_round_of_each_queue(state: str, values: dict[str, Any], is_sent: bool) -> None:
    row = outgoing("published", message_id="a")
    waiting = [incoming(state, message_id="a", key=key_of("a"), queue=queue, **values) for queue in ("one", "two")]
    incoming("retrying", message_id="A", key=key_of("A"), round=2)
    outcome = operations.replay(one(row), BY)
    assert outcome.done == [row.pk]
    rounds = PublishedMessage.objects.filter(inbox__isnull=False).order_by("pk")
    assert [(sent.inbox_id, sent.round, sent.state) for sent in rounds] == (
        [(found.pk, values["round"], "pending") for found in waiting] if is_sent else []
    )
    assert outcome.created == [sent.pk for sent in rounds]
    assert operations.replay(PublishedMessage.objects.filter(pk=row.pk, state="published"), BY).created == []


def test_a_replay_leaves_a_round_alone_that_is_still_to_be_sent() -> None:
    row = outgoing("published", message_id="a")
    pending = round_of(incoming("retrying", message_id="a", key=key_of("a"), round=2), "pending")
    outcome = operations.replay(one(row), BY)
    assert (outcome.done, outcome.created) == ([row.pk], [])
    assert PublishedMessage.objects.filter(inbox__isnull=False).get() == pending


def test_a_replay_does_not_believe_a_confirm_of_the_round_that_the_broker_has_lost_since() -> None:
    row = outgoing("published", message_id="a")
    round_of(incoming("retrying", message_id="a", key=key_of("a"), round=2), "pending")
    (held,) = PublishedMessage.objects.lease("default", "relay", 15, 1)
    assert operations.replay(one(row), BY).done == [row.pk]
    assert PublishedMessage.objects.mark_published([held]) == 0
    found = PublishedMessage.objects.get(inbox__isnull=False)
    assert (found.state, found.lease_token, found.epoch) == ("pending", None, held.epoch + 1)


@pytest.mark.parametrize("unrouted", [None, True])
def test_a_replay_does_not_believe_a_confirm_of_a_relay_that_held_the_round_before(unrouted: bool | None) -> None:
    row = outgoing("published", message_id="a")
    round_of(incoming("retrying", message_id="a", key=key_of("a"), round=2), "pending")
    frozen = PublishedMessage.objects.lease("default", "frozen", -1, 1)  # and its lease lapses
    other = PublishedMessage.objects.lease("default", "other", 15, 1)
    if unrouted is None:
        PublishedMessage.objects.release(other, "The connection was lost.")
    else:
        PublishedMessage.objects.back_off(other, 60, "No queue takes it.", unrouted=unrouted)
    due_at = PublishedMessage.objects.get(inbox__isnull=False).due_at
    assert operations.replay(one(row), BY).done == [row.pk]
    assert PublishedMessage.objects.mark_published(frozen) == 0
    found = PublishedMessage.objects.get(inbox__isnull=False)
    assert (found.state, found.epoch, found.due_at) == ("pending", frozen[0].epoch + 1, due_at)


def test_a_replay_sends_the_present_round_beside_an_earlier_one_that_is_to_be_sent_again() -> None:
    row = outgoing("published", message_id="a")
    waiting = incoming("retrying", message_id="a", key=key_of("a"), round=2)
    round_of(waiting, "pending")
    assert waiting.move("retrying", round=2, next_round=3)
    (created,) = operations.replay(one(row), BY).created
    assert PublishedMessage.objects.get(pk=created).round == 3


def test_a_round_can_be_replayed_while_its_incoming_message_waits_for_it() -> None:
    row = incoming("retrying", round=2)
    sent = round_of(row, "published")
    outcome = operations.replay(one(sent), BY)
    assert outcome.done == [sent.pk]
    again = PublishedMessage.objects.get(pk__in=outcome.created)
    assert (again.state, again.inbox_id, again.round, again.queue) == ("pending", row.pk, 2, row.queue)
    assert operations.replay(one(sent), BY).skipped == {
        "its incoming message has a round that is still to be sent": [sent.pk]
    }
    row.move("retrying", round=2, next_round=3)
    assert operations.replay(one(sent), BY).skipped == {
        "its incoming message does not wait for this round any more": [sent.pk]
    }


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseWrapper]:
    """A second database of the alias, where nothing is yet; Django's tests let none be used that the settings name."""
    monkeypatch.setattr("messaging.operations.databases_of", lambda row: ["default", "other"])
    values = {**connection.settings_dict, "NAME": str(tmp_path / "other"), "OPTIONS": {}}
    connections["other"] = opened = DatabaseWrapper(values, "other")
    yield opened
    opened.close()
    del connections["other"]


def test_a_replay_sends_the_round_that_waits_in_another_database(other: DatabaseWrapper) -> None:
    with other.schema_editor() as editor:
        for model in (ProcessedMessage, PublishedMessage):
            editor.create_model(model)
    row = outgoing("published", message_id="a")
    waiting = incoming("retrying", message_id="a", key=key_of("a"), round=3)
    waiting.delete()
    waiting.save(using="other", force_insert=True)
    assert operations.replay(one(row), BY).done == [row.pk]
    sent = PublishedMessage.objects.using("other").get()
    assert (sent.state, sent.round, sent.queue, sent.inbox_id) == ("pending", 3, "billing", waiting.pk)


def test_a_replay_leaves_alone_what_may_wait_in_a_database_that_is_away(other: DatabaseWrapper) -> None:
    rows = [outgoing("published") for _ in range(2)]
    outcome = operations.replay(PublishedMessage.objects.all(), BY)
    assert outcome.done == []
    assert outcome.skipped == {
        "the database “other”, which may have received it, cannot be used": [row.pk for row in rows]
    }


def test_a_replay_says_which_round_could_not_be_read() -> None:
    row = outgoing("published", message_id="a")
    incoming("retrying", message_id="a", key=key_of("a"), round=2, wire=b"damaged")
    outcome = operations.replay(one(row), BY)
    assert outcome.done == [row.pk]
    assert [reason[:29] for reason in outcome.skipped] == ["its stored content is damaged"]


def test_restoring_brings_back_what_it_was() -> None:
    failed, draft = outgoing("failed", error="unroutable"), outgoing("draft")
    operations.discard_published(PublishedMessage.objects.all(), BY)
    operations.restore_published(PublishedMessage.objects.all(), BY)
    failed.refresh_from_db()
    draft.refresh_from_db()
    assert (failed.state, draft.state) == ("failed", "draft")


def test_pausing_is_recorded() -> None:
    operations.set_paused("billing", True, BY)
    control = operations.set_paused("billing", False, BY)
    assert not control.paused
    assert QueueControl.objects.count() == 1
    assert list(AuditRecord.objects.order_by("pk").values_list("action", "kind")) == [
        ("pause", "queue"), ("resume", "queue"),
    ]  # fmt: skip


def test_the_audit_outlives_the_user() -> None:
    user = get_user_model().objects.create_user("leaver")
    operations.discard(one(incoming()), Operator(user=user))
    user.delete()
    record = AuditRecord.objects.get()
    assert (record.user, record.username) == (None, "leaver")


def unrouted(**values: Any) -> Any:
    """An outgoing message that no queue took."""
    return outgoing("pending", attempts=3, **{"error": "Unroutable. NO_ROUTE", **values})


def test_that_no_queue_took_it_is_told_by_no_words() -> None:
    told, before, other = unrouted(unrouted=True, error="Reworded."), unrouted(), unrouted(error="a full queue")
    assert set(PublishedMessage.objects.waiting_for_queue()) == {told, before}
    assert [row.waits_for_queue for row in (told, before, other)] == [True, True, False]


def test_what_waits_for_a_queue_is_sent_now_with_fresh_tries() -> None:
    soon = timezone.now() + timedelta(hours=1)
    waiting, scheduled, refused = (
        unrouted(due_at=soon),
        outgoing("pending", due_at=soon),
        outgoing("pending", attempts=1),
    )
    held = unrouted(lease_token=uuid.uuid4(), due_at=soon)
    of_incoming = unrouted(inbox=incoming("retrying", round=2), round=2, due_at=soon)
    outcome = operations.release(PublishedMessage.objects.all(), BY)
    assert outcome.done == [waiting.pk, of_incoming.pk]
    assert sorted(map(len, outcome.skipped.values())) == [1, 2]
    for row in (waiting, of_incoming):
        epoch = row.epoch
        row.refresh_from_db()
        assert (row.state, row.attempts, row.error, row.epoch) == ("pending", 0, "", epoch)
    assert set(PublishedMessage.objects.due("default")) >= {waiting, of_incoming}
    assert not {scheduled, held} & set(PublishedMessage.objects.due("default"))
    assert refused.state == "pending"


def republish(*args: str) -> str:
    out = StringIO()
    call_command("republish_messages", *args, stdout=out, no_color=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("args", "sent"),
    [
        ([], {"a", "b"}),
        (["--exchange", "shop"], {"b"}),
        (["--queue", "mail"], {"a"}),
        (["--routing-key", "orders.placed"], {"a", "b"}),
        (["--routing-key", "orders.#"], set()),
        (["--state", "waiting"], {"c"}),
        (["--state", "published"], {"d", "e"}),
        (["--state", "published", "--after", "2020-01-02"], {"d"}),
        (["--state", "published", "--before", "2020-01-02", "--limit", "5"], {"e"}),
        (["--id", "a", "--id", "c"], {"a"}),
        (["--limit", "1"], {"a"}),
        (["--alias", "other"], set()),
        (["--after", "2999-01-01"], set()),
    ],
)
def test_the_command_sends_again_what_its_filters_name(args: list[str], sent: set[str]) -> None:
    outgoing("failed", message_id="a", queue="mail", exchange="")
    outgoing("failed", message_id="b", exchange="shop")
    unrouted(message_id="c", due_at=timezone.now() + timedelta(hours=1))
    outgoing("published", message_id="d", published_at=timezone.now())
    outgoing("published", message_id="e", published_at=datetime(2020, 1, 1, 12, tzinfo=UTC))
    outgoing("draft", message_id="f")
    outgoing("discarded", message_id="g")
    assert f"{len(sent)} " in republish(*args, "--dry-run")
    before = set(PublishedMessage.objects.due("default").values_list("message_id", flat=True))
    report = republish(*args, "--reason", "the queue is there", "--user", "olga")
    assert set(PublishedMessage.objects.due("default").values_list("message_id", flat=True)) - before == sent
    assert report.startswith(f"To be sent: {len(sent)} message{'' if len(sent) == 1 else 's'}.")
    assert set(AuditRecord.objects.values_list("username", "reason")) <= {("olga", "the queue is there")}
    assert AuditRecord.objects.count() == len(sent)


@pytest.mark.parametrize("args", [["--limit", "0"], ["--after", "yesterday"], ["--database", "nowhere"]])
def test_the_command_that_sends_again_refuses_what_it_cannot_read(args: list[str]) -> None:
    with pytest.raises(CommandError, match=args[0]):
        republish(*args)


def run(*args: str) -> str:
    out = StringIO()
    call_command("requeue_messages", *args, stdout=out, no_color=True)
    return out.getvalue()


@pytest.mark.parametrize(("rows", "words"), [(1, "1 failed message would"), (2, "2 failed messages would")])
def test_the_command_counts_in_words(rows: int, words: str) -> None:
    for _ in range(rows):
        incoming()
    assert words in run("--dry-run")


def test_the_command_names_an_unknown_database() -> None:
    with pytest.raises(CommandError, match=r'DATABASES has no "nowhere"; it has .*default'):
        run("--database", "nowhere", "--dry-run")


def states() -> dict[str, str]:
    return dict(ProcessedMessage.objects.values_list("message_id", "state"))


@pytest.mark.parametrize(
    ("args", "requeued"),
    [
        ([], {"a", "b", "c"}),
        (["--queue", "mail"], {"b"}),
        (["--queue", "mail", "--queue", "billing"], {"a", "b", "c"}),
        (["--handler", "shop.bill"], {"a"}),
        (["--exception", "Boom"], {"a", "c"}),
        (["--exception", "shop.Boom"], {"a"}),
        (["--state", "retrying"], {"d"}),
        (["--state", "processing"], {"g", "h"}),
        (["--id", "a", "--id", "b", "--id", "nothing"], {"a", "b"}),
        (["--limit", "2"], {"a", "b"}),
        (["--alias", "other"], set()),
        (["--before", "2020-01-02"], {"c"}),
        (["--after", "2020-01-02"], {"a", "b"}),
        (["--after", "2020-01-01T00:00:00+00:00", "--before", "2020-01-01T00:00:01Z"], {"c"}),
    ],
)
def test_the_command_requeues_what_its_filters_name(args: list[str], requeued: set[str]) -> None:
    incoming(message_id="a", handler="shop.bill", exception_type="shop.Boom")
    incoming(message_id="b", queue="mail", exception_type="shop.Bang")
    old = incoming(message_id="c", exception_type="Boom")
    ProcessedMessage.objects.filter(pk=old.pk).update(received_at=datetime(2020, 1, 1, tzinfo=UTC))
    incoming("retrying", message_id="d")
    incoming("processed", message_id="e")
    for name, seconds in (("f", 60), ("g", -1)):
        until = Now() + timedelta(seconds=seconds)
        incoming("processing", message_id=name, lease_token=uuid.uuid4(), leased_until=until)
    incoming("processing", message_id="h")
    before = states()
    assert f"{len(requeued)} " in run(*args, "--dry-run")
    assert states() == before
    assert f"Requeued {len(requeued)} message" in run(*args)
    assert {name for name, state in states().items() if state == "requeued"} == requeued


def test_the_command_says_what_it_skipped_and_who_did_it() -> None:
    incoming(wire=None)
    incoming()
    get_user_model().objects.create_user("alice")
    text = run("--reason", "deployed", "--user", "alice")
    assert "Skipped 1: its content was never received." in text
    record = AuditRecord.objects.get()
    assert (record.username, record.reason) == ("alice", "deployed")
    assert record.user is not None
    incoming()
    run()
    assert AuditRecord.objects.latest("pk").username == "manage.py requeue_messages"


@pytest.mark.parametrize(
    "args", [["--before", "tomorrow"], ["--after", "2020-13-45"], ["--limit", "0"], ["--state", "processed"]]
)
def test_the_command_refuses_what_it_cannot_read(args: list[str]) -> None:
    with pytest.raises(CommandError):
        run(*args)


def test_the_command_takes_more_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "BATCH", 5)
    for _ in range(11):
        incoming()
    assert "Requeued 11 messages." in run()
    assert not ProcessedMessage.objects.filter(state="failed", received_at__lt=timezone.now() + timedelta(1)).exists()


LARGE = b"\x00\x01\xfe" * 40_000

INCOMING_VERBS = [
    pytest.param(operations.requeue, "failed", id="requeue"),
    pytest.param(operations.discard, "failed", id="discard"),
    pytest.param(operations.restore, "discarded", id="restore"),
]
OUTGOING_VERBS = [
    pytest.param(operations.release, "failed", id="release"),
    pytest.param(operations.replay, "published", id="replay"),
    pytest.param(operations.discard_published, "failed", id="discard"),
    pytest.param(operations.restore_published, "discarded", id="restore"),
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the bodies that were read as rows were made of what the database said."""
    lengths: list[int] = []
    for model in (ProcessedMessage, PublishedMessage):
        made = model.from_db

        def note(_: type, database: str, names: Any, values: Any, made: Any = made, **options: Any) -> Any:
            lengths.extend(len(value) for value in values if isinstance(value, str))
            return made(database, names, values, **options)  # options from Django 6.1 on

        monkeypatch.setattr(model, "from_db", classmethod(note))
    return lengths


@pytest.mark.parametrize(("act", "state"), INCOMING_VERBS)
def test_acting_on_incoming_messages_reads_no_large_body(act: Any, state: str, read: list[int]) -> None:
    rows = [incoming(state, body=LARGE) for _ in range(3)]
    read.clear()
    assert len(act(ProcessedMessage.objects.filter(pk__in=[row.pk for row in rows]), BY).done) == 3
    assert max(read) < 1000


@pytest.mark.parametrize(("act", "state"), OUTGOING_VERBS)
def test_acting_on_outgoing_messages_reads_no_large_body(act: Any, state: str, read: list[int]) -> None:
    rows = [outgoing(state, body=LARGE) for _ in range(3)]
    outgoing_of = round_of(incoming("requeued", body=LARGE), "published")
    read.clear()
    ids = [row.pk for row in rows] + ([outgoing_of.pk] if act is operations.replay else [])
    assert len(act(PublishedMessage.objects.filter(pk__in=ids), BY).done) == len(ids)
    assert max(read) < 1000


@pytest.mark.parametrize("body", [LARGE, "€ and more".encode() * 10_000, b"small", b""])
def test_a_requeued_message_has_its_body_to_the_byte(body: bytes) -> None:
    row = incoming("failed", body=body)
    operations.requeue(one(row), BY)
    assert PublishedMessage.objects.get().raw_body == body
    row.refresh_from_db()
    assert row.raw_body == body


def test_a_copy_of_a_large_message_has_its_body() -> None:
    operations.publish_copy(one(outgoing("published", body=LARGE)), BY)
    assert [row.raw_body for row in PublishedMessage.objects.all()] == [LARGE, LARGE]
