"""Operations that are stored, and carried out by whoever comes: what they act on, and what interruptions leave."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import translation

from messaging.db.clock import Now
from messaging.models import AuditRecord, Operation, OperationItem, ProcessedMessage, PublishedMessage
from messaging.operations import Operator, stored
from messaging.operations.stored import cancel, go_on, run_waiting, store
from tests.admin_rows import incoming, outgoing

pytestmark = pytest.mark.django_db
BY = Operator(name="anna", reason="broker was away")
State, Result = Operation.State, OperationItem.Result


def failed(count: int) -> list[ProcessedMessage]:
    return [incoming("failed") for _ in range(count)]


def all_failed() -> Any:
    return ProcessedMessage.objects.filter(state="failed")


def states() -> list[str]:
    return list(ProcessedMessage.objects.order_by("pk").values_list("state", flat=True))


def read(operation: Operation) -> Operation:
    return Operation.objects.get(pk=operation.pk)


def counts(operation: Operation) -> tuple[str, int, int, int, int]:
    found = read(operation)
    return found.state, found.total, found.done, found.skipped, found.failed


def test_acts_on_what_there_was_when_it_was_stored_and_on_nothing_later() -> None:
    failed(3)
    operation = store(all_failed(), "requeue", BY, scope="state: failed")
    later = incoming("failed")
    assert run_waiting("default", "w") == 1
    assert counts(operation) == ("done", 3, 3, 0, 0)
    assert states() == ["requeued"] * 3 + ["failed"]
    assert PublishedMessage.objects.filter(state="pending").count() == 3
    assert not PublishedMessage.objects.filter(inbox=later).exists()
    assert run_waiting("default", "w") == 0


def test_has_one_audit_record_of_its_own_and_each_message_an_item() -> None:
    rows = failed(2)
    operation = store(all_failed(), "discard", BY)
    run_waiting("default", "w")
    record = AuditRecord.objects.get()
    assert (record.kind, record.message_pk, record.action) == ("operation", operation.pk, "discard")
    assert (record.username, record.reason) == ("anna", "broker was away")
    items = OperationItem.objects.filter(operation=operation).order_by("row")
    assert [(item.row, item.result) for item in items] == [(row.pk, Result.DONE) for row in rows]
    assert all(item.settled_at for item in items)


def test_what_changed_meanwhile_or_is_gone_is_skipped_for_a_reason_in_the_users_language() -> None:
    rows = failed(3)
    with translation.override("zh-hans"):
        operation = store(all_failed(), "requeue", BY)
    ProcessedMessage.objects.filter(pk=rows[0].pk).update(state="processed")
    rows[1].delete()
    run_waiting("default", "w")
    assert counts(operation) == ("done", 3, 1, 2, 0)
    with translation.override("zh-hans"):
        expected = {str(translation.gettext("it is gone")): 1}
    assert expected.items() <= read(operation).reasons.items()
    assert len(read(operation).reasons) == 2


def test_a_message_that_cannot_be_acted_on_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = failed(5)
    act = stored.VERBS["processed"]["requeue"]

    def odd(found: Any, by: Operator) -> Any:
        if found.filter(pk=rows[2].pk).exists():
            raise ValueError("a bug of ours")
        return act(found, by)

    monkeypatch.setitem(stored.VERBS["processed"], "requeue", odd)  # type: ignore[arg-type]
    operation = store(all_failed(), "requeue", BY)
    run_waiting("default", "w")
    assert counts(operation) == ("done", 5, 4, 0, 1)
    assert OperationItem.objects.get(result=Result.FAILED).note == "a bug of ours"
    assert states() == ["requeued", "requeued", "failed", "requeued", "requeued"]


def test_one_is_tried_and_the_rest_waits_for_the_operators_word() -> None:
    failed(3)
    operation = store(all_failed(), "requeue", BY, try_one=True)
    run_waiting("default", "w")
    assert counts(operation) == ("held", 3, 1, 0, 0)
    assert run_waiting("default", "w") == 0
    assert go_on(operation)
    run_waiting("default", "w")
    assert counts(operation) == ("done", 3, 3, 0, 0)
    assert not go_on(operation)


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_cancelled_goes_no_further(begun: bool) -> None:
    failed(2)
    operation = store(all_failed(), "requeue", BY, try_one=begun)
    if begun:
        run_waiting("default", "w")
    assert cancel(operation)
    assert not go_on(operation)
    assert run_waiting("default", "w") == 0
    assert counts(operation) == ("cancelled", 2, int(begun), 0, 0)
    assert not cancel(operation)


def test_a_claim_keeps_others_away_until_it_lapses() -> None:
    failed(1)
    operation = store(all_failed(), "requeue", BY)
    run = stored._Run.begin("default", "first")
    assert run is not None
    assert run_waiting("default", "second") == 0
    Operation.objects.update(leased_until=Now() - timedelta(seconds=1))
    assert run_waiting("default", "second") == 1
    assert counts(operation) == ("done", 1, 1, 0, 0)
    assert not run.batch(), "its claim is another's"
    assert OperationItem.objects.filter(result=Result.DONE).count() == 1


def test_a_stop_ends_it_after_a_batch_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BATCH", 2)
    failed(5)
    stop = threading.Event()
    operation = store(all_failed(), "requeue", BY)
    step = stored._Run._step

    def stopping(self: Any, *args: Any, **options: Any) -> int:
        stop.set()
        return step(self, *args, **options)

    monkeypatch.setattr(stored._Run, "_step", stopping)
    assert run_waiting("default", "w", stop) == 1
    assert counts(operation) == ("running", 5, 2, 0, 0)
    monkeypatch.undo()
    assert run_waiting("default", "w") == 1
    assert counts(operation) == ("done", 5, 5, 0, 0)


def test_a_rate_is_kept_by_pauses_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "time", SimpleNamespace(monotonic=lambda: 0.0))  # a batch takes no time
    failed(3)
    store(all_failed(), "requeue", BY, rate=2)
    run = stored._Run.begin("default", "w")
    assert run is not None
    assert run.batch()
    assert OperationItem.objects.filter(result=Result.DONE).count() == 2
    assert run.pause == 1.0


@pytest.mark.parametrize(
    ("verb", "state", "after"),
    [
        ("publish", "failed", "pending"),
        ("replay", "published", "pending"),
        ("discard", "failed", "discarded"),
        ("restore", "discarded", "draft"),
    ],
)
def test_outgoing_messages_have_their_verbs(verb: str, state: str, after: str) -> None:
    outgoing(state)
    operation = store(PublishedMessage.objects.filter(state=state), verb, BY)
    run_waiting("default", "w")
    assert counts(operation)[0] == "done"
    assert PublishedMessage.objects.get().state == after


def test_a_command_carries_them_out(capsys: pytest.CaptureFixture[str]) -> None:
    failed(2)
    store(all_failed(), "requeue", BY)
    call_command("run_operations")
    assert "1 operation carried out." in capsys.readouterr().out
    assert states() == ["requeued", "requeued"]


def test_of_nothing_it_is_done_at_once() -> None:
    operation = store(ProcessedMessage.objects.none(), "requeue", BY)
    run_waiting("default", "w")
    assert counts(operation) == ("done", 0, 0, 0, 0)


def test_what_only_another_release_can_do_is_left_to_that_and_keeps_nothing_else_waiting() -> None:
    failed(1)
    novel = store(all_failed(), "requeue", BY)
    Operation.objects.update(verb="novel")
    known = store(all_failed(), "requeue", BY)
    assert run_waiting("default", "w") == 1
    assert (counts(novel)[0], counts(known)[0]) == ("waiting", "done")
    assert not stored.is_waiting("default")
