"""What the tests of consuming share: handlers that do what they are told, and the questions asked about them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pika

from tests.site import Running, Site
from tests.waiting import DEADLINE, wait_until

HANDLERS = """
import asyncio, ctypes, os, re, resource, signal, sys, time, uuid
from pathlib import Path
from messaging import handler
from tests.app.models import Effect

FOLDER = Path(os.environ["DATA_DIR"])

def wait_for_go():
    while not (FOLDER / "go").exists():
        time.sleep(0.02)

LEAK = []

def run_out_of_memory(keep):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    size = 32 << 20
    while size > 8:
        try:
            keep.append(bytearray(size))
        except MemoryError:
            size //= 2
    raise MemoryError("not a byte is left")

def stay_busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

def loop():
    while True:
        pass

DEEDS = {
    "nothing": lambda: None,
    "nap": lambda: time.sleep(0.4),
    "wait": wait_for_go,
    "busy": lambda: stay_busy(5),
    "loop": loop,
    "regex": lambda: re.match("(a+)+$", "a" * 60 + "b"),  # holds the interpreter's lock for years
    "pause": lambda: re.match("(a+)+$", "a" * 27 + "b"),  # holds it for seconds
    "raise": lambda: 1 / 0,
    "exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: run_out_of_memory([]),
    "leak": lambda: run_out_of_memory(LEAK),  # nothing is free after the error either
}

def act(message):
    do = message.payload["do"]
    with (FOLDER / f"started-{do}").open("a") as file:
        file.write(f"{time.monotonic()} {os.getpid()}\\n")
    DEEDS[do]()
    Effect.objects.create(key=message.id, value=do)

@handler("work", "work.#", max_attempts=2, backoff=0.2)
def work(message):
    act(message)

@handler("patient", "patient.#", max_attempts=3, backoff=1)
def patient(message):
    Effect.objects.create(key=message.id, value="rolled back")
    act(message)

@handler("brief", "brief.#", max_attempts=2, backoff=0.1, timeout=1)
def brief(message):
    act(message)

@handler("awaited", "awaited.#", max_attempts=2, backoff=0.1)
async def awaited(message):
    await asyncio.sleep(0)
    DEEDS[message.payload["do"]]()

@handler("long", "long.#", atomic=False, max_attempts=3, backoff=0.1)
def long(message):
    act(message)
"""


def consume(site: Site, *arguments: str) -> Running:
    """Start a consumer and wait until it consumes."""
    running = site.start("consume", *arguments)
    running.wait_for_output(r"Connected to")
    return running


def publish(site: Site, *messages: tuple[str, str]) -> None:
    """Publish messages as (routing key, deed), under ids like "sigkill-3": the deed and a number."""
    lines = [
        f'publish({key!r}, {{"do": {do!r}}}, message_id="{do}-{number}")' for number, (key, do) in enumerate(messages)
    ]
    site.run("from messaging import publish\n" + "\n".join(lines))


@contextlib.contextmanager
def channel(site: Site) -> Iterator[Any]:
    """A channel of a client that knows nothing of us, with confirms."""
    connection = pika.BlockingConnection(pika.URLParameters(site.broker_url))
    with contextlib.closing(connection):
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened


def send(site: Site, queue: str, *messages: tuple[str | None, str], **more: Any) -> None:
    """Send messages as (id, deed) straight to a queue, all on one connection."""
    with channel(site) as broker:
        for message_id, do in messages:
            body = json.dumps({"do": do, **more}).encode()
            properties = pika.BasicProperties("application/json", message_id=message_id, delivery_mode=2)
            broker.basic_publish("", queue, body, properties, mandatory=True)


def starts(site: Site, do: str) -> list[tuple[float, int]]:
    """When and in which process a deed was started."""
    file = site.folder / f"started-{do}"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(float(line.split()[0]), int(line.split()[1])) for line in lines]


def started(site: Site, do: str, count: int = 1) -> None:
    """Wait until a deed was started so often."""
    wait_until(lambda: len(starts(site, do)) >= count, what=f"{count} starts of {do}")


def settled(site: Site, deadline: float = DEADLINE, **states: int) -> None:
    """Wait until the inbox holds so many messages in each state, and no others."""
    wait_until(lambda: site.states() == states, deadline=deadline, what=f"{states}, not {site.states()}")


def attempts(site: Site) -> dict[str, int]:
    """Failed attempts by message id; an attempt that was counted twice is an error."""
    rows = site.sql(
        "SELECT m.message_id, a.number FROM messaging_attempt a "
        "JOIN messaging_processedmessage m ON m.id = a.message_id ORDER BY a.id"
    )
    numbers: dict[str, list[int]] = {}
    for message_id, number in rows:
        numbers.setdefault(message_id, []).append(number)
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), numbers
    return {message_id: len(found) for message_id, found in numbers.items()}


def effects(site: Site) -> dict[str, int]:
    """Committed effects by deed."""
    return dict(site.sql("SELECT value, COUNT(*) FROM app_effect GROUP BY value"))
