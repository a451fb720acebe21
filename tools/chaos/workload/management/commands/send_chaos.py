"""`manage.py send_chaos`: a client without an outbox, whose messages have no id and come in identical twins."""

from __future__ import annotations

import json
import random
import signal
import threading
import uuid
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, TextIO

from django.core.management.base import BaseCommand

from messaging.backends import get_backend
from messaging.backends.base import Fate, Outgoing, Sender
from messaging.exceptions import BrokerUnavailable
from messaging.wire.properties import Properties

PROPERTIES = Properties.build(content_type="application/json", delivery_mode=2).encode()
MOST = 3  # messages of one content


class Command(BaseCommand):
    """One such client. Its ledger is a file, so that no database can forget it."""

    help = "Send messages without an id, some of equal content, until SIGTERM."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Seed, pace and ledger."""
        parser.add_argument("--seed", required=True)
        parser.add_argument("--ledger", required=True, type=Path, help="file to note the confirmed messages in")
        parser.add_argument("--rate", type=float, default=10.0, help="contents per second at most")

    def handle(self, *args: Any, seed: str, ledger: Path, rate: float, **options: Any) -> None:
        """Send; what the broker does not confirm is not owed."""
        stop, chance = threading.Event(), random.Random(seed)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        sender = get_backend("default").sender()
        with ledger.open("a", buffering=1) as file:
            while not stop.wait(1 / rate):
                try:
                    sender.open()
                    self._send(sender, file, chance)
                except BrokerUnavailable:
                    stop.wait(0.5)
        sender.close()

    def _send(self, sender: Sender, file: TextIO, chance: random.Random) -> None:
        key = uuid.UUID(int=chance.getrandbits(128)).hex
        payload: dict[str, object] = {"key": key, "failures": chance.choice((0, 0, 0, 1))}
        queue = chance.choice(("stranger", "stranger", "stranger-job"))
        if queue == "stranger-job":
            payload["seconds"] = chance.choice((0.05, 0.2, 1.0))
        body = json.dumps(payload).encode()
        file.write(f"{key} 0\n")  # before it can have an effect
        twins = [Outgoing(f"{key}-{one}", "", queue, PROPERTIES, body) for one in range(chance.randint(1, MOST))]
        sender.send(twins)
        while sender.under_way:
            for outcome in sender.outcomes(1.0):
                if outcome.fate is Fate.CONFIRMED:
                    file.write(f"{key} 1\n")
