"""What the tests of publishing share: a site that counts what it handles, and ways to break its connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika

from tests.site import Site
from tests.waiting import DEADLINE, wait_until
from tools.proxy import Proxy, before

HANDLERS = """
from messaging import handler
from tests.app.models import Effect

@handler("work", "work.*", backoff=0.1)
def work(message):
    Effect.objects.create(key=message.id, value=message.body.decode())

@handler("plain", "plain.*", backoff=0.1)
def plain(message):
    Effect.objects.create(key=message.id, value=message.body.decode())
"""
CLASSIC = {"plain": {"type": "classic"}}


PUBLISH = """
from messaging import Message, publish_many
keys = {keys!r}
for start in range({first}, {last} + 1, {size}):
    numbers = range(start, min(start + {size}, {last} + 1))
    publish_many([Message(keys[number % len(keys)], str(number)) for number in numbers])
"""

PUBLISHING = """
import itertools, os
from messaging import Message, publish_many
keys = {keys!r}
for first in itertools.count(1, 50):
    if os.path.exists({enough!r}):
        break
    publish_many([Message(keys[number % len(keys)], str(number)) for number in range(first, first + 50)])
"""


def publish(site: Site, first: int, last: int, *routing_keys: str) -> None:
    """Publish the numbers from `first` to `last`, in transactions of 500, to the keys in turn."""
    site.run(PUBLISH.format(first=first, last=last, size=500, keys=routing_keys or ("work.x",)))


def publishing(site: Site, *routing_keys: str) -> Callable[[], int]:
    """A process that publishes the numbers from 1, by fifties, until what is returned is called: it says how many."""
    enough = site.folder / "enough"
    running = site.start("shell", "-c", PUBLISHING.format(enough=str(enough), keys=routing_keys))

    def stop() -> int:
        enough.touch()
        assert running.wait(180) == 0, running.output
        return int(site.value("SELECT COUNT(*) FROM messaging_publishedmessage"))

    return stop


def ready_to_publish(site: Site, first: int, last: int) -> Callable[[], None]:
    """A process that has started already, so that calling what is returned publishes within moments."""
    wait = "import os, time; print('ready', flush=True)\nwhile not os.path.exists('{}'): time.sleep(0.01)\n"
    go = site.folder / "go"
    code = wait.format(go) + PUBLISH.format(first=first, last=last, size=500, keys=("work.x",))
    running = site.start("shell", "-c", code)
    running.wait_for_output("ready")

    def publish() -> None:
        go.touch()
        assert running.wait() == 0, running.output

    return publish


def is_published(site: Site, count: int) -> bool:
    """Whether all is published, and as many messages as they should be."""
    return site.states("published") == {"published": count}


def wait_for_one_effect_each(site: Site, count: int, deadline: float = DEADLINE) -> None:
    """Wait until the numbers from 1 to `count` were handled, and see that each was handled once."""
    wait_until(lambda: site.states() == {"processed": count}, deadline=deadline, what=f"{count} messages processed")
    effects = Counter(int(value) for (value,) in site.sql("SELECT value FROM app_effect"))
    assert effects == Counter(range(1, count + 1))


def take_all(url: str, queue: str, least: int) -> list[bytes]:
    """Take every message out of a queue, at least so many: one that is without a leader says that it has none."""
    bodies: list[bytes] = []
    looks = 0  # in a row that found nothing
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel: Any = connection.channel()

        def is_empty() -> bool:
            nonlocal looks
            expected = channel.queue_declare(queue, passive=True).method.message_count
            looks = 0 if expected else looks + 1
            for _, (method, _, body) in zip(
                range(expected), channel.consume(queue, inactivity_timeout=5), strict=False
            ):
                if method is None:
                    break
                bodies.append(body)
                channel.basic_ack(method.delivery_tag)
            channel.cancel()
            return looks > 1 and len(bodies) >= least

        wait_until(is_empty, interval=0.2, what=f"{least} messages in {queue}")
    return bodies


@contextmanager
def proxied(site: Site) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """A proxy in front of a site's broker, and the environment of a process that is to go through it."""
    with before(site.broker_url, 5672) as (proxy, through):
        yield proxy, {"MESSAGING_URL": through}
