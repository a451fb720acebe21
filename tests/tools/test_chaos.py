"""The soak's own promises: its schedule replays, and its proof finds what it is there to find."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.site import Site, SiteFactory
from tools.chaos import proof, soak
from tools.chaos.schedule import BROKER, FAILOVER, KINDS, plan


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert plan("7", 600) == plan("7", 600)
    assert plan("7", 600) != plan("8", 600)


@pytest.mark.parametrize("seed", [str(number) for number in range(20)])
def test_ten_minutes_have_over_a_hundred_faults_of_every_kind(seed: str) -> None:
    faults = plan(seed, 600)
    assert len(faults) > 100
    assert {fault.kind for fault in faults} == set(KINDS)
    assert all(earlier.at <= later.at < 600 for earlier, later in pairwise(faults))


def test_a_short_run_strikes_in_every_lane() -> None:
    assert {fault.lane for fault in plan("7", 30)} == {kind.lane for kind in KINDS.values()}


def test_a_broker_that_is_not_ours_is_left_alone() -> None:
    kinds = [name for name, kind in KINDS.items() if kind.lane != BROKER]
    assert {fault.kind for fault in plan("7", 600, kinds)} == set(kinds)


def test_one_kind_of_fault_can_be_left_out() -> None:
    kinds = [name for name in KINDS if name != FAILOVER]
    assert {fault.kind for fault in plan("7", 600, kinds)} == set(kinds)


def test_what_strangers_sent_is_what_the_broker_has_confirmed() -> None:
    ledger = "a 0\na 1\na 1\nb 0\nc 0\nc 1"
    assert proof.strangers(ledger) == [("a", 2), ("b", 0), ("c", 1)]
    assert proof.strangers(ledger + "\nd") == [("a", 2), ("b", 0), ("c", 1), ("d", 0)]


def test_a_queue_that_rabbitmq_itself_has_broken_is_told_from_a_loss_of_ours() -> None:
    line = "2026-11-30 13:10:16.856678+00:00 [error] <0.477.0> ** State machine '%2F_{}' terminating"
    log = "\n".join([line.format("bulk"), "an error of something else terminating", line.format("bulk")])
    assert soak.crashed_queues(log) == {"bulk": 2}


LEDGER = """
from datetime import timedelta
from messaging.db.clock import Now
from messaging.models import Attempt, AuditRecord, ProcessedMessage
from tools.chaos.workload.models import Effect, Elsewhere, Expected, Forgotten, Meeting, Stranger
oversized = ("a.oversized", "b.oversized", "c.oversized")
for key in ("once", "never", "twice", "again", "there", "alone", "with its record", *oversized):
    Expected.objects.create(key=key, may_repeat=key in ("again", "alone"))
for key in ("once", "twice", "twice", "again", "again", "unasked", "sent", "republished", *oversized):
    Effect.objects.create(key=key)
Expected.objects.create(key="republished")
Effect.objects.create(key="republished")
Elsewhere.objects.create(key="there")
met = {"twins": (2, 2), "missed": (2, 1), "undone": (3, 1), "often": (1, 2), "unsure": (0, 1), "alone": (1, 0)}
for key, (confirmed, met) in met.items():
    Stranger.objects.create(key=key, confirmed=confirmed)
    Meeting.objects.bulk_create(Meeting(key=key) for _ in range(met))
for kind, key in ("expected", "sent"), ("published", "republished"):
    Forgotten.objects.create(kind=kind, key=key)
for key in "undone", "alone", "with its record":
    Forgotten.objects.create(kind="effect", key=key)
Forgotten.objects.bulk_create(Forgotten(kind="received", key="undone") for _ in range(2))
for queue, crashed in ("marathon", True), ("marathon", False), ("long", True):
    row = ProcessedMessage.objects.create(queue=queue, key=uuid.uuid4(), digest=uuid.uuid4(), state="processed")
    Attempt.objects.create(message=row, number=1, round=1, crashed=crashed)
ids = {"queue": "stranger-job", "key": uuid.uuid4(), "digest": uuid.uuid4()}
bereft = ProcessedMessage.objects.create(state="processing", **ids)
began = Now() - timedelta(seconds=9)
Attempt.objects.create(message=bereft, number=1, round=1, crashed=True, started_at=began)
ids = {"queue": "large", "key": uuid.uuid4(), "digest": uuid.uuid4(), "message_id": "a.oversized"}
ProcessedMessage.objects.create(state="failed", exception_type="messaging.exceptions.MessageTooLarge", **ids)
AuditRecord.objects.create(message_id="c.oversized", action="requeue", state_before="failed", state_after="requeued")
"""


@pytest.mark.postgres
def test_the_proof_finds_what_is_lost_doubled_or_was_rolled_back(site: SiteFactory) -> None:
    made = site("postgres", broker="database://", env={"EXTRA_APPS": "tools.chaos.workload"})
    made.manage("migrate", "--run-syncdb", "--verbosity=0")
    made.shell("import uuid" + LEDGER)
    assert set(keys(made, proof.LOST)) == {"never", "with its record"}
    assert keys(made, proof.STRANGERS_LOST) == ["missed"]
    assert keys(made, proof.DOUBLED) == ["twice"]
    assert set(keys(made, proof.UNASKED)) == {"unasked"}
    assert keys(made, proof.RERUN) == ["again"]
    assert list(proof.count(made.sql, proof.FLAWS).values()) == [2, 1, 1, 1, 1, 1]
    assert keys(made, proof.UNRESTED) == ["b.oversized"]
    assert not proof.is_rested(made.sql)
    assert proof.count(made.sql, proof.LEFT) == {"failed": 1, "still on its way": 1}
    assert list(proof.count(made.sql, proof.COSTS).values()) == [1, 3, 1, 1, 1, 1, 3, 0, 0]
    assert proof.count(made.sql, proof.LEFT, made.sql) == {"failed": 2, "still on its way": 2}
    assert not proof.is_settled(made.sql)
    within = "SELECT 'at', extract(epoch FROM ended_at - interval '5 s')::text FROM messaging_attempt"
    ours = "message_id = (SELECT id FROM messaging_processedmessage WHERE queue = 'stranger-job')"
    made.sql(f"INSERT INTO workload_forgotten (kind, key) {within} WHERE {ours}")
    assert proof.count(made.sql, proof.LEFT)["still on its way"] == 0
    assert proof.count(made.sql, proof.COSTS)["runs that died after their message and claim were forgotten"] == 1
    promoted = "SELECT 'at', extract(epoch FROM min(ended_at))::text FROM messaging_attempt"
    made.sql(f"INSERT INTO workload_forgotten (kind, key) {promoted}")
    assert proof.count(made.sql, proof.FLAWS)["attempts spent by a stop"] == 0
    assert proof.count(made.sql, proof.COSTS)["attempts spent by a stop that was forgotten"] == 1


def keys(made: Site, statement: str) -> list[str]:
    return [key for key, *_ in made.sql(statement)]
