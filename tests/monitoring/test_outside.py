"""What health and alerts say while processes die and hang, and brokers and databases are away. Real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.recipients import Recipient
from tests.site import ROOT, Site, SiteFactory
from tests.waiting import DEADLINE, wait_until
from tools.proxy import Proxy

HANDLERS = """
from messaging import handler

@handler("work", "work.#")
def work(message):
    pass
"""
LATE = """
from datetime import timedelta
from django.utils import timezone
from messaging import publish
from messaging.models import PublishedMessage
before = timezone.now() - timedelta(hours=1)
PublishedMessage.objects.filter(pk=publish("work.one", 1).pk).update(publish_at=before, due_at=before)
"""


def env(recipient: Recipient, folder: Path) -> dict[str, str]:
    told = {"webhooks": [recipient.url], "mail": ["ops@example.com"]}
    return {
        "MESSAGING_CONSOLE": json.dumps({"ALERTS": told}),
        "MESSAGING_STATE_DIR": str(folder / "state"),
        "MAIL_FOLDER": str(folder / "mail"),
    }


def test_killed_before_it_was_sent_the_next_sends_it_and_of_two_only_one(site: SiteFactory, tmp_path: Path) -> None:
    with Recipient() as recipient:
        doing = site(handlers=HANDLERS, broker="database://", env=env(recipient, tmp_path))
        doing.run(LATE)
        recipient.go_on.clear()
        killed = doing.start("send_alerts")
        wait_until(lambda: recipient.told, what="the message that its sender does not survive")
        killed.kill()
        recipient.go_on.set()
        doing.sql("UPDATE messaging_alertmessage SET due_at = '2000-01-01 00:00:00'")  # its lease is over
        both = [doing.start("send_alerts") for _ in range(2)]
        assert [one.wait() for one in both] == [0, 0], [one.output for one in both]
        assert recipient.events == [("begins", "no_relay")] * 2
        assert len(list((tmp_path / "mail").iterdir())) == 1
        assert doing.manage("send_alerts").stdout.startswith("0 messages sent.")


def test_everybody_can_be_told_that_this_is_a_test(site: SiteFactory, tmp_path: Path) -> None:
    with Recipient() as recipient:
        doing = site(handlers=HANDLERS, broker="database://", env=env(recipient, tmp_path))
        assert "mail: told\nwebhooks:0: told\n" in doing.manage("send_alerts", "--test").stdout
        recipient.status = 500
        failed = doing.manage("send_alerts", "--test", check=False)
        assert failed.returncode == 1
        assert "webhooks:0: the webhook answers 500" in failed.stdout
        assert recipient.url not in failed.stdout + failed.stderr
    nobody = doing.manage("send_alerts", check=False, env={"MESSAGING_CONSOLE": "{}"})
    assert nobody.returncode == 1
    assert "Nobody is told" in nobody.stderr


@pytest.mark.slow
@pytest.mark.broker
def test_what_health_and_alerts_say(site: SiteFactory, tmp_path: Path) -> None:
    with ExitStack() as stack:
        recipient = stack.enter_context(Recipient())
        plain = site("postgres", handlers=HANDLERS, env=env(recipient, tmp_path))
        database = stack.enter_context(Proxy("127.0.0.1", urlsplit(plain.database_url).port or 5432))
        broker = stack.enter_context(Proxy("127.0.0.1", urlsplit(plain.broker_url).port or 5672))
        urls = {
            "DATABASE_URL": through(database, plain.database_url),
            "MESSAGING_URL": through(broker, plain.broker_url),
        }
        doing = plain.beside(ROOT, **urls)
        running = doing.start("consume", "--no-reload", env={"MESSAGING_CONSOLE": "{}"})  # it tells nobody itself
        said: dict[str, Any] = {}
        away = [(0, 0, 1), (1, 0, 1)]  # alive, whether or not it has noticed

        is_well(doing, plain)
        said["well"] = found(doing, recipient, (0, 0, 0))

        child = pid(doing)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: pid(doing) not in (0, child), what="its successor")
        is_well(doing, plain)
        plain.sql(f"UPDATE messaging_worker SET seen_at = now() - interval '10 minutes' WHERE pid = {child}")
        said["a killed child, replaced"] = found(doing, recipient, (0, 0, 0))

        os.kill(pid(doing), signal.SIGSTOP)
        plain.sql("UPDATE messaging_worker SET seen_at = now() - interval '10 minutes'")
        wait_until(lambda: health(doing)[0] == 2, what="that it hangs")
        said["a frozen child"] = found(doing, recipient, (2, 2, 0))
        os.kill(pid(doing), signal.SIGCONT)
        is_well(doing, plain)
        said["it goes on"] = found(doing, recipient, (0, 0, 0))

        broker.refuses = True
        broker.cut()
        wait_until(lambda: statuses(plain) == {"waiting for the broker", "broker"}, what="that both miss the broker")
        said["the broker is away"] = found(doing, recipient, (1, 0, 0))
        broker.heal()
        is_well(doing, plain)
        said["it is back"] = found(doing, recipient, (0, 0, 0))

        database.blackhole()
        said["the database is away"] = found(doing, recipient, *away)
        said["it still is"] = found(doing, recipient, *away)
        database.heal()
        database.cut()
        is_well(doing, plain)
        said["the database is back"] = found(doing, recipient, (0, 0, 0))

        assert running.stop() == 0
        said["stopped"] = found(doing, recipient, (2, 2, 0))
        assert said == {
            "well": [],
            "a killed child, replaced": [],
            "a frozen child": ["begins silent_workers"],
            "it goes on": ["over silent_workers"],
            "the broker is away": ["begins broker_away"],
            "it is back": ["over broker_away"],
            "the database is away": ["begins database_away"],
            "it still is": [],
            "the database is back": ["over database_away"],
            "stopped": [],
        }
        assert len(list((tmp_path / "mail").iterdir())) == len(recipient.told)


@pytest.mark.slow
@pytest.mark.broker
def test_consumers_and_relays_tell_it_once_between_them(site: SiteFactory, tmp_path: Path) -> None:
    with Recipient() as recipient:
        doing = site(handlers=HANDLERS, env=env(recipient, tmp_path))
        running = [doing.start("consume", "--no-reload") for _ in range(2)] + [doing.start("relay")]
        doing.sql(
            "INSERT INTO messaging_queuecontrol (alias, queue, paused, changed_at, changed_by, reason) "
            "VALUES ('default', 'work', 1, '2026-01-01 00:00:00', '', '')"
        )
        wait_until(lambda: recipient.told, what="the first look")
        looked_at = "SELECT told_at FROM messaging_alert WHERE kind = 'beat'"
        first = doing.value(looked_at)
        wait_until(lambda: doing.value(looked_at) != first, what="the second look")
        assert [one.stop() for one in running] == [0, 0, 0]
        assert recipient.events == [("begins", "long_paused")]
        assert os.listdir(tmp_path / "state") == [], "who ends in order leaves nothing behind"


def through(proxy: Proxy, url: str) -> str:
    found = urlsplit(url)
    return found._replace(netloc=f"{found.netloc.rpartition(':')[0]}:{proxy.port}").geturl()


PROBES = """
import io, json
from django.core.management import call_command

