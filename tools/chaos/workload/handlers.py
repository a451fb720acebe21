"""Handlers of every kind. Each leaves an `Effect`, or a `Meeting`, under its message's key."""

from __future__ import annotations

import os
import random
import time
import warnings
from pathlib import Path

from messaging import Message, ReceivedMessage, Reject, handler, publish, publish_many
from tools.chaos.workload.models import Effect, Meeting

ATTEMPTS = 1000  # kills count as attempts, and the faults decide how many there are
AFTER = ".after"
OVERSIZED = ".oversized"
HOME = Path(os.environ["DATA_DIR"], "home")  # names the database of those that move between two starts
RELEASE = Path(os.environ["DATA_DIR"], "release")  # "old" while what starts is the release that lacks a handler


def said_by(file: Path, otherwise: str) -> str:
    """The word in a file; `otherwise` while it is not there."""
    return file.read_text().strip() if file.exists() else otherwise


LIVES_IN = said_by(HOME, "default")
IS_OLD = said_by(RELEASE, "new") == "old"


class HealsLater(Exception):
    """The failure of a handler that works at a later attempt."""


@handler("bulk", "chaos.bulk", batch=100, max_attempts=ATTEMPTS, backoff=0.5)
def bulk(messages: list[ReceivedMessage]) -> None:
    """A batch in one transaction."""
    Effect.objects.bulk_create(Effect(key=message.payload["key"]) for message in messages)
    for message in messages:
        _fail_at_first(message)


@handler("single", "chaos.single", max_attempts=ATTEMPTS, backoff=0.5)
def single(message: ReceivedMessage) -> None:
    """One message, one transaction."""
    Effect.objects.create(key=message.payload["key"])


@handler("flaky", "chaos.flaky", max_attempts=ATTEMPTS, backoff=0.5)
async def flaky(message: ReceivedMessage) -> None:
    """Fails after its effect, which has to be rolled back, then heals."""
    await Effect.objects.acreate(key=message.payload["key"])
    _fail_at_first(message)


@handler("chain", "chaos.chain", max_attempts=ATTEMPTS, backoff=0.5)
def chain(message: ReceivedMessage) -> None:
    """Publishes on, within its transaction."""
    key = message.payload["key"]
    Effect.objects.create(key=key)
    publish_many([Message("chaos.single", {"key": key + AFTER})])


@handler("long", "chaos.long", atomic=False, max_attempts=ATTEMPTS, backoff=0.5)
def long(message: ReceivedMessage) -> None:
    """Works without a transaction, sometimes for longer than its lease, and publishes on."""
    key = message.payload["key"]
    Effect.objects.create(key=key)
    time.sleep(message.payload["seconds"])
    publish("chaos.single", {"key": key + AFTER})
    _fail_at_first(message)


@handler("picky", "chaos.picky", max_attempts=ATTEMPTS, backoff=0.5)
def picky(message: ReceivedMessage) -> None:
    """Rejects half of what it gets, until an operator has requeued it often enough."""
    Effect.objects.create(key=message.payload["key"])
    if random.random() < 0.5:
        raise Reject("not today")


@handler("deadly", "chaos.deadly", max_attempts=ATTEMPTS, backoff=0.5, timeout=3)
def deadly(message: ReceivedMessage) -> None:
    """Kills its process, or never ends, at the first attempt."""
    Effect.objects.create(key=message.payload["key"])
    if message.attempt == 1:
        if message.payload["exits"]:
            os._exit(7)
        while True:
            time.sleep(1)


@handler("forker", "chaos.forker", max_attempts=ATTEMPTS, backoff=0.5, timeout=3)
def fork(message: ReceivedMessage) -> None:
    """Leaves a child behind that keeps what it inherited, and sometimes never ends itself at the first attempt."""
    Effect.objects.create(key=message.payload["key"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads, which is the point here
        if os.fork() == 0:
            time.sleep(message.payload["seconds"])
            os._exit(0)
    while message.attempt == 1 and message.payload["hangs"]:
        time.sleep(1)


@handler("large", "chaos.large", "chaos.oversized", max_attempts=ATTEMPTS, backoff=0.5)
def large(message: ReceivedMessage) -> None:
    """Much at once for a consumer that may hold little; oversized ones only once it may hold more."""
    Effect.objects.create(key=message.payload["key"])


if not IS_OLD:

    @handler("single", "chaos.novel", max_attempts=ATTEMPTS, backoff=0.5)
    def novel(message: ReceivedMessage) -> None:
        """What the old release does not know, though it consumes the queue."""
        Effect.objects.create(key=message.payload["key"])


@handler("wanderer", "chaos.wanderer", database=LIVES_IN, max_attempts=ATTEMPTS, backoff=0.5)
def wander(message: ReceivedMessage) -> None:
    """Lives in another database after some of its restarts, while retries of its messages are under way."""
    Effect.objects.using(LIVES_IN).create(key=message.payload["key"])
    _fail_at_first(message)


@handler("nomad", "chaos.nomad", atomic=False, database=LIVES_IN, max_attempts=ATTEMPTS, backoff=0.5)
def roam(message: ReceivedMessage) -> None:
    """The same without a transaction; what it publishes on is in the outbox of where it lives."""
    key = message.payload["key"]
    Effect.objects.using(LIVES_IN).create(key=key)
    time.sleep(message.payload["seconds"])
    publish("chaos.single", {"key": key + AFTER}, database=LIVES_IN)
    _fail_at_first(message)


@handler("marathon", "chaos.marathon", atomic=False, max_attempts=ATTEMPTS, backoff=0.5)
def run_marathon(message: ReceivedMessage) -> None:
    """Often takes longer than its consumer may at a stop; that consumer is only ever stopped."""
    key = message.payload["key"]
    time.sleep(message.payload["seconds"])
    Effect.objects.create(key=key)
    publish("chaos.single", {"key": key + AFTER})


@handler("stranger", max_attempts=ATTEMPTS, backoff=0.5)
def meet(message: ReceivedMessage) -> None:
    """A message without an id, one of several that are the same."""
    Meeting.objects.create(key=message.payload["key"])
    _fail_at_first(message)


@handler("stranger-job", atomic=False, max_attempts=ATTEMPTS, backoff=0.5)
def work_for_a_stranger(message: ReceivedMessage) -> None:
    """The same without a transaction."""
    time.sleep(message.payload["seconds"])
    _fail_at_first(message)
    Meeting.objects.create(key=message.payload["key"])


def _fail_at_first(message: ReceivedMessage) -> None:
    if message.attempt <= message.payload.get("failures", 0):
        raise HealsLater(f"attempt {message.attempt} of {message.payload['key']}")
