"""Two relays and two consumers, one of them killed again and again: every effect exactly once.

`MESSAGES=10000` runs the long form.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

import pytest

from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

HANDLERS = """
from messaging import handler
from tests.app.models import Effect

@handler("counted", "counted.*", backoff=0.1, max_attempts=50)
def count(message):
    Effect.objects.create(key=message.id, value=str(message.payload["number"]))
"""

PUBLISH = """
from messaging import Message, publish_many
for start in range(0, {count}, 500):
    publish_many([
        Message("counted.one", {{"number": number, "filling": "x" * 1000}})
        for number in range(start, min(start + 500, {count}))
    ])
"""

COUNT = int(os.environ.get("MESSAGES", "2000"))


ON_POSTGRES = [pytest.mark.broker, pytest.mark.postgres]


@pytest.mark.parametrize(
    ("db", "broker", "count"),
    [
        pytest.param("postgres", None, COUNT // 2, marks=ON_POSTGRES, id="rabbitmq"),
        pytest.param("sqlite", "database://", COUNT // 4, id="embedded-sqlite"),
        pytest.param("postgres", None, COUNT, marks=[*ON_POSTGRES, pytest.mark.slow], id="rabbitmq-more"),
        pytest.param("postgres", "database://", COUNT, marks=[*ON_POSTGRES, pytest.mark.slow], id="embedded-postgres"),
        pytest.param("mariadb", None, COUNT, marks=[pytest.mark.broker, pytest.mark.slow], id="rabbitmq-mariadb"),
        pytest.param("mariadb", "database://", COUNT, marks=pytest.mark.slow, id="embedded-mariadb"),
    ],
)
def test_every_effect_happens_exactly_once_while_processes_are_killed(
    site: SiteFactory, db: str, broker: str | None, count: int
) -> None:
    made = site(db, handlers=HANDLERS, options={"LEASE": 3, "STOP_TIMEOUT": 120}, broker=broker)
    made.manage("topology")
    commands = [("relay",), ("relay",), ("consume", "--no-relay"), ("consume", "--no-relay")]
    running = [made.start(*command) for command in commands]
    made.run(PUBLISH.format(count=count))
    kills = chaos(made, running, commands, count)
    assert made.states("published").get("published", 0) >= count
    assert set(made.states("published")) == {"published"}
    assert made.states() == {"processed": count}
    assert made.value("SELECT COUNT(*) FROM app_effect") == count
    assert made.value('SELECT COUNT(DISTINCT "key") FROM app_effect') == count
    assert kills >= 3
    for process in running:
        assert process.stop() in (0, -signal.SIGTERM)  # one that was started just now cannot end in order yet


def chaos(site: Site, running: list[Running], commands: list[tuple[str, ...]], count: int) -> int:
    """Kill one process group after the other, until all is processed; returns how many were killed.

    Between two kills something has to be done: on a busy machine a process needs longer to start than the pace allows.
    """
    chance = random.Random(17)
    for kills in itertools.count():
        before = progress(site, count)
        if before is None and kills >= 3:
            return kills
        victim = chance.randrange(len(running))
        running[victim].kill()
        running[victim] = site.start(*commands[victim])
        time.sleep(1)  # the pace of the killing, not a wait for anything

        def has_moved(before: dict[str, int] | None = before) -> bool:
            return before is None or progress(site, count) != before

        wait_until(has_moved, deadline=240, what=f"progress after {kills} kills")
    raise AssertionError


def progress(site: Site, count: int) -> dict[str, int] | None:
    """How many messages are in each state of outbox and inbox; None once all are processed."""
    outgoing, incoming = site.states("published"), site.states()
    is_over = incoming == {"processed": count} and set(outgoing) == {"published"}
    return None if is_over else {**{f"outgoing {state}": n for state, n in outgoing.items()}, **incoming}
