"""A stop costs no attempt, however it ends; and each database's claims are seen to by themselves: real processes."""

from __future__ import annotations

import signal
import time

import pytest

from tests.failures.deeds import HANDLERS, attempts, consume, effects, publish, settled, started, starts
from tests.services import Database
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.postgresql import PostgreSQL
from tools.proxy import before

pytestmark = pytest.mark.broker

LONG = 40  # seconds of a lease that does not lapse where a process stands still for a while
CLAIM = "FROM messaging_processedmessage WHERE state = 'processing'"


def hand_over_in_peace(site: Site) -> None:
    """Give what is stopped all the time that it may need to hand over what it runs."""
    (site.folder / "sitecustomize.py").write_text(
        "from messaging.supervising import child\nchild.RELEASE_TIME = 120.0\n"
    )


def run_as_redelivered(site: Site, queue: str) -> Running:
    """A consumer that runs, under a claim, what another one had when it was killed; returns it once it does."""
    publish(site, (f"{queue}.a", "wait"))
    if queue == "work":  # an atomic handler's first run has no claim
        first = consume(site, queue)
        started(site, "wait")
        first.kill()
    running = consume(site, queue)
    started(site, "wait", 2 if queue == "work" else 1)
    return running


def count_of(site: Site) -> int:
    """Attempts that the one message has had, by its row."""
    return int(site.value("SELECT attempts FROM messaging_processedmessage"))


@pytest.mark.mode(46)
@pytest.mark.parametrize("queue", ["long", pytest.param("work", marks=pytest.mark.slow)])
def test_what_runs_at_the_deadline_is_handed_over_to_another_consumer_at_once(site: SiteFactory, queue: str) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"LEASE": 600, "STOP_TIMEOUT": 1})
    hand_over_in_peace(doing)
    running = run_as_redelivered(doing, queue)
    before = len(starts(doing, "wait"))
    other = consume(doing, queue)
    assert running.stop() == 1
    started(doing, "wait", before + 1)
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing), effects(doing)) == ({}, 1, {"wait": 1})
    assert other.stop() == 0


@pytest.mark.mode(46)
@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.slow
def test_deploys_cost_a_long_handler_no_attempt(site: SiteFactory, any_db: str, signals: int) -> None:
    doing = site(any_db, handlers=HANDLERS, options={"LEASE": 3, "STOP_TIMEOUT": 1 if signals == 1 else 60})
    hand_over_in_peace(doing)
    publish(doing, ("long.a", "wait"))
    for deploy in range(1, 5):  # more than it may have attempts
        running = consume(doing, "long")
        started(doing, "wait", deploy)
        running.signal(signal.SIGTERM)
        if signals == 2:
            running.wait_for_output("Stopping: what runs may finish")
            running.signal(signal.SIGTERM)
        assert running.wait() == 1
    (doing.folder / "go").touch()
    doing.manage("consume", "long", "--burst")
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing), effects(doing)) == ({}, 1, {"wait": 1})
    told = "SELECT COUNT(*) FROM messaging_auditrecord WHERE reason = 'Interrupted by a stop of its worker.'"
    assert doing.value(told) == 4, "its timeline tells of each"


@pytest.mark.mode(46)
@pytest.mark.parametrize("queue", ["long", "work"])
@pytest.mark.slow
def test_a_container_that_is_killed_after_its_stop_signal_costs_no_attempt(site: SiteFactory, queue: str) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"LEASE": 3, "STOP_TIMEOUT": 60})
    running = run_as_redelivered(doing, queue)
    running.signal(signal.SIGTERM)
    wait_until(lambda: is_marked(doing), what="the mark")
    running.kill()
    again = consume(doing, queue)
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing), effects(doing)) == ({}, 1, {"wait": 1})
    assert again.stop() == 0


def is_marked(site: Site) -> bool:
    """Whether the claim says that it was interrupted, or its worker that it is stopping: a handler may lock the row."""
    return bool(
        site.value(f"SELECT COUNT(*) {CLAIM} AND interrupted")
        or site.value("SELECT COUNT(*) FROM messaging_worker WHERE status = 'stopping' AND kind = 'consume'")
    )


@pytest.mark.mode(46)
def test_a_stop_while_the_database_is_away_is_marked_when_it_is_back(
    site: SiteFactory, own_postgres: PostgreSQL
) -> None:
    server = Database(own_postgres.dsn)
    doing = site("postgres", handlers=HANDLERS, server=server, options={"LEASE": 3, "STOP_TIMEOUT": 60})
    publish(doing, ("long.a", "wait"))
    running = consume(doing, "long")
    started(doing, "wait")
    own_postgres.stop()
    running.signal(signal.SIGTERM)
    running.wait_for_output("Cannot mark the claims in the database")
    own_postgres.start()
    wait_until(lambda: doing.value(f"SELECT COUNT(*) {CLAIM} AND interrupted") == 1, what="the mark")
    running.kill()
    again = consume(doing, "long")
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing)) == ({}, 1)
    assert again.stop() == 0


