"""Handlers that run for hours, and the broker's patience: its consumer timeout, and the lease of who runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from tests.failures.deeds import HANDLERS, attempts, consume, effects, publish, settled, started, starts
from tests.services import Broker
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker

ON_SQLITE_TOO = ["postgres", pytest.param("sqlite", marks=pytest.mark.slow)]
PATIENCE = 25_000  # milliseconds: the consumer timeout, which the handlers outlast and no acknowledgement does
TICK = 500  # milliseconds between two looks at it, instead of a minute

# Claims that hold for a minute, whatever stands still meanwhile, but are renewed and looked after as brief ones are.
OFTEN = """
from messaging.consuming import housekeeping
from messaging.db.connections import Outages
chores, tell = housekeeping.claims_chores, Outages.leases_tell
housekeeping.claims_chores = lambda *where: {what: (0.7, act) for what, (_, act) in chores(*where).items()}
Outages.leases_tell = lambda self, database, lease: tell(self, database, 2)
"""
LAPSE = """
import os
from datetime import timedelta
from django.db import transaction
from messaging.db.clock import Now
from messaging.models import ProcessedMessage
from tests.processes import states_of_group
from tests.waiting import wait_until
with transaction.atomic():
    ProcessedMessage.objects.update(leased_until=Now() + timedelta(minutes=1))  # from now on nobody else writes to it
    os.killpg({group}, {number})
    wait_until(lambda: all(state == "T" for state in states_of_group({group})), what="the holder's end, or halt")
    ProcessedMessage.objects.update(leased_until=Now() + timedelta(seconds=1))
"""


@pytest.fixture
def impatient(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a broker whose consumers must acknowledge within `PATIENCE`.

    A newer one takes the timeout as an argument of the queue, and looks once a minute; an older one has a single
    timeout for all of its queues, and may be told to look more often.
    """
    shared: Broker = request.getfixturevalue("rabbitmq")
    if version(shared.url) >= (3, 12):
        name = f"impatient-{os.getpid()}"
        yield shared.add_vhost(name)
        shared.delete_vhost(name)
        return
    own: RabbitMQ = request.getfixturevalue("own_rabbitmq")
    wanted = {"consumer_timeout": PATIENCE, "channel_tick_interval": TICK}
    before = {name: own.ctl("eval", f"{{ok, V}} = application:get_env(rabbit, {name}), V.") for name in wanted}
    for name, value in wanted.items():
        own.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    yield own.url
    for name, text in before.items():
        own.ctl("eval", f"application:set_env(rabbit, {name}, {text.strip()}).")


def version(url: str) -> tuple[int, ...]:
    """Of a broker."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        properties: dict[str, Any] = connection._impl.server_properties
    return tuple(int(part) for part in properties["version"].split(".")[:2])


@pytest.mark.mode(27)
@pytest.mark.parametrize("db", ON_SQLITE_TOO)
@pytest.mark.slow
def test_a_handler_that_outlasts_the_consumer_timeout_has_one_effect(
    site: SiteFactory, impatient: str, db: str
) -> None:
    arguments = {"arguments": {"x-consumer-timeout": PATIENCE}}
    doing = site(db, handlers=HANDLERS, broker=impatient, queues={"work": arguments, "long": arguments})
    running = consume(doing, "work", "long")
    publish(doing, ("work.a", "wait"), ("long.a", "wait"), ("work.a", "nothing"))
    started(doing, "wait", 2)
    running.wait_for_output(r"PRECONDITION_FAILED|longer than its consumer timeout")
    running.wait_for_output(r"Connected to .* again")
    (doing.folder / "go").touch()
    settled(doing, processed=3)
    assert effects(doing) == {"wait": 2, "nothing": 1}
    assert attempts(doing) == {}
    assert 'queue "long"' not in running.output, "it was acknowledged when its claim was durable"
    assert running.stop() == 0
    doing.manage("consume", "work", "long", "--burst")
    assert doing.states() == {"processed": 3}


@pytest.mark.mode(20)
@pytest.mark.parametrize("end", ["killed", pytest.param("frozen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("db", ON_SQLITE_TOO)
def test_the_claim_of_a_long_handler_is_renewed_expires_and_is_taken_over_once(
    site: SiteFactory, db: str, end: str
) -> None:
    doing = site(db, handlers=OFTEN + HANDLERS, options={"LEASE": 60})
    consumers = [consume(doing, "long") for _ in range(3)]
    publish(doing, ("long.a", "wait"))
    started(doing, "wait")
    leases = {lease_of(doing)}
    wait_until(lambda: leases.add(lease_of(doing)) or len(leases) > 4, what="several renewals")
    assert len(starts(doing, "wait")) == 1, "a claim that is renewed is nobody else's"

    holder = next(one for one in consumers if os.getpgid(starts(doing, "wait")[0][1]) == one.pid)
    doing.run(LAPSE.format(group=holder.pid, number=int(signal.SIGKILL if end == "killed" else signal.SIGSTOP)))
    started(doing, "wait", 2)
    leases = {lease_of(doing)}
    wait_until(lambda: leases.add(lease_of(doing)) or len(leases) > 2, what="renewals by its successor")
    if end == "frozen":
        os.killpg(holder.pid, signal.SIGCONT)
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert end_all(consumers, without=holder if end == "killed" else None) == {0}
    assert len(starts(doing, "wait")) == 2
    assert attempts(doing) == {"wait-0": 1}
    assert doing.states() == {"processed": 1}
    assert doing.value("SELECT attempts FROM messaging_processedmessage") == 2


def lease_of(site: Site) -> str:
    """Until when the one claim holds."""
    return str(site.value("SELECT leased_until FROM messaging_processedmessage"))


def end_all(consumers: list[Running], *, without: Running | None) -> set[int]:
    """Stop consumers in order; returns their exit statuses."""
    return {one.stop() for one in consumers if one is not without}
