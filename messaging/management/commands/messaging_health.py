"""`manage.py messaging_health`: whether processes live and are ready, for probes and for people."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from messaging.management.base import MessagingCommand
from messaging.monitoring import health

STATUS = """exit status:
  0  all is well; with --live, everything that was asked lives
  1  it lives and is not ready, such as while it waits for the broker; or something deserves a look
  2  something hangs, has died or is not there, or messages do not get on
"""


class Command(MessagingCommand):
    """Prints one line for each check."""

    help = (
        "Say whether consumers, relays and the site are well, within about a second.\n"
        "With --only consumer or relay, asks the processes on this host alone: no broker and no database."
    )
    epilog = STATUS
    requires_system_checks = []  # a probe has no time for them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options."""
        add = parser.add_argument
        add("--only", choices=["consumer", "relay", "web"], help="only this kind of process, on this host")
        add("--live", action="store_true", help="exit with 0 as long as it lives, whether or not it is ready")
        add("--json", action="store_true", help="print the checks as JSON")
        add("--seconds", type=float, default=health.SECONDS, help="for a database to answer (%(default)s)")
        add(
            "--hung",
            type=float,
            default=health.HUNG,
            help="seconds without a sign of life that mean hung (%(default)s)",
        )

    def handle(
        self, *args: Any, only: health.Kind | None, live: bool, seconds: float, hung: float, **options: Any
    ) -> None:
        """Look, print, and exit with what was found."""
        if seconds <= 0 or hung <= 0:
            raise CommandError("--seconds and --hung must be above 0.", returncode=2)
        if only == "web":
            checks = health.of_web(seconds)
        elif only is not None:
            checks = health.of_processes(only, hung)
        else:
            checks = health.of_site(seconds, hung)
        status = health.worst(checks)
        if options["json"]:
            found = {"status": status, "checks": [asdict(check) for check in checks]}
            self.stdout.write(json.dumps(found, indent=2))
        else:
            for check in checks:
                self.stdout.write(self._line(check))
        number = health.LEVELS.index(status)
        if number and not (live and status != "critical"):
            raise SystemExit(number)

    def _line(self, check: health.Check) -> str:
        style = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "critical": self.style.ERROR}[check.level]
        text = " ".join(f"{check.words} {check.fix}".split())
        return f"{style(f'{check.level:8}')} {check.name} {check.subject}: {text}".replace(" :", ":")
