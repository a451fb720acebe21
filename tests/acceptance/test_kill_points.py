"""Killed with SIGKILL between any two durable steps, a message is neither lost nor processed twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from messaging.killpoints import POINTS
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

HANDLERS = """
from messaging import handler, publish
from tests.app.models import Effect

@handler("steps", "steps.*", max_attempts=5, backoff=0.1)
def step(message):
    Effect.objects.create(key=message.id, value=message.routing_key)
    publish("next.step", message.id)
    if message.routing_key == "steps.flaky" and message.attempt == 1:
        raise ValueError("the first attempt fails")

@handler("next", "next.*")
def after(message):
    Effect.objects.create(key=message.causation_id, value="next")

@handler("long", "long.*", atomic=False, max_attempts=5, backoff=0.1)
def long(message):
    Effect.objects.get_or_create(key=message.id, value=message.routing_key)

@handler("doomed", "doomed.*", max_attempts=1)
def doomed(message):
    Effect.objects.create(key=message.id, value=message.routing_key)
    if Effect.objects.filter(value="cure").count() == 0:
        raise ValueError("until it is cured")
"""

PUBLISH = (
    'from django.db import transaction; from messaging import publish\nwith transaction.atomic(): publish("{}", "x")'
)

# Where a kill point is passed: which process is killed, and by what kind of message.
CONSUMER = {
    "relay.leased": "steps.plain",
    "relay.sent": "steps.plain",
    "relay.confirmed": "steps.plain",
    "relay.marked": "steps.plain",
    "consumer.received": "steps.plain",
    "processor.claimed": "long.work",
    "processor.begun": "long.work",
    "processor.handled": "steps.plain",
    "processor.committed": "steps.plain",
    "processor.rolled_back": "steps.flaky",
    "processor.recorded": "steps.flaky",
    "consumer.acked": "steps.plain",
}
# Which rows of docs/reliability.md the kill at a point proves.
MODES = {
    "relay.sent": [3],
    "relay.confirmed": [3],
    "processor.handled": [20],
    "processor.committed": [21],
    "processor.recorded": [43],
}
EMBEDDED = {"embedded.taken": "steps.plain", "embedded.removed": "steps.plain"}
COMMANDS = {"publisher.saved", "publisher.committed", "operations.requeued", "operations.acted"}
TWO_DATABASES = {"processor.moved"}  # tests/processing/test_elsewhere.py


def test_every_kill_point_has_a_test() -> None:
    assert set(POINTS) == set(CONSUMER) | set(EMBEDDED) | COMMANDS | TWO_DATABASES


@pytest.fixture
def steps(site: SiteFactory, any_db: str) -> Site:
    return site(any_db, handlers=HANDLERS, options={"LEASE": 2})


@pytest.fixture(params=["sqlite", *(pytest.param(db, marks=pytest.mark.slow) for db in ("postgres", "mariadb"))])
def embedded(site: SiteFactory, request: pytest.FixtureRequest) -> Site:
    return site(request.param, handlers=HANDLERS, options={"LEASE": 2}, broker="database://")


def armed(site: Site, point: str) -> tuple[dict[str, str], Path]:
    marker = site.folder / "kill"
    marker.touch()
    return {"MESSAGING_KILL_AT": point, "MESSAGING_KILL_FILE": str(marker)}, marker


def settle(site: Site, consumer: Running) -> None:
    """Wait until nothing is under way any more, then stop."""

    def is_settled() -> bool:
        return (
            set(site.states()) <= {"processed"}
            and set(site.states("published")) <= {"published"}
            and site.value("SELECT COUNT(*) FROM messaging_embeddedmessage") == 0  # second copies are consumed as well
        )

    wait_until(is_settled, what="every row published and processed, and the embedded queues empty")
    assert consumer.stop() == 0


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[pytest.mark.mode(mode) for mode in MODES.get(point, ())])
        for point in sorted(CONSUMER)
    ],
)
def test_killed_in_the_consumer_or_its_relay(steps: Site, point: str) -> None:
    kill_the_consumer(steps, point, CONSUMER[point])


@pytest.mark.parametrize(
    "point",  # what the consumer's own steps leave behind is told on RabbitMQ; here, what this broker does of them
    [
        pytest.param(point, marks=[] if point in ("processor.committed", *EMBEDDED) else [pytest.mark.slow])
        for point in sorted(CONSUMER | EMBEDDED)
    ],
)
def test_killed_in_the_consumer_or_its_relay_on_the_embedded_broker(embedded: Site, point: str) -> None:
    kill_the_consumer(embedded, point, (CONSUMER | EMBEDDED)[point])
    assert embedded.value("SELECT COUNT(*) FROM messaging_embeddedmessage") == 0


def kill_the_consumer(steps: Site, point: str, routing_key: str) -> None:
    """Have the consumer killed where it passes `point`, and see that the message is processed once all the same."""
    env, marker = armed(steps, point)
    consumer = steps.start("consume", "--concurrency", "1", env=env)
    consumer.wait_for_output("Consuming")
    steps.run(PUBLISH.format(routing_key))
    wait_until(lambda: not marker.exists(), what=f"{point} to be passed")
    followers = 1 if routing_key.startswith("steps") else 0
    wait_until(lambda: steps.states().get("processed") == 1 + followers, what="the messages to be processed")
    settle(steps, consumer)
    found = steps.sql("SELECT value, COUNT(*) FROM app_effect GROUP BY value ORDER BY value")
    assert found == [("next", 1), (routing_key, 1)][1 - followers :]
    assert steps.value("SELECT COUNT(DISTINCT message_id) FROM messaging_publishedmessage") == 1 + followers
    if routing_key == "steps.flaky":  # whether its process died before or after recording it
        assert steps.sql("SELECT number FROM messaging_attempt") == [(1,)]
    if point == "processor.claimed":
        assert steps.sql("SELECT number FROM messaging_attempt") == [], "its handler never began"
    if point == "processor.begun":
        assert steps.sql("SELECT number FROM messaging_attempt") == [(1,)], "its handler may have begun"


@pytest.mark.mode(1)
def test_killed_before_the_commit_nothing_was_published(steps: Site) -> None:
    env, marker = armed(steps, "publisher.saved")
    killed = steps.manage("shell", "-c", PUBLISH.format("steps.plain"), check=False, env=env)
    assert (killed.returncode, marker.exists()) == (-9, False)
    assert steps.states("published") == {}


@pytest.mark.mode(2)
def test_killed_after_the_commit_it_is_published_later(steps: Site) -> None:
    env, marker = armed(steps, "publisher.committed")
    killed = steps.manage("shell", "-c", PUBLISH.format("steps.plain"), check=False, env=env)
    assert (killed.returncode, marker.exists()) == (-9, False)
    assert steps.states("published") == {"pending": 1}
    consumer = steps.start("consume")
    wait_until(lambda: steps.states() == {"processed": 2}, what="both messages")
    settle(steps, consumer)


def test_killed_while_requeueing_nothing_is_half_done(steps: Site) -> None:
    consumer = steps.start("consume")
    steps.run(PUBLISH.format("doomed.work"))
    wait_until(lambda: steps.states() == {"failed": 1}, what="the failure")
    steps.run('from tests.app.models import Effect; Effect.objects.create(key="k", value="cure")')
    env, marker = armed(steps, "operations.requeued")
    killed = steps.manage("requeue_messages", "--queue", "doomed", check=False, env=env)
    assert (killed.returncode, marker.exists()) == (-9, False)
    assert steps.states() == {"failed": 1}
    assert steps.states("published") == {"published": 1}
    assert steps.value("SELECT COUNT(*) FROM messaging_auditrecord") == 0
    steps.manage("requeue_messages", "--queue", "doomed")
    wait_until(lambda: steps.states() == {"processed": 1}, what="the requeued message")
    settle(steps, consumer)
    assert steps.value("SELECT COUNT(*) FROM app_effect WHERE value = 'doomed.work'") == 1


EDIT = """
from messaging import operations; from messaging.models import ProcessedMessage
from messaging.operations.editing import Edit; rows = ProcessedMessage.objects.filter(state="failed")
operations.edit(rows, Edit("another", {}, (), rows.get().round), operations.Operator(name="script"))
"""


def test_killed_while_editing_there_is_no_copy_and_later_exactly_one(steps: Site) -> None:
    consumer = steps.start("consume")
    steps.run(PUBLISH.format("doomed.work"))
    wait_until(lambda: steps.states() == {"failed": 1}, what="the failure")
    steps.run('from tests.app.models import Effect; Effect.objects.create(key="k", value="cure")')
    env, marker = armed(steps, "operations.requeued")
    killed = steps.manage("shell", "-c", EDIT, check=False, env=env)
    assert (killed.returncode, marker.exists()) == (-9, False)
    assert steps.states() == {"failed": 1}
    assert steps.states("published") == {"published": 1}
    steps.manage("shell", "-c", EDIT)
    wait_until(lambda: steps.states() == {"superseded": 1, "processed": 1}, what="the copy")
    assert consumer.stop() == 0
    assert steps.value("SELECT COUNT(*) FROM app_effect WHERE value = 'doomed.work'") == 1
    assert steps.value("SELECT body FROM messaging_processedmessage WHERE state = 'processed'") == "another"


def test_killed_between_two_batches_an_operation_goes_on_and_does_nothing_twice(steps: Site) -> None:
    steps.run(
        "import uuid; from messaging.models import ProcessedMessage; "
        "from messaging.operations import Operator, stored; "
        "from messaging.wire.envelope import Envelope; from messaging.wire.properties import Properties; "
        "wire = Envelope('messaging', 'steps.plain', Properties.build(), b'{}').to_wire(); "
        "[ProcessedMessage.objects.create(state='failed', key=uuid.uuid4(), digest=uuid.uuid4(), queue='steps', "
        "routing_key='steps.plain', body='{}', wire=wire) for _ in range(3)]; "
        "stored.store(ProcessedMessage.objects.all(), 'discard', Operator(name='script'), rate=1)"
    )
    env, marker = armed(steps, "operations.acted")
    killed = steps.manage("run_operations", check=False, env=env)
    assert (killed.returncode, marker.exists()) == (-9, False)
    assert steps.states() == {"discarded": 1, "failed": 2}
    assert steps.sql("SELECT state, done FROM messaging_operation") == [("running", 1)]
    assert "0 operations" in steps.manage("run_operations").stdout, "its claim lives"
    steps.run("from messaging.models import Operation; Operation.objects.update(leased_until='2020-01-01T00:00Z')")
    steps.manage("run_operations")
    assert steps.states() == {"discarded": 3}
    assert steps.sql("SELECT state, done FROM messaging_operation") == [("done", 3)]
    assert steps.value("SELECT MAX(round) FROM messaging_processedmessage") == 2
