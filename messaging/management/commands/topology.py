"""`manage.py topology`: declares exchanges, queues and bindings, or compares them with the broker."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from messaging import conf, topology
from messaging.backends import get_backend
from messaging.backends.base import Difference, Topology
from messaging.exceptions import BrokerUnavailable, MessagingError, QueueUnavailable
from messaging.handlers import registry
from messaging.management.base import MessagingCommand

# In the order of their urgency, with what each means.
SEVERITIES = {
    "error": "cannot be used as it is",
    "missing": "does not exist",
    "loss": "can lose messages",
    "warning": "differs, and is used as it is",
    "note": "cannot be seen",
}
PLURAL = {"error": "errors", "missing": "missing", "loss": "losses", "warning": "warnings"}
SERIOUS = ("error", "missing", "loss")
UNREACHABLE = 2  # exit status

STATUS = """exit status:
  0  nothing has to be done; with --check, warnings and notes may remain
  1  something cannot be used; with --check, something is missing or can lose messages
  2  the broker could not be asked
"""


class Command(MessagingCommand):
    """Declares, or compares, for every alias or one."""

    help = (
        "Declare the exchanges, queues and bindings of settings and handlers. Nothing that exists is\n"
        "changed or deleted. --check compares with the broker instead, and explains every difference."
    )
    epilog = STATUS

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command line."""
        parser.add_argument("--using", metavar="ALIAS", help="alias of MESSAGING (all)")
        parser.add_argument("--check", action="store_true", help="compare only, and change nothing")
        parser.add_argument(
            "--unbind",
            nargs=2,
            metavar=("QUEUE", "KEY"),
            help="remove this one binding of the alias's exchange, after asking; --check lists those that nobody names",
        )
        parser.add_argument("--no-input", action="store_true", help="do not ask before a binding is removed")
        parser.add_argument("--json", action="store_true", help="print the differences as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Declare or compare every alias, then print what was found."""
        registry.discover()
        if options["unbind"]:
            self._unbind(options["using"] or conf.DEFAULT_ALIAS, *options["unbind"], ask=not options["no_input"])
            return
        rows: list[dict[str, Any]] = []
        trouble: list[tuple[str, MessagingError]] = []
        for alias in [options["using"]] if options["using"] else conf.aliases():
            try:
                found = self._look(alias, options)
            except MessagingError as error:
                trouble.append((alias, error))
            else:
                rows += [{"alias": alias, **asdict(difference)} for difference in found]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
        if trouble:
            is_away = all(
                isinstance(error, BrokerUnavailable) and not isinstance(error, QueueUnavailable) for _, error in trouble
            )
            text = "\n".join(f"{alias}: {error}" for alias, error in trouble)
            raise CommandError(text, returncode=UNREACHABLE if is_away else 1)
        if options["check"] and any(row["severity"] in SERIOUS for row in rows):
            raise SystemExit(1)

    def _look(self, alias: str, options: dict[str, Any]) -> list[Difference]:
        known = topology.build(alias)
        backend = get_backend(alias)
        found = backend.compare(known) if options["check"] else backend.declare(known)
        if options["check"] and backend.unseen:
            way_out = f'Set MESSAGING["{alias}"]["MANAGEMENT_URL"], and see that it answers.'
            found = [*found, Difference("management API", backend.unseen, way_out, "note")]
        found = sorted(found, key=lambda difference: list(SEVERITIES).index(difference.severity))
        if not options["json"]:
            verb = "Compared with" if options["check"] else "Declared at"
            self.stdout.write(f"{alias}: {verb} {backend.settings.safe_url}: {_listed(known)}.")
            self._explain(found)
            self._summarise(found, options["check"])
        return found

    def _unbind(self, alias: str, queue: str, key: str, *, ask: bool) -> None:
        """Remove a binding that this site does not ask for."""
        try:
            exchange, backend = conf.get(alias).exchange, get_backend(alias)
            if any(spec.name == queue and (exchange, key) in spec.bindings for spec in topology.build(alias).queues):
                text = f'A handler or QUEUES["{queue}"] asks for the routing key "{key}": remove it there first.'
                raise CommandError(text)
            if ask:
                text = f'the binding of exchange "{exchange}" to queue "{queue}" with routing key "{key}"'
                self._ask(f"Remove {text} at {backend.settings.safe_url}? [y/N] ")
            backend.unbind(queue, exchange, key)
        except MessagingError as error:
            returncode = UNREACHABLE if isinstance(error, BrokerUnavailable) else 1
            raise CommandError(f"{alias}: {error}", returncode=returncode) from error
        self.stdout.write(
            self.style.SUCCESS(
                f'Removed: queue "{queue}" gets no more messages with "{key}". It keeps those that it has.'
            )
        )

    def _ask(self, question: str) -> None:
        try:
            answer = input(question).strip().lower()
        except EOFError:  # nobody is there
            answer = ""
        if answer not in ("y", "yes"):
            raise CommandError("Nothing was changed.")

    def _explain(self, found: list[Difference]) -> None:
        """One paragraph for each difference, the most urgent first."""
        heading = ""
        for difference in found:
            if difference.severity != heading:
                heading = difference.severity
                style = self.style.ERROR if heading in SERIOUS else self.style.WARNING
                self.stdout.write(style(f"\n  {heading.capitalize()}: {SEVERITIES[heading]}"))
            if heading == "note":
                self.stdout.write(f"\n    {difference.problem} {difference.way_out}")
            else:
                self.stdout.write(f"\n    {difference.subject}: {difference.problem}\n    {difference.way_out}")

    def _summarise(self, found: list[Difference], is_check: bool) -> None:
        counts = Counter(difference.severity for difference in found if difference.severity != "note")
        text = ", ".join(
            f"{count} {severity if count == 1 else PLURAL[severity]}" for severity, count in counts.items()
        )
        if not counts:
            seen = "everything that can be seen" if found else "everything"
            text, style = f"{seen} is as it should be", self.style.SUCCESS
        elif any(severity in counts for severity in SERIOUS):
            text, style = f"{text}: something has to be done", self.style.ERROR
        else:
            text, style = f"{text}: nothing has to be done", self.style.WARNING
        if is_check or counts:
            self.stdout.write(style(f"{chr(10) if found else ''}{_capital(text)}."))


def _capital(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def _listed(known: Topology) -> str:
    names = [f"exchange {exchange.name}" for exchange in known.exchanges]
    queues = ", ".join(queue.name for queue in known.queues) or "none"
    return ", ".join([*names, f"queues {queues}"])
