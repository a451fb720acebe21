"""`manage.py publish_chaos`: publishes until it is told to stop."""

from __future__ import annotations

import random
import signal
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import InterfaceError, OperationalError, connections

from tools.chaos.workload.models import Effect, Expected
from tools.chaos.workload.publishing import FIRST, compose, send


class Command(BaseCommand):
    """One publisher; there may be several."""

    help = "Publish parcels of messages with their ledger until SIGTERM."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Seed and pace."""
        parser.add_argument("--seed", required=True)
        parser.add_argument("--rate", type=float, required=True, help="messages per second at most")
        parser.add_argument("--ahead", type=int, default=4000, help="effects outstanding at which it waits")

    def handle(self, *args: Any, seed: str, rate: float, ahead: int, **options: Any) -> None:
        """Publish; what a database outage interrupts was rolled back whole, so the next parcel follows."""
        stop, chance = threading.Event(), random.Random(seed)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        since_look, wanted = rate, FIRST
        while not stop.is_set():
            try:
                if since_look >= rate:  # about once a second
                    since_look = 0.0
                    if Expected.objects.count() - sum(map(_effects, connections)) > ahead:
                        since_look = rate
                        stop.wait(0.5)
                        continue
                count = send(compose(chance, *wanted), chance)
                wanted = ()
            except (OperationalError, InterfaceError):
                connections.close_all()
                stop.wait(0.5)
                continue
            since_look += count
            stop.wait(count / rate)


def _effects(database: str) -> int:
    return Effect.objects.using(database).count()
