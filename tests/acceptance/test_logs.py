"""What a site's own logging gets of failures: as JSON, the supervisor's lines included, and as Sentry's events."""

from __future__ import annotations

import json
import re
from typing import Any

from messaging.supervising.log_records import FIELDS, LEFT_OUT
from tests.docs.blocks import DOCS, find
from tests.site import SiteFactory
from tests.waiting import wait_until

HANDLERS = """
import os
from messaging import Retry, handler

@handler("billing", "orders.placed", max_attempts=2, backoff=0)
def bill(message):
    raise ValueError("no such order")

@handler("later", "later.*", max_attempts=2)
def wait(message):
    raise Retry("not yet")

@handler("fatal", "fatal.*", max_attempts=1)
def die(message):
    os._exit(9)
"""

IN_SENTRY = """
import json, sentry_sdk
from functools import partial
from sentry_sdk.transport import Transport
from messaging.testing import drain

events = []

class Memory(Transport):
    def capture_envelope(self, envelope):
        if (event := envelope.get_event()) is not None:
            events.append(event)

sentry_sdk.init = partial(sentry_sdk.init, transport=Memory, ignore_errors=["messaging.exceptions.Retry"])
exec({block!r})
from messaging import publish
publish("orders.placed", {{"order": 1}}, message_id="order-1")
publish("later.please", {{}})
drain(within=60, raise_errors=False)
print(json.dumps([[one.get("tags"), one["exception"]["values"][-1]["type"], one["level"]] for one in events]))
"""


def test_every_line_of_a_site_that_logs_json_can_be_parsed(site: SiteFactory) -> None:
    formatter, settings = find("logging")
    shop = site(broker="database://", handlers=HANDLERS)
    (shop.folder / "shop").mkdir()
    (shop.folder / "shop" / "__init__.py").touch()
    (shop.folder / formatter.title).write_text(formatter.text)
    (shop.folder / "logged.py").write_text(f"from tests.site_settings import *\n\n{settings.text}")
    shop.env["DJANGO_SETTINGS_MODULE"] = "logged"
    consumer = shop.start("consume")
    shop.shell('from messaging import publish; publish("orders.placed", {}, message_id="order-1")')
    wait_until(lambda: shop.states() == {"failed": 1}, what="a message that failed")
    shop.shell('from messaging import publish; publish("fatal.error", {}, message_id="fatal-1")')
    wait_until(lambda: "fatal-1 of the queue fatal failed" in consumer.output, what="the line about the crash")
    assert consumer.stop() == 0
    banner, *rest = consumer.output.splitlines()
    assert banner.startswith("Consuming ")  # which the command prints
    lines = [json.loads(line) for line in rest]
    failures = [line for line in lines if "traceback" in line and line["messaging_message_id"] == "order-1"]
    assert [(line["messaging_attempt"], line["messaging_round"]) for line in failures] == [(1, 1), (2, 2)]
    assert {line["messaging_handler"] for line in failures} == {"extra.handlers.bill"}
    assert all(line["traceback"].count("ValueError: no such order") == 1 for line in failures)
    (death,) = [line for line in lines if line["logger"] == "messaging.supervisor" and "exited with" in line["text"]]
    assert (death["level"], death["messaging_message_id"]) == ("ERROR", "fatal-1")
    assert (death["messaging_queue"], death["messaging_handler"]) == ("fatal", "extra.handlers.die")


def test_sentry_sees_one_event_of_each_failed_attempt(site: SiteFactory) -> None:
    (block,) = find("sentry")
    shop = site(broker="database://", handlers=HANDLERS)
    events: list[Any] = json.loads(shop.shell(IN_SENTRY.format(block=block.text)).splitlines()[-1])
    assert [(error, level) for _tags, error, level in events] == [("ValueError", "error")] * 2
    for number, (tags, *_rest) in enumerate(events, 1):
        assert tags["messaging.message_id"] == "order-1"
        assert tags["messaging.handler"] == "extra.handlers.bill"
        assert (tags["messaging.queue"], tags["messaging.attempt"]) == ("billing", str(number))


def test_the_page_lists_what_a_record_has() -> None:
    page = (DOCS / "reference" / "logs.md").read_text()
    assert tuple(re.findall(r"^\| `(messaging_\w+)`", page, re.MULTILINE)) == (*FIELDS, LEFT_OUT)
