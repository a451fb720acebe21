"""The whole road, walked once per broker: publish, process, fail, die, requeue, expire, and what finds no way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.site import Site, SiteFactory
from tests.waiting import wait_until

HANDLERS = """
import os
from messaging import Reject, handler, publish
from messaging.consuming import consumer
from tests.app.models import Effect

consumer.KEEP_CONSUMING = 120.0  # so long it waits for its first look at what is paused

def note(message, value):
    Effect.objects.create(key=message.id, value=value)

@handler("billing", "orders.placed", max_attempts=2, backoff=0.1)
def bill(message):
    note(message, "billed")
    publish("orders.billed", message.payload)
    if message.payload.get("fails") and not Effect.objects.filter(value="repaired").exists():
        raise ValueError("billing is down")

@handler("mails", "orders.billed")
def mail(message):
    note(message, "mailed")

@handler("fatal", "fatal.*", max_attempts=2, backoff=0.1)
def die(message):
    note(message, "died")
    os._exit(9)

@handler("strict", "strict.known", backoff=0.1)
def refuse(message):
    raise Reject("not wanted")

@handler("reports", "report.*", atomic=False)
async def report(message):
    await Effect.objects.acreate(key=message.id, value="reported")

@handler("slow", "slow.*")
def slow(message):
    note(message, "slow")

@handler("events", "event.#", batch=10)
def events(messages):
    for message in messages:
        note(message, "seen")
"""

PUBLISH = """
from django.db import transaction
from messaging import Message, publish, publish_many
with transaction.atomic():
    publish("orders.placed", {"order": 1})
    publish("orders.placed", {"order": 2, "fails": True})
    publish("strict.known", {})
    publish("unknown", {}, queue="strict")
    publish("report.daily", {})
    publish("slow.late", {}, expiration=0.05)
    publish("nobody.cares", {})
    publish_many([Message("event.seen", {"number": number}) for number in range(25)])
try:
    with transaction.atomic():
        publish("orders.placed", {"order": 3})
        raise RuntimeError
except RuntimeError:
    pass
"""

BROKERS = [
    pytest.param(("sqlite", "database://"), id="embedded-sqlite"),
    pytest.param(("postgres", "database://"), marks=[pytest.mark.postgres, pytest.mark.slow], id="embedded-postgres"),
    pytest.param(("sqlite", None), marks=[pytest.mark.broker, pytest.mark.slow], id="rabbitmq-sqlite"),
    pytest.param(("postgres", None), marks=[pytest.mark.broker, pytest.mark.postgres], id="rabbitmq-postgres"),
]


@pytest.fixture(params=BROKERS)
def road(request: pytest.FixtureRequest, site: SiteFactory) -> Site:
    """A site on each broker."""
    db, broker = request.param
    return site(db, handlers=HANDLERS, broker=broker, options={"LEASE": 2, "RETRY": {"max_attempts": 3}})


PAUSE = """
from messaging.operations import Operator, set_paused
set_paused("slow", True, Operator(name="tests"))
"""

REPAIR = 'from tests.app.models import Effect; Effect.objects.create(key="repair", value="repaired")'

# Queue, exception, attempts of what rests as failed. What never ran has no attempt.
FAILED = [
    ("billing", "ValueError", 2),
    ("slow", "messaging.exceptions.DeadLettered", 0),
    ("strict", "messaging.exceptions.HandlerNotFound", 3),
    ("strict", "messaging.exceptions.Reject", 1),
]
PROCESSED = {"billed": 1, "mailed": 1, "reported": 1, "seen": 25}


def failures(site: Site) -> list[tuple[str, str, int]]:
    rows = site.sql(
        "SELECT queue, exception_type, "
        "(SELECT COUNT(*) FROM messaging_attempt WHERE message_id = messaging_processedmessage.id) "
        "FROM messaging_processedmessage WHERE state = 'failed' ORDER BY queue, exception_type"
    )
    return [(queue, error, attempts) for queue, error, attempts in rows]


def wait_for(question: Callable[[Site], object], site: Site, answer: object) -> None:
    """Wait until a question about a site has this answer, and show the last one if it never does."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: question(site) == answer)
    assert question(site) == answer


def effects(site: Site) -> dict[str, int]:
    return dict(site.sql("SELECT value, COUNT(*) FROM app_effect GROUP BY value"))


def test_the_whole_road(road: Site) -> None:
    road.run(PAUSE)
    consumer = road.start("consume")
    consumer.wait_for_output("Connected to")
    road.run(PUBLISH)

    wait_for(failures, road, FAILED)
    wait_for(effects, road, PROCESSED)
    [(state, error)] = road.sql(
        "SELECT state, error FROM messaging_publishedmessage WHERE routing_key = 'nobody.cares'"
    )
    assert state == "pending"
    assert error.startswith("Unroutable")

    # Alone, because what ran beside it in the same process would be blamed as well.
    road.run('from messaging import publish; publish("fatal.one", {})')
    wait_for(failures, road, sorted([*FAILED, ("fatal", "messaging.exceptions.ProcessDied", 2)]))

    road.shell(REPAIR)
    road.manage("requeue_messages", "--queue", "billing")
    wait_for(Site.states, road, {"processed": 30, "failed": 4})
    assert effects(road) == {**PROCESSED, "billed": 2, "mailed": 2, "repaired": 1}
    assert road.value("SELECT round FROM messaging_processedmessage WHERE queue = 'billing' AND round > 1") == 3
    rolled_back = "SELECT COUNT(*) FROM messaging_publishedmessage WHERE body LIKE '%3}' AND exchange = 'messaging'"
    assert road.value(f"{rolled_back} AND routing_key = 'orders.placed'") == 0
    assert consumer.stop() == 0
