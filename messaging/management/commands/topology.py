"""`manage.py topology`: declares exchanges, queues and bindings, or compares them with the broker."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from messaging import conf, topology
from messaging.backends import get_backend
from messaging.backends.base import Difference
from messaging.exceptions import MessagingError
from messaging.handlers import registry

SERIOUS = {"error", "loss", "missing"}


class Command(BaseCommand):
    """Declares, or compares, for every alias or one."""

    help = "Declare the exchanges, queues and bindings of settings and handlers; --check compares and changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command line."""
        parser.add_argument("--using", metavar="ALIAS", help="alias of MESSAGING (all)")
        parser.add_argument("--check", action="store_true", help="compare only; exit 1 if something must be done")
        parser.add_argument("--json", action="store_true", help="print the differences as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Declare or compare; exit 1 when the broker cannot be used as it is."""
        registry.discover()
        found: list[tuple[str, Difference]] = []
        for alias in [options["using"]] if options["using"] else conf.aliases():
            try:
                found += [(alias, difference) for difference in self._look(alias, options)]
            except MessagingError as error:
                raise CommandError(f"{alias}: {error}") from error
        if options["json"]:
            rows = [{"alias": alias, **asdict(difference)} for alias, difference in found]
            self.stdout.write(json.dumps(rows, indent=2))
        if options["check"] and any(difference.severity in SERIOUS for _, difference in found):
            raise SystemExit(1)

    def _look(self, alias: str, options: dict[str, Any]) -> list[Difference]:
        known = topology.build(alias)
        backend = get_backend(alias)
        differences = backend.compare(known) if options["check"] else backend.declare(known)
        if not options["json"]:
            verb = "compared" if options["check"] else "declared"
            queues = ", ".join(queue.name for queue in known.queues) or "none"
            self.stdout.write(f"{alias} ({backend.settings.safe_url}): queues {verb}: {queues}")
            for difference in differences:
                self._explain(difference)
            if options["check"] and not differences:
                self.stdout.write(self.style.SUCCESS("  Everything is as it should be."))
        return differences

    def _explain(self, difference: Difference) -> None:
        style = self.style.ERROR if difference.severity in SERIOUS else self.style.WARNING
        self.stdout.write(style(f"  {difference.severity}: {difference.subject}: {difference.problem}"))
        self.stdout.write(f"    {difference.way_out}")
