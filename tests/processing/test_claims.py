"""Claims: made before a handler runs, renewed while it does, and swept when their holder is gone."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from django.db import connection, connections

from messaging.db.clock import Now
from messaging.exceptions import WireError
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from tests.app.models import Effect
from tests.deliveries import arrived, in_a_thread, sent
from tests.processing.tools import Handle, claim_of, entry_of, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def test_a_redelivered_message_is_claimed_before_it_runs(handle: Handle) -> None:
    seen: list[str] = []

    def look(message: ReceivedMessage) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT state FROM messaging_processedmessage")
            seen.append(cursor.fetchone()[0])

    handle(look).process(arrived(redelivered=True), nothing)
    assert seen in (["processing"], ["processed"])
    assert only_row().state == State.PROCESSED
    assert only_row().lease_token is None


def test_a_live_claim_owns_its_message(handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    ProcessedMessage.objects.create(**claim_of(delivery), leased_until=Now() + timedelta(seconds=60))
    assert processor.process(delivery, nothing).action == "ack"
    assert Effect.objects.count() == 0
    assert only_row().state == State.PROCESSING


def test_an_expired_claim_is_a_crash_and_counts(handle: Handle) -> None:
    processor, delivery = handle(), arrived(redelivered=True)
    ProcessedMessage.objects.create(**claim_of(delivery), leased_until=Now() - timedelta(seconds=60))
    processor.outages.up_since["default"] = -1e9
    assert processor.process(delivery, nothing).action == "ack"
    row = only_row()
    assert (row.state, row.attempts, row.round) == (State.RETRYING, 1, 2)
    assert row.attempt_set.get().crashed
    assert Effect.objects.count() == 0


def test_the_sweep_sends_abandoned_claims_round_again_once(handle: Handle) -> None:
    processor = handle()
    for _ in range(2):
        ProcessedMessage.objects.create(**claim_of(arrived()), leased_until=Now() - timedelta(seconds=1))
    assert processor.sweep() == 0, "the leases tell nothing before the database was up for a whole lease"
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 2
    assert processor.sweep() == 0
    assert PublishedMessage.objects.pending().count() == 2


def test_a_claim_that_ended_on_another_one_s_account_spends_no_attempt(handle: Handle) -> None:
    processor, delivery = handle(atomic=False), arrived()
    claim = claim_of(delivery)
    ProcessedMessage.objects.create(**claim, leased_until=Now() + timedelta(seconds=60))
    for token in (uuid.uuid4(), claim["lease_token"], claim["lease_token"]):
        processor.record_crash(entry_of(delivery, token=str(token)), None)
    assert (only_row().state, only_row().attempts, only_row().round) == (State.RETRYING, 0, 2)
    assert Attempt.objects.count() == 0
    processor.process(sent(next_round()), nothing)
    assert (only_row().state, only_row().attempts) == (State.PROCESSED, 1)


def test_renewing_claims_does_not_wait_for_a_handler_that_locks_its_row(handle: Handle) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(message: ReceivedMessage) -> None:
        entered.set()
        leave.wait(120)

    processor = handle(slow)
    runner = in_a_thread(lambda: processor.process(arrived(redelivered=True), nothing))
    assert entered.wait(60)
    renewer = in_a_thread(processor.renew_claims)
    renewer.join(60)
    held_up = renewer.is_alive()
    processor.outages.up_since["default"] = -1e9
    swept = processor.sweep()
    leave.set()
    runner.join()
    renewer.join()
    assert (held_up, swept, only_row().state) == (False, 0, State.PROCESSED)


def test_a_damaged_claim_does_not_keep_the_sweep_from_the_others(handle: Handle) -> None:
    processor = handle()
    for seconds, wire in ((9, b"\xff"), (1, None)):
        claim = claim_of(arrived())
        ProcessedMessage.objects.create(
            **{**claim, "wire": wire or claim["wire"]}, leased_until=Now() - timedelta(seconds=seconds)
        )
    processor.outages.up_since["default"] = -1e9
    with pytest.raises(WireError):
        processor.sweep()
    assert set(ProcessedMessage.objects.values_list("state", flat=True)) == {State.PROCESSING, State.RETRYING}


def test_a_claim_of_what_the_database_refuses_is_written_escaped(handle: Handle) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("provoked with PostgreSQL's own error")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.body LIKE '%ż%' THEN "
            "RAISE EXCEPTION 'no equivalent' USING ERRCODE = '22P05'; END IF; RETURN NEW; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON messaging_processedmessage FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    try:
        handle(atomic=False).process(arrived("żółw"), nothing)
        assert (only_row().state, only_row().raw_body.decode()) == (State.PROCESSED, "żółw")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse CASCADE")


def test_a_long_run_without_id_is_swept_because_it_was_acknowledged(handle: Handle) -> None:
    processor = handle(atomic=False)
    claim = {**claim_of(arrived()), "message_id": ""}
    ProcessedMessage.objects.create(**claim, leased_until=Now() - timedelta(seconds=1))
    processor.outages.up_since["default"] = -1e9
    assert processor.sweep() == 1
