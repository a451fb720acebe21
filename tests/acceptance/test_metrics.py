"""Metrics of a whole site: what its processes serve together is what the tables hold, a death in between included."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from messaging.metrics import names
from tests.docs.test_deploy_files import parsed, problems_of, queries
from tests.metrics.scraping import Scrape
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.services import free_ports

TOKEN = "s3cret"
QUIET = (names.RETURNED, names.UNSENDABLE, names.INTERRUPTED, names.PAUSED)  # which have nothing to say here
HANDLERS = """
import os, signal
from messaging import Reject, handler
from tests.app.models import Effect

@handler("orders", "work.order", max_attempts=2, backoff=0.1)
def bill(message):
    number = int(message.payload)
    Effect.objects.create(key=message.id, value=str(os.getpid()))
    if number % 10 == 3:
        raise Reject("no")
    if number % 10 == 7 and message.attempt == 1:
        raise ValueError("not yet")

@handler("hanging", "hang")
def hang(message):
    if os.path.exists(os.environ["HANGING"]):
        return  # it comes again
    with open(os.environ["HANGING"], "w") as file:
        file.write(str(os.getpid()))
    signal.pause()
"""


BROKERS = [
    pytest.param("sqlite", "database://", id="embedded-sqlite"),
    pytest.param("postgres", None, marks=[pytest.mark.broker, pytest.mark.postgres], id="rabbitmq-postgres"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("db", "broker"), BROKERS)
def test_the_sums_of_all_processes_are_what_the_tables_hold(
    site: SiteFactory, request: pytest.FixtureRequest, db: str, broker: str | None
) -> None:
    own = site(db, handlers=HANDLERS, broker=broker, options={"LEASE": 2}, env={"METRICS_TOKEN": TOKEN})
    if broker is None:  # RabbitMQ, whose management API alone knows what is unacknowledged
        own.env["MESSAGING_MANAGEMENT_URL"] = request.getfixturevalue("management_url")
    own.env["HANGING"] = str(own.folder / "hanging")
    own.manage("topology")
    ports = free_ports(3)
    consumers = [
        own.start("consume", "--no-relay", "--processes=2", "--concurrency=1", f"--metrics-port={port}")
        for port in ports[:2]
    ]
    own.start("relay", f"--metrics-port={ports[2]}")
    web = own.serve()
    urls = [f"http://127.0.0.1:{port}/metrics" for port in ports]
    for running in consumers:
        running.wait_for_output("Metrics are served at")
    order(web, range(40))
    wait_until(lambda: settled(own), deadline=240, what="the first forty")
    kill_a_child_that_hangs(own, consumers)
    order(web, range(40, 80))
    wait_until(lambda: settled(own), deadline=240, what="the others")

    def read() -> list[Scrape]:
        return [*(Scrape.of(url) for url in urls), Scrape.of(f"{web}/messaging/metrics/", TOKEN)]

    def total(scrapes: list[Scrape]) -> dict[str, float]:
        return {family.name: sum(one.sum(family.sample) for one in scrapes) for family in names.COUNTED[:7]}

    rows = told_by(own)
    wait_until(lambda: total(read()) == rows, what=f"{rows}; {[total([one]) for one in read()]}")
    scrapes = read()
    processed = rows[names.PROCESSED.name]
    for family in (names.DURATION, names.CRITICAL):
        assert sum(one.sum(f"{family.name}_count") for one in scrapes) == processed
    assert sum(one.sum(names.DEATHS.sample) for one in scrapes) == 1
    assert [one.sum(names.PROCESSES.sample) for one in scrapes[:2]] == [2, 2]
    assert scrapes[3].value(names.WORKERS.sample, alias="default", kind="consume") >= 4
    assert scrapes[3].value(names.DUE.sample, alias="default") == 0
    wait_until(lambda: Scrape.of(urls[2]).sum(names.WORKERS.sample, kind="relay") == 1, what="the relay's own look")
    wait_until(lambda: not unanswered(read()), what="an answer to each query")  # depths are told after a while
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Scrape.of(f"{web}/messaging/metrics/")


def unanswered(scrapes: list[Scrape]) -> list[str]:
    """What the queries of the dashboard and of the alarms ask for, and nobody serves."""
    served = {family.sample: set(family.labels) for family in QUIET}
    for one in scrapes:
        for name, labels in one.labels.items():
            served.setdefault(name, set()).update(labels)
    return [f"{title}: {problem}" for title, query in queries() for problem in problems_of(parsed(query), served)]


def order(web: str, numbers: range) -> None:
    """Publish from the web process."""
    for number in numbers:
        with urllib.request.urlopen(f"{web}/order/?number={number}", timeout=60) as answer:
            answer.read()


def settled(site: Site) -> bool:
    """Whether nothing is under way."""
    pending = site.value("SELECT COUNT(*) FROM messaging_publishedmessage WHERE state = 'pending'")
    sent = site.value("SELECT COUNT(*) FROM messaging_publishedmessage WHERE inbox_id IS NULL")
    ended = site.value("SELECT COUNT(*) FROM messaging_processedmessage WHERE state IN ('processed', 'failed')")
    return not pending and sent == ended


def kill_a_child_that_hangs(site: Site, consumers: list[Running]) -> None:
    """One that runs a handler and nothing else; its counts of before are to stay."""
    site.shell("from messaging import publish; publish('hang', 1)")
    hanging = site.folder / "hanging"
    pid = wait_until(lambda: hanging.exists() and hanging.read_text(), what="the handler")
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: sum(one.output.count("was killed by signal 9") for one in consumers) == 1, what="the death")


def told_by(site: Site) -> dict[str, float]:
    """What the tables say of each counter."""
    rows: Callable[[str], int] = lambda where: site.value(f"SELECT COUNT(*) FROM messaging_{where}")  # noqa: E731
    return {
        # One was published by a process that serves nothing.
        names.PUBLISHED.name: rows("publishedmessage WHERE inbox_id IS NULL") - 1,
        names.RELAYED.name: rows("publishedmessage WHERE state = 'published'"),
        names.RETURNED.name: 0,
        names.UNSENDABLE.name: rows("publishedmessage WHERE state = 'failed'"),
        names.PROCESSED.name: rows("processedmessage WHERE state = 'processed'"),
        names.RETRIED.name: rows("publishedmessage WHERE inbox_id IS NOT NULL"),
        names.FAILED.name: rows("processedmessage WHERE state = 'failed'"),
    }
