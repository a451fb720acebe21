"""Rules that are broken in the code, by a patch, are noticed by the conformance test.

Every rule of `mutants.py` that breaks an invariant has its twin here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import F
from django.db.models.lookups import In

from messaging import operations, retention
from messaging.db.clock import Now
from messaging.db.connections import transaction_mode
from messaging.models import ProcessedMessage, PublishedMessage, outbox
from messaging.models.outbox import PublishedMessageQuerySet
from messaging.processing import attempting, crashes, failures, inbox, stopping, without_handler
from messaging.processing.elsewhere import Elsewhere
from messaging.processing.processor import Processor
from messaging.publishing import rounds, rows
from messaging.supervising.ledger import Entry
from tests.model.protocol import Configuration
from tests.model.rows import DATABASES
from tests.model.test_conformance import NAMED, _stepped, walk

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=DATABASES),
    pytest.mark.usefixtures("second_database"),
    pytest.mark.slow,
]

WALKS = 60
Patch = Callable[[pytest.MonkeyPatch], None]


def acknowledge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Processor.process

    def early(self: Processor, delivery: Any, ack: Callable[[], object]) -> Any:
        ack()
        return process(self, delivery, lambda: None)

    monkeypatch.setattr(Processor, "process", early)


def mark_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(self: PublishedMessageQuerySet, rows: Any) -> int:
        changes = {"state": "published", "due_at": None, "lease_token": None, "published_at": Now()}
        return self.filter(pk__in=[row.pk for row in rows]).update(attempts=F("attempts") + 1, **changes)

    monkeypatch.setattr(PublishedMessageQuerySet, "mark_published", mark)


def do_not_check_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    move = ProcessedMessage.move

    def unchecked(self: ProcessedMessage, *sources: str, **options: Any) -> bool:
        if options.get("token") is not None:
            options["token"], sources = None, tuple(ProcessedMessage.State.values)
            options["round"] = ProcessedMessage.objects.get(pk=self.pk).round
        return move(self, *sources, **options)

    monkeypatch.setattr(ProcessedMessage, "move", unchecked)


def do_not_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = inbox.gate

    def unfenced(row: ProcessedMessage, envelope: Any) -> Any:
        verdict = gate(row, envelope)
        awaits = row.digest == envelope.digest and row.state in ProcessedMessage.AWAITING
        return inbox.Verdict.RUN if awaits else verdict

    monkeypatch.setattr(inbox, "gate", unfenced)


def adopt_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        inbox, "adopted", lambda alike, handler: next((row for row in alike if inbox.is_unfinished(row)), None)
    )


def sweep_what_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "comes_again", lambda row, handler: False)


def count_all_that_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_handler, "_excuse", lambda *arguments: "")


class Nothing:
    def save(self, **options: Any) -> None:
        pass


def fail_without_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "compose_round", lambda row, due: Nothing())


def replay_the_first_round_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "send_round_again", lambda row: None)


def leave_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashes, "_settle_elsewhere", lambda crash, own: False)


def refuse_what_is_processing(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = operations._leave
    monkeypatch.setattr(operations, "_leave", lambda row, **to: row.state != "processing" and leave(row, **to))


def do_not_cancel_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "cancel_rounds", lambda row: 0)
    monkeypatch.setattr(operations, "cancel_rounds_together", lambda rows, database: None)


class Unproven:
    """Stands in for a proof, and asks nothing."""

    def local(self, timeout: float | None) -> tuple[()]:
        return ()

    def recorded(self, row: ProcessedMessage) -> None:
        pass

    def refuse_other(self) -> None:
        pass


def do_not_prove_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def unproven(database: str, *arguments: object, mode: str) -> Iterator[Unproven]:
        with transaction_mode(connections[database], mode), transaction.atomic(using=database, durable=True):
            yield Unproven()

    monkeypatch.setattr(attempting, "proven_commit", unproven)


def mark_whatever_was_said_since(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_epoch(self: PublishedMessageQuerySet, rows: Any) -> In:
        return In(outbox._Sending("id", "message_id"), [f"{row.id} {row.message_id}" for row in rows])

    monkeypatch.setattr(PublishedMessageQuerySet, "_as_sent", without_epoch)


def mark_rounds_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "new_epoch", lambda: 0)


def release_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_everywhere", lambda *arguments: None)


def do_not_recognise_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "run", property(lambda self: uuid.uuid4()))


def do_not_replay_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(row: ProcessedMessage) -> PublishedMessage | None:
        under_way = rounds.unsent_rounds(row).filter(round=row.round).exists()
        return None if under_way or not rounds.is_awaited(row) else rounds.add_round(row, Now())

    monkeypatch.setattr(operations, "send_round_again", again)


def take_an_earlier_round_for_this(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(row: ProcessedMessage) -> PublishedMessage | None:
        held = rounds.unsent_rounds(row).filter(lease_token__isnull=False)
        if rounds.unsent_rounds(row).exists():
            held.update(epoch=F("epoch") + 1, due_at=Now(), lease_owner="", lease_token=None)
            return None
        return rounds.add_round(row, Now()) if rounds.is_awaited(row) else None

    monkeypatch.setattr(operations, "send_round_again", again)


def leave_the_message_of_a_failed_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(self: PublishedMessage) -> bool:
        return self.inbox_id is None or self.incoming().filter(state__in=ProcessedMessage.AWAITING).exists()

    monkeypatch.setattr(PublishedMessage, "fail_round", told)


def ask_one_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Elsewhere, "others", lambda self, database: ())


def do_not_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Elsewhere, "retire", lambda self, rows, database: None)


def delete_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "deletable", lambda rows: rows)


MUTANTS: list[tuple[Patch, str]] = [
    (acknowledge_first, "one message"),
    (mark_by_number, "purge"),
    (do_not_check_claims, "not atomic"),
    (do_not_fence, "one message"),
    (adopt_anything, "no id, not atomic"),
    (sweep_what_comes_again, "no id"),
    (count_all_that_is_abandoned, "not atomic"),
    (fail_without_a_retry, "one message"),
    (replay_the_first_round_alone, "purge"),
    (leave_phantoms, "no id"),
    (refuse_what_is_processing, "operators"),
    (do_not_cancel_rounds, "operators"),
    (do_not_prove_commits, "one message"),
    (mark_whatever_was_said_since, "replay"),
    (mark_rounds_alike, "failover with late marks"),
    (release_nothing, "stop, not atomic"),
    (do_not_recognise_reports, "not atomic"),
    (do_not_replay_what_is_under_way, "replay"),
    (take_an_earlier_round_for_this, "replay of later rounds"),
    (leave_the_message_of_a_failed_round, "unroutable"),
    (ask_one_database, "two databases"),
    (do_not_retire, "two databases"),
    (delete_what_is_needed, "retention"),
]


@pytest.mark.parametrize(("patch", "world"), MUTANTS, ids=[patch.__name__ for patch, _ in MUTANTS])
def test_a_rule_that_is_broken_in_the_code_is_noticed(
    monkeypatch: pytest.MonkeyPatch, patch: Patch, world: str
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("what one database shows needs no other, which takes other ways through the model")
    for seed in range(WALKS):
        with monkeypatch.context() as broken:
            patch(broken)
            is_noticed = _differs(NAMED[world], seed)
        if is_noticed:
            walk(NAMED[world], seed)  # the code as it is agrees with the model on this very way
            return
    pytest.fail(f"{WALKS} ways through the model notice nothing.")


def _differs(world: Configuration, seed: int) -> bool:
    try:
        walk(world, seed)
    except AssertionError:
        return True
    return False


__all__ = ["_stepped"]  # a fixture for this module too
