"""Messages so large that only a few of them fit into memory, and some that do not. Real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.consuming.test_consumer import children_of, ready
from tests.failures.deeds import channel, consume, effects, settled
from tests.site import Running, Site, SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

HANDLERS = """
import os, time
from pathlib import Path
from messaging import handler
from tests.app.models import Effect

FOLDER = Path(os.environ["DATA_DIR"])

@handler("work", "work.#")
def work(message):
    (FOLDER / "begun").touch()
    while (FOLDER / "wait").exists():
        time.sleep(0.02)
    Effect.objects.create(key=message.id, value=str(len(message.body)))

@handler("many", "many.#", batch=200)
def many(messages):
    with (FOLDER / "batches").open("a") as file:
        file.write(f"{len(messages)}\\n")
    for message in messages:
        Effect.objects.create(key=message.id, value="many")
"""

MB = 1024 * 1024
HELD = 24 * MB
MOST = 400 * MB  # of a process that holds one or two messages of 16 MB; with all thirty it has 690


def fill(site: Site, queue: str, count: int, size: int, first: int = 0) -> None:
    with channel(site) as broker:
        for number in range(first, first + count):
            properties = pika.BasicProperties(
                content_type="text/plain", message_id=f"{queue}-{number}", delivery_mode=2
            )
            broker.basic_publish("", queue, b"x" * size, properties, mandatory=True)


def put(site: Site, message_id: str, size: int) -> None:
    """Put a message into the queue "work" of either broker, whatever a relay of this site could send."""
    site.run(
        "from messaging.backends import get_backend\n"
        "from tests.backends.tools import confirmed, message, send\n"
        "sender = get_backend('default').sender()\n"
        "sender.open()\n"
        f"one = message('work', b'x' * {size}, content_type='text/plain', message_id={message_id!r})\n"
        "assert confirmed(send(sender, one))\n"
        "sender.close()"
    )


def depth(site: Site) -> int:
    """How many messages the queue "work" of either broker has."""
    read = (
        "from messaging.backends import get_backend, rabbitmq\n"
        "rabbitmq._READING_SECONDS = 60.0\n"
        "print(get_backend('default').depths(['work'])[0].ready)"
    )
    return int(site.run(read))


@contextlib.contextmanager
def peak_of(running: Running) -> Iterator[list[int]]:
    """The most resident memory, in bytes, that any child of a consumer has had."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):  # one of them has ended
                for child in children_of(running.pid):
                    status = Path(f"/proc/{child}/status").read_text()
                    peak[0] = max(peak[0], int(status.partition("VmHWM:")[2].split()[0]) * 1024)
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.mode(67)
def test_thirty_large_messages_are_processed_in_little_memory(site: SiteFactory) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"HELD_BYTES": HELD})
    doing.manage("topology")
    fill(doing, "work", 30, 16 * MB)
    (doing.folder / "wait").touch()
    running = consume(doing)
    with peak_of(running) as peak:
        wait_until(lambda: ready(doing, "work") < 30, what="the first one comes")
        enough = time.monotonic() + 10  # seconds in which thirty come, 480 MB, if they may
        wait_until(lambda: peak[0] > MOST or time.monotonic() > enough)
        wait_until(lambda: ready(doing, "work") >= 25, what="that hardly more are asked for than may be held")
        (doing.folder / "wait").unlink()
        settled(doing, 300, processed=30)
    assert peak[0] < MOST, f"{peak[0] / MB:.0f} MB"
    assert running.output.count("another one starts") == 0
    assert running.stop() == 0


@pytest.mark.mode(68)
@pytest.mark.parametrize(
    "broker",  # that either writes it to a file is in tests/backends/contract.py
    [pytest.param(None, id="rabbitmq"), pytest.param("database://", id="embedded", marks=pytest.mark.slow)],
)
def test_a_message_that_alone_is_too_large_rests_as_failed_and_is_whole(site: SiteFactory, broker: str | None) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"HELD_BYTES": 2 * MB}, broker=broker)
    doing.manage("topology")
    put(doing, "work-0", 15 * MB)
    for number in range(1, 4):
        put(doing, f"work-{number}", 1000)
    running = consume(doing)
    with peak_of(running) as peak:
        settled(doing, processed=3, failed=1)
    assert peak[0] < 200 * MB, f"{peak[0] / MB:.0f} MB"
    error = doing.value("SELECT error FROM messaging_processedmessage WHERE state = 'failed'")
    assert f"Its body has {15 * MB} bytes, and a consumer here holds {2 * MB} at most" in error
    assert f'MESSAGING["default"]["HELD_BYTES"] to at least {15 * MB}, then requeue it' in error
    assert running.stop() == 0
    assert depth(doing) == 0
    doing.env["MESSAGING_OPTIONS"] = json.dumps({"HELD_BYTES": 100 * MB})
    doing.manage("requeue_messages", "--state", "failed")
    running = consume(doing)
    settled(doing, processed=4)
    assert effects(doing) == {"1000": 3, str(15 * MB): 1}
    assert running.stop() == 0


@pytest.mark.mode(67)
def test_after_a_death_that_nobody_is_blamed_for_one_message_at_once_is_taken(site: SiteFactory) -> None:
    doing = site("postgres", handlers=HANDLERS)
    running = consume(doing)
    [before] = children_of(running.pid)
    os.kill(before, signal.SIGKILL)
    running.wait_for_output("while it ran no handler; another one starts")
    wait_until(lambda: running.output.count("Connected to") == 2, what="its successor")
    (doing.folder / "wait").touch()
    fill(doing, "work", 6, 1000)
    wait_until(lambda: ready(doing, "work") == 5, what="one is taken")
    wait_until((doing.folder / "begun").exists, what="its handler runs")
    # The message is blamed for this one, and so the next process takes as many as ever.
    os.kill(children_of(running.pid)[0], signal.SIGKILL)
    wait_until(lambda: ready(doing, "work") == 0, what="all are taken")
    (doing.folder / "wait").unlink()
    settled(doing, processed=6)
    assert running.stop() == 0