@pytest.mark.mode(46)
@pytest.mark.slow
def test_a_worker_that_was_stopped_in_an_outage_costs_no_attempt_where_another_one_saw_it(
    site: SiteFactory, own_postgres: PostgreSQL
) -> None:
    server = Database(own_postgres.dsn)
    doing = site("postgres", handlers=HANDLERS, server=server, options={"LEASE": LONG, "STOP_TIMEOUT": 60})
    running = consume(doing, "long")
    publish(doing, ("long.a", "wait"))
    started(doing, "wait")
    survivor = consume(doing, "long")
    survivor.wait_for_output("Connected to")
    own_postgres.stop()
    for one in (running, survivor):
        one.wait_for_output("consumption pauses")
    running.signal(signal.SIGTERM)
    running.wait_for_output("Cannot mark the claims in the database")
    running.kill()
    own_postgres.start()
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing), len(starts(doing, "wait"))) == ({}, 1, 2)
    assert survivor.stop() == 0


@pytest.mark.mode(46)
@pytest.mark.slow
def test_all_workers_that_are_replaced_in_an_outage_cost_no_attempt(
    site: SiteFactory, own_postgres: PostgreSQL
) -> None:
    server, lease = Database(own_postgres.dsn), 3
    doing = site("postgres", handlers=HANDLERS, server=server, options={"LEASE": lease, "STOP_TIMEOUT": 60})
    running = consume(doing, "long")
    publish(doing, ("long.a", "wait"))
    started(doing, "wait")
    own_postgres.stop()
    running.wait_for_output("consumption pauses")
    running.signal(signal.SIGTERM)
    running.wait_for_output("Cannot mark the claims in the database")
    running.kill()
    time.sleep(lease)  # its claim runs out before another process begins
    replaced = consume(doing, "long")
    replaced.wait_for_output("cannot be used")
    own_postgres.start()
    (doing.folder / "go").touch()
    settled(doing, processed=1)
    assert (attempts(doing), count_of(doing), len(starts(doing, "wait"))) == ({}, 1, 2)
    assert replaced.stop() == 0


TWO_DATABASES = """
import os
from urllib.parse import urlsplit
from tests.site_settings import *
other = urlsplit(os.environ["OTHER_URL"])
DATABASES["other"] = DATABASES["default"] | {
    "HOST": other.hostname, "PORT": other.port, "USER": other.username, "PASSWORD": other.password or "",
    "NAME": other.path[1:],
}
"""
ELSEWHERE = """
@handler("elsewhere", "elsewhere.#", atomic=False, database="other")
def elsewhere(message):
    act_only(message)

@handler("near", "near.#", atomic=False)
def near(message):
    act_only(message)

def act_only(message):
    do = message.payload["do"]
    with (FOLDER / f"started-{do}").open("a") as file:
        file.write(f"{time.monotonic()} {os.getpid()}\\n")
    DEEDS["wait"]()
"""


@pytest.mark.mode(47)
@pytest.mark.slow
def test_a_database_that_hangs_keeps_no_other_ones_claims_from_being_renewed(site: SiteFactory) -> None:
    far = site("postgres")
    with before(far.database_url, 5432) as (proxy, address):
        doing = site(
            "postgres",
            handlers=HANDLERS + ELSEWHERE,
            options={"LEASE": LONG, "DATABASES": ["default", "other"]},
            env={"OTHER_URL": far.database_url},
        )
        (doing.folder / "two.py").write_text(TWO_DATABASES)
        doing.env["DJANGO_SETTINGS_MODULE"] = "two"
        first = site_consume(doing, address, "near", "elsewhere")
        publish(doing, ("near.a", "near"), ("elsewhere.a", "elsewhere"))
        started(doing, "near")
        started(doing, "elsewhere")
        second = consume(doing, "near")
        proxy.blackhole()
        first.wait_for_output(
            r'Message elsewhere-1 of the queue elsewhere: the claim in the database "other" cannot be renewed'
        )
        wait_until(
            lambda: doing.value(
                "SELECT COUNT(*) FROM messaging_worker WHERE status LIKE 'cannot renew its claims in%'"
            ),
            what="its status",
        )
        leases: set[object] = set()

        def is_renewed() -> bool:
            leases.add(doing.value(f"SELECT leased_until {CLAIM}"))
            return len(leases) > 2

        wait_until(is_renewed, what="renewals in the healthy database")
        assert first.output.count("cannot be renewed") == 1
        assert "near:" not in first.output
        (doing.folder / "go").touch()
        settled(doing, processed=1)
        assert (len(starts(doing, "near")), attempts(doing)) == (1, {})
        proxy.heal()
        proxy.cut()
        first.wait_for_output('No claim in the database "other" is about to lapse any more')
        settled(far, processed=1)
        assert (first.stop(), second.stop()) == (0, 0)


def site_consume(site: Site, address: str, *queues: str) -> Running:
    """A consumer that reaches the other database at an address of its own."""
    running = site.start("consume", *queues, env={"OTHER_URL": address})
    running.wait_for_output(r"Connected to")
    return running
