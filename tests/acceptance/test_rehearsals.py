"""Rehearsals in real processes: what they tell, how they end, and that nothing is run twice whoever is killed."""

from __future__ import annotations

import pytest

from tests.processes import is_alive
from tests.site import Site, SiteFactory
from tests.waiting import wait_until

HANDLERS = """
import os, time
from pathlib import Path
from django.core.mail import send_mail
from messaging import handler, publish
from messaging.operations import rehearsals
from tests.app.models import Effect

rehearsals.SQLITE_LIMIT = float(os.environ.get("LIMIT", rehearsals.SQLITE_LIMIT))
PLACE = Path(__file__).parent

@handler("stage", "stage.*", rehearse=True)
def play(message):
    print("what a handler prints is none of the answer")
    Effect.objects.create(key="a"); Effect.objects.create(key="b")
    publish("next.step", "x", queue="next")
    send_mail("s", "t", "from@example.com", ["to@example.com"])
    if message.routing_key == "stage.broken":
        raise ValueError("no such order")
    if message.routing_key == "stage.gone":
        os._exit(3)
    if message.routing_key == "stage.endless":
        with (PLACE / "runs").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        while True:
            time.sleep(0.05)
"""
ASK = """
import uuid
from messaging.models import ProcessedMessage
from messaging.operations import Operator, rehearsals
from messaging.wire.envelope import Envelope; from messaging.wire.properties import Properties
wire = Envelope("messaging", "{key}", Properties.build(message_id="m"), b"{{}}").to_wire()
row = ProcessedMessage.objects.create(state="failed", key=uuid.uuid4(), digest=uuid.uuid4(), queue="stage",
    routing_key="{key}", body="{{}}", wire=wire, message_id="m")
first, second = (rehearsals.ask(row, Operator(name="anna")).pk for _ in range(2))
assert first == second
print(row.pk)
"""
PATIENT = """
from messaging.operations import rehearsals
rehearsals.SQLITE_LIMIT = 3600
rehearsals.run_waiting("default", "patient")
"""
OUTCOME = "SELECT state, result, error FROM messaging_rehearsal ORDER BY id DESC LIMIT 1"


@pytest.fixture
def stage(site: SiteFactory) -> Site:
    return site("sqlite", handlers=HANDLERS, broker="database://", env={"LIMIT": "120"})


def ask(stage: Site, key: str) -> str:
    return stage.run(ASK.format(key=key)).strip()


def unchanged(stage: Site) -> None:
    assert stage.states() == {"failed": 1}
    assert stage.states("published") == {}
    assert stage.value("SELECT COUNT(*) FROM app_effect") == 0
    assert stage.value("SELECT COUNT(*) FROM messaging_attempt") == 0
    assert stage.value("SELECT MAX(round) FROM messaging_processedmessage") == 1


@pytest.mark.parametrize(
    ("key", "state", "told"),
    [
        ("stage.good", "succeeded", ""),
        ("stage.broken", "failed", "ValueError: no such order"),
        ("stage.gone", "died", "status 3"),
        ("stage.endless", "late", "longer than 5 s"),
    ],
)
def test_a_worker_runs_what_was_asked_for_and_stores_what_came_of_it(
    stage: Site, key: str, state: str, told: str
) -> None:
    if state == "late":
        del stage.env["LIMIT"]
    ask(stage, key)
    assert "1 rehearsal run" in stage.manage("run_operations").stdout
    [(found, result, error)] = stage.sql(OUTCOME)
    assert (found, told in error) == (state, True), error
    if state == "succeeded":
        assert '"rows": 2' in result
        assert '"messages": 1' in result
        assert '"mails": 1' in result
    unchanged(stage)
    assert "rehearsal" not in stage.manage("run_operations").stdout, "it is run once"
    assert stage.value("SELECT COUNT(*) FROM messaging_auditrecord WHERE action = 'rehearse'") == 1


def test_whose_worker_is_killed_ends_with_it_says_so_and_is_not_run_again(stage: Site) -> None:
    ask(stage, "stage.endless")
    worker = stage.start("shell", "-c", PATIENT)  # so that nothing else ends the process meanwhile
    found = wait_until(lambda: list(stage.folder.rglob("runs")), what="the handler's beginning")
    runs = found[0]
    wait_until(lambda: runs.read_text().endswith("\n"), what="its process id")
    worker.kill_process()
    pid = int(runs.read_text())
    wait_until(lambda: not is_alive(pid), what="the end of the rehearsal's process")
    assert stage.sql("SELECT state FROM messaging_rehearsal") == [("running",)]
    assert "rehearsal" not in stage.manage("run_operations").stdout, "its claim may live"
    stage.run("from messaging.models import Rehearsal; Rehearsal.objects.update(leased_until='2020-01-01T00:00Z')")
    assert "rehearsal" not in stage.manage("run_operations").stdout
    [(state, _, error)] = stage.sql(OUTCOME)
    assert (state, "has died" in error) == ("died", True)
    assert len(runs.read_text().splitlines()) == 1
    unchanged(stage)


@pytest.mark.parametrize("command", ["consume", "relay"])
def test_a_consumer_or_a_relay_runs_it_by_itself(stage: Site, command: str) -> None:
    ask(stage, "stage.good")
    worker = stage.start(command)
    ended = "SELECT state FROM messaging_rehearsal WHERE ended_at IS NOT NULL"
    wait_until(lambda: stage.sql(ended), what="its end")
    assert stage.sql(ended) == [("succeeded",)]
    assert worker.stop() == 0
    unchanged(stage)


def test_from_a_terminal(stage: Site) -> None:
    row = ask(stage, "stage.good")
    assert "It would succeed: 2 rows, 1 messages, 1 mails" in stage.manage("rehearse_message", row).stdout
    unchanged(stage)
