"""What the commands of operators have in common: which messages, points in time, who acts, and the report."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from messaging.operations import Operator, Outcome
from messaging.operations.acting import BATCH


def add_common(parser: ArgumentParser, command: str, *, database: str) -> None:
    """Which messages, how many, where, and who says so.

    Args:
        parser: of the command's arguments.
        command: stands in the audit where no user is named.
        database: the help of `--database`.
    """
    add = parser.add_argument
    add("--id", action="append", dest="ids", help="only this message id; may be repeated")
    add("--alias", help="only of this alias of MESSAGING")
    add("--limit", type=int, help="at most this many, the oldest first")
    add("--reason", default="", help="recorded in the audit")
    add("--user", default="", help=f'recorded in the audit; default: "{command}"')
    add("--database", help=database)
    add("--dry-run", action="store_true", help="only say how many there are")


def database_of(model: type[Model], options: dict[str, Any]) -> str:
    """Where the messages are. Raises CommandError for an unknown database, and for a limit that leaves none."""
    if options["limit"] is not None and options["limit"] < 1:
        raise CommandError("--limit must be at least 1.")
    return known_database(options["database"] or router.db_for_write(model))


def known_database(database: str) -> str:
    """The alias, if `DATABASES` has it. Raises CommandError."""
    if database not in connections:
        raise CommandError(f'--database: DATABASES has no "{database}"; it has {", ".join(connections)}.')
    return database


def moment(text: str, option: str) -> datetime:
    """A point in time that an option names, in the site's time zone unless it says another. Raises CommandError."""
    try:
        value = parse_datetime(text)  # a date alone is its midnight
    except ValueError:
        value = None
    if value is None:
        raise CommandError(f'{option}: "{text}" is no time; write it as 2026-01-31 or 2026-01-31T13:45:00+01:00.')
    return timezone.make_aware(value) if timezone.is_naive(value) else value


def operator(options: dict[str, Any], command: str) -> Operator:
    """Who the audit names: `--user`, linked to the account of that name if there is one; else the command."""
    user = None
    if options["user"]:
        manager = get_user_model()._default_manager
        user = manager.filter(**{get_user_model().USERNAME_FIELD: options["user"]}).first()
    return Operator(user=user, name=options["user"] or command, reason=options["reason"])


def in_batches(rows: QuerySet[Any], ids: list[int], act: Callable[[QuerySet[Any]], Outcome]) -> Outcome:
    """Act on the rows of these keys, in batches with a transaction each."""
    outcome, remaining = Outcome(), iter(ids)
    while batch := list(islice(remaining, BATCH)):
        outcome.add(act(rows.filter(pk__in=batch)))
    return outcome


def report(command: BaseCommand, done: str, outcome: Outcome) -> None:
    """Print what was done to how many messages, and why others were skipped."""
    count = len(outcome.done)
    command.stdout.write(command.style.SUCCESS(f"{done} {count} message{'' if count == 1 else 's'}."))
    for reason, ids in outcome.skipped.items():
        command.stdout.write(command.style.WARNING(f"Skipped {len(ids)}: {reason}."))
