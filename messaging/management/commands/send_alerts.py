"""`manage.py send_alerts`: alerts, for when no consumer or relay is left to send them."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import Error as DatabaseError

from messaging.db.patience import bound_here
from messaging.management.base import MessagingCommand
from messaging.models import Alert
from messaging.monitoring import alerts, health, telling, unrecorded
from messaging.monitoring.databases import home, known
from messaging.monitoring.evaluation import evaluate
from messaging.monitoring.telling import Channel
from messaging.wire.bodies import one_line

SECONDS = 5.0  # for the database to answer
NOBODY = 'Nobody is told: name somebody in MESSAGING_CONSOLE["ALERTS"], such as {"mail": ["ops@example.com"]}.'


class Command(MessagingCommand):
    """Looks at everything once, and tells who is to be told."""

    requires_system_checks = ()  # what is wrong with a setting of another app is no reason for silence
    help = (
        "Look for what is wrong and tell those whom the settings name, as consumers and relays do each minute. "
        "For cron: it works where all of these are dead, or the database is away."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options."""
        parser.add_argument("--dry-run", action="store_true", help="only print what is wrong; tell nobody")
        parser.add_argument("--test", action="store_true", help="tell everybody that this is a test, and nothing else")

    def handle(self, *args: Any, dry_run: bool, test: bool, **options: Any) -> None:
        """Look and tell. Where somebody cannot be told, the exit status is 1."""
        told = telling.channels()
        if not told and not dry_run:
            raise CommandError(NOBODY)
        if test:
            self._report(alerts.test(told))
            return
        is_up = health.answers(home(Alert), SECONDS)
        for database in known():  # one that falls silent meanwhile is not waited for until the next run
            bound_here(database, alerts.PATIENCE)
        try:
            if is_up and dry_run:
                self._show()
            elif is_up:
                count = alerts.look(at_once=True)
                self.stdout.write(f"{count} message{'' if count == 1 else 's'} sent.")
                self._report(unrecorded.end(told))
                return
        except DatabaseError as error:
            self.stderr.write(f"The database cannot be used: {one_line(error)}")
            is_up = False
        if not is_up:
            self._without_database(told, dry_run)

    def _show(self) -> None:
        findings = evaluate()
        for condition in findings.wrong:
            self.stdout.write(f"{condition.level:8} {condition.name} {condition.subject}: {condition.words}")
        if not findings.wrong:
            self.stdout.write("Nothing is wrong.")

    def _without_database(self, told: list[Channel], dry_run: bool) -> None:
        condition = unrecorded.database_away()
        self.stdout.write(f"{condition.level:8} {condition.name} {condition.subject}: {condition.words}")
        if not dry_run:
            problems = unrecorded.begin(condition, told)
            if "" in problems.values() and not unrecorded.is_remembered():
                self.stderr.write(unrecorded.FORGETFUL)
            self._report(problems)

    def _report(self, problems: dict[str, str]) -> None:
        for key, problem in problems.items():
            self.stdout.write(f"{key}: {problem or 'told'}")
        if any(problems.values()):
            raise CommandError("Not everybody could be told.")
