"""Handlers that hold the interpreter's lock: their process does nothing else, and somebody says so. Real processes."""

from __future__ import annotations

import re

import pytest

from tests.failures.deeds import attempts, consume, effects, send, settled
from tests.site import SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

HANDLERS = """
import ctypes, os, re
from messaging import handler
from tests.app.models import Effect

def hold(file):
    # Without letting go of the lock; and on for a moment, so that the process itself has missed it for over 10 s.
    ctypes.PyDLL(None).system(f"while [ ! -e '{file}' ]; do sleep 0.1; done; sleep 2".encode())

@handler("work", "work.#", max_attempts=2, backoff=0.1)
def work(message):
    if message.payload["do"] == "hold":
        hold(f"{os.environ['DATA_DIR']}/go-{message.id}")
    if message.payload["do"] == "for ever":
        re.match("(a+)+$", "a" * 60 + "b")
    Effect.objects.create(key=message.id, value=message.payload["do"])
"""
HELD = re.compile(r"Process \d+ has done nothing else for \d+ s: \S+handlers\.work holds the interpreter's lock")
GOES_ON = re.compile(r"Process \d+ goes on, after \d+ s")


@pytest.mark.mode(61)
def test_a_handler_that_lets_nothing_else_run_is_named_with_its_stack(site: SiteFactory, any_db: str) -> None:
    doing = site(any_db, handlers=HANDLERS)
    # The supervisor writes its lines itself: the process that writes them for a site with a LOGGING is the one held.
    (doing.folder / "unlogged.py").write_text("from tests.site_settings import *\nLOGGING = {}\n")
    doing.env["DJANGO_SETTINGS_MODULE"] = "unlogged"
    running = consume(doing)
    for count in range(1, 6):  # a process that the system has stopped just then writes no stack
        send(doing, "work", (f"hold-{count}", "hold"))
        wait_until(lambda count=count: len(HELD.findall(running.output)) == count, what="that somebody says so")
        (doing.folder / f"go-hold-{count}").touch()
        wait_until(lambda count=count: len(GOES_ON.findall(running.output)) >= count, what="that it goes on")
        settled(doing, processed=count)
        if re.search(r'File ".*handlers.py", line \d+ in hold', running.output):
            break
    else:
        raise AssertionError(running.output)
    assert (attempts(doing), effects(doing)) == ({}, {"hold": count})
    told = "SELECT COUNT(*) FROM messaging_worker WHERE status LIKE '%a handler kept all else from running for %'"
    wait_until(lambda: doing.value(told.replace("%", "%%") if any_db == "postgres" else told) == 1, what="its status")
    assert len(HELD.findall(running.output)) == count, "once each time"
    assert running.stop() == 0


@pytest.mark.mode(61)
def test_a_handler_that_lets_nothing_else_run_is_ended_where_the_setting_says_so(site: SiteFactory) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"FREEZE_TIMEOUT": 5})
    running = consume(doing)
    send(doing, "work", ("before", "nothing"), ("for-ever-0", "for ever"), ("after", "nothing"))
    settled(doing, processed=2, failed=1)
    assert attempts(doing)["for-ever-0"] == 2
    error = doing.value("SELECT error FROM messaging_processedmessage WHERE state = 'failed'")
    assert "has done nothing beside one handler for more than 5 s, and was killed" in error
    assert running.output.count("it is killed") >= 2  # one that the system stopped for so long is, too
    assert running.stop() == 0
