"""The house: how many places it has, and how many of them one message crosses on its way."""

from __future__ import annotations

import ast
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

import messaging
from messaging import publish
from messaging.models import PublishedMessage
from messaging.relaying.relay import Relay
from tests.app.models import Effect
from tests.consumers import consuming
from tests.waiting import wait_until

HOUSE = Path(messaging.__file__).parent
BESIDE = {"README.md", "py.typed", "__pycache__"}  # of no step: what is told, and what tools look for
PLACES = 36
FILES = 40
MOVES = 150  # between places
OF_THE_CLOCK = {"consuming/housekeeping.py"}  # which on a slow machine comes in between each time
MESSAGES = 5  # what all of them have in common is counted: beside one somebody may have renewed a lease


def test_the_house_has_few_places() -> None:
    places = sorted(path.name for path in HOUSE.iterdir() if path.name not in BESIDE)
    assert len(places) <= PLACES, places


def test_the_tools_import_nothing_of_the_tests() -> None:
    """The tests stand on the tools; what both need is there."""
    for path in (HOUSE.parent / "tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.partition(".")[0] == "tests"], path


class Tracer:
    """Counts the calls from one of the app's files to another, in every thread that starts while it is installed."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.called: set[str] = set()  # functions
        self.between_files: Counter[tuple[str, str]] = Counter()
        self._is_on = False
        self._names: dict[str, str] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to this thread and to those that it starts."""
        before = sys.getprofile()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(None)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count, from nothing."""
        self.files, self.called, self.between_files = set(), set(), Counter()
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    @property
    def between_places(self) -> Counter[tuple[str, str]]:
        """The same between what stands in the root of the app: its folders and its files."""
        found: Counter[tuple[str, str]] = Counter()
        for (caller, called), times in self.between_files.items():
            pair = caller.partition("/")[0], called.partition("/")[0]
            if pair[0] != pair[1]:
                found[pair] += times
        return found

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if not self._is_on or event != "call" or not (called := self._name(frame)):
            return
        self.files.add(called)
        self.called.add(frame.f_code.co_name)
        above = frame.f_back
        while above is not None and not self._name(above):
            above = above.f_back
        caller = self._name(above) if above is not None else ""
        if caller not in ("", called):
            self.between_files[caller, called] += 1

    def _name(self, frame: FrameType) -> str:
        """The file of a frame within the app; "" for code of others."""
        path = frame.f_code.co_filename
        if path not in self._names:
            within = Path(path).is_relative_to(HOUSE)
            self._names[path] = Path(path).relative_to(HOUSE).as_posix() if within else ""
        return self._names[path]


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_a_success_crosses_few_files_and_moves_little_between_places(vhost_url: str, settings: Settings) -> None:
    settings.MESSAGING = {"default": {"URL": vhost_url, "POLL_INTERVAL": 0.05}}
    tracer = Tracer()
    trips = []
    with tracer.installed(), relay_and_consumer() as relay:
        send_one(relay, tracer)  # connections, declarations, and statements that are compiled once
        for _ in range(MESSAGES):
            send_one(relay, tracer)
            trips.append((tracer.between_places.total(), tracer.between_files.total(), tracer.files))
    moves, between_files, _ = min(trips, key=lambda trip: trip[:2])
    files = sorted(set.intersection(*(visited for _, _, visited in trips)) - OF_THE_CLOCK)
    told = f"{len(files)} files, {between_files} moves between files, {moves} between places."
    print(told, *files)  # noqa: T201  with -s: for who changes the house
    assert len(files) <= FILES, files
    assert moves <= MOVES, told


@contextmanager
def relay_and_consumer() -> Iterator[Relay]:
    """A consumer in threads of its own, and a relay for this one."""
    relay = Relay("default", name="house-relay")
    with consuming("effects"):
        try:
            yield relay
        finally:
            relay._finish()


def send_one(relay: Relay, tracer: Tracer) -> None:
    """Publish a message, send it, and count until its acknowledgement is written and the relay has marked it."""
    with tracer.counting():
        with transaction.atomic():
            row = publish("effects.house", {"text": "hello"})
        while PublishedMessage.objects.get(pk=row.pk).state != "published":
            relay.run_once(timeout=0.05)
        wait_until(lambda: "ack_frame" in tracer.called, interval=0.005)
    assert Effect.objects.filter(key=row.message_id).exists()
