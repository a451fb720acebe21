"""A process that takes messages and settles none, to be killed by a test: `python -m tests.backends.holder`.

Reads its settings as JSON from standard input: `url`, `databases`, `queue`, `count`. Prints "holding" once it holds
that many messages.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress

import django
from django.conf import settings

from messaging.exceptions import BrokerUnavailable
from tests.waiting import wait_until


def main() -> None:
    """Hold until killed."""
    order = json.loads(sys.stdin.readline())
    settings.configure(
        DATABASES=order["databases"],
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "messaging"],
        MESSAGING={"default": {"URL": order["url"], "LEASE": 600}},
    )
    django.setup()
    from messaging.backends import get_backend

    enough = threading.Semaphore(0)
    receiver = get_backend("default").receiver(lambda _: enough.release(), lambda: None)

    def is_open() -> bool:
        with suppress(BrokerUnavailable):
            receiver.open()
        return receiver.is_open

    wait_until(is_open)
    receiver.consume(order["queue"], order["count"])
    for _ in range(order["count"]):
        enough.acquire()
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