def probe(*options):
    said = io.StringIO()
    try:
        call_command("messaging_health", "--json", "--hung=3", *options, stdout=said)
    except SystemExit as end:
        return end.code, json.loads(said.getvalue())["checks"]
    return 0, json.loads(said.getvalue())["checks"]
"""
CONSUMER = PROBES + 'print(json.dumps(probe("--only=consumer")))'
ALL = (
    PROBES
    + """
options = ["--only=consumer"], ["--only=consumer", "--live"], ["--only=web"]
print(json.dumps([probe(*own)[0] for own in options]))
call_command("send_alerts", stdout=io.StringIO())
"""
)


def health(doing: Site) -> tuple[int, list[dict[str, Any]]]:
    status, checks = json.loads(doing.run(CONSUMER))
    return status, checks


def found(doing: Site, recipient: Recipient, *expected: tuple[int, int, int]) -> list[str]:
    """What is told since the last time, once the probes say so of the consumer, whether it lives, and the web process.

    They are asked again: who stands still for some seconds looks as if it hung.
    """
    before, end = len(recipient.told), time.monotonic() + DEADLINE
    while (said := tuple(json.loads(doing.run(ALL)))) not in expected:
        assert time.monotonic() < end, f"The probes say {said}, not {expected}."
    return [" ".join(event) for event in recipient.events[before:]]


def pid(doing: Site) -> int:
    """The consumer's child; 0 while there is none."""
    children = [check["subject"] for check in health(doing)[1] if check["name"] == "process"]
    return int(children[0].split()[0]) if children else 0


def statuses(plain: Site) -> set[str]:
    """What the workers said that were seen within seconds, without what is behind a colon or a semicolon."""
    rows = plain.sql("SELECT status FROM messaging_worker WHERE seen_at > now() - interval '20 seconds'")
    return {re.split("[:;]", status)[0] for (status,) in rows}


def is_well(doing: Site, plain: Site) -> None:
    wait_until(lambda: health(doing)[0] == 0, what="health")
    wait_until(lambda: statuses(plain) == {"running 0, waiting 0", ""}, what="the workers' own words")
