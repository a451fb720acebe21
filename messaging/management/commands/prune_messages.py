"""`manage.py prune_messages`: retention."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import conf
from messaging.checks.databases import require
from messaging.exceptions import ConfigurationError
from messaging.management.base import MessagingCommand
from messaging.models import Alert
from messaging.monitoring import alerts, counters, failure_groups
from messaging.monitoring.databases import home
from messaging.retention import BATCH, deletable, ended_operations, ended_rehearsals, expired, prune, prune_operations


class Command(MessagingCommand):
    """Deletes what ended well long ago, in small batches."""

    help = (
        "Delete messages that ended well, or were discarded, longer ago than RETENTION says. "
        "Pending, failed and retrying messages are never deleted, nor are audit records. "
        "What was counted by minute is added up by hour after two days, and deleted after 90. "
        "So are failure groups of which no message is left, unless they have a note or are silenced, and alerts."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--using", help="only this alias of MESSAGING (default: all)")
        parser.add_argument("--batch", type=int, default=BATCH, help="rows per transaction (default: %(default)s)")
        parser.add_argument("--dry-run", action="store_true", help="only count")

    def handle(self, *args: Any, using: str | None, batch: int, dry_run: bool, **options: Any) -> None:
        """Prune and print the counts."""
        if batch < 1:
            raise CommandError("--batch must be at least 1.")
        databases: set[str] = set()
        try:
            for alias in [using] if using else conf.aliases():
                for database in require([*conf.get(alias).databases, *_handler_databases(alias)]):
                    self._prune(alias, database, batch, dry_run)
                    databases.add(database)
            for database in sorted(databases) if using is None else ():
                operations = ended_operations(database)
                count = operations.count() if dry_run else prune_operations(operations, batch)
                self.stdout.write(f"{database}: {count} operations {'would go' if dry_run else 'deleted'}")
                if not dry_run:
                    ended_rehearsals(database).delete()
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if not dry_run:
            for database in sorted(databases):
                counters.prune(database)
                failure_groups.prune(database)
            alerts.prune(home(Alert))

    def _prune(self, alias: str, database: str, batch: int, dry_run: bool) -> None:
        for what, rows in expired(alias, database):
            count = deletable(rows).count() if dry_run else prune(rows, batch)
            self.stdout.write(f"{alias}, {database}: {count} {what} {'would go' if dry_run else 'deleted'}")


def _handler_databases(alias: str) -> list[str]:
    from messaging.handlers import registry

    return sorted({handler.database for handler in registry.all(alias)})
