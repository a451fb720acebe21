"""`manage.py requeue_messages`: what the admin's requeue does, for scripts."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db.models import Q, QuerySet

from messaging.management.base import MessagingCommand
from messaging.management.options import add_common, database_of, in_batches, moment, operator, report
from messaging.models import ProcessedMessage
from messaging.models.processed import ProcessedMessageQuerySet
from messaging.operations import requeue
from messaging.publishing.rounds import not_back

NAME = "manage.py requeue_messages"


class Command(MessagingCommand):
    """Requeue failed incoming messages."""

    help = "Send failed incoming messages round again, with fresh attempts. Without filters: all of them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The filters narrow each other down; repeated options widen."""
        add = parser.add_argument
        add("--queue", action="append", help="only of this queue; may be repeated")
        add("--handler", action="append", help="only of this handler (dotted name); may be repeated")
        add("--exception", action="append", help="only with this exception (class, with or without its module)")
        add(
            "--state",
            choices=["failed", "retrying", "requeued", "processing"],
            default="failed",
            help="default: failed; of those in processing, only what no worker holds any more",
        )
        add("--after", metavar="TIME", help="only received at or after this time (ISO 8601; the site's time zone)")
        add("--before", metavar="TIME", help="only received before this time")
        add(
            "--not-back-since",
            metavar="TIME",
            help="of those retrying or requeued, only what was sent to its queue before this time and never came back",
        )
        add_common(parser, NAME, database="whose inbox (default: where the database router has it)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Requeue in batches, each in its own transaction, and print what was done."""
        if options["not_back_since"] and options["state"] not in ProcessedMessage.AWAITING:
            raise CommandError("--not-back-since needs --state retrying or --state requeued.")
        manager = ProcessedMessage.objects.using(database_of(ProcessedMessage, options))
        ids = select(manager.all(), options)[: options["limit"]]
        if options["dry_run"]:
            count = ids.count()
            self.stdout.write(f"{count} {options['state']} message{'' if count == 1 else 's'} would be requeued.")
            return
        by = operator(options, NAME)
        report(self, "Requeued", in_batches(manager.all(), list(ids), lambda batch: requeue(batch, by)))


def select(rows: ProcessedMessageQuerySet, options: dict[str, Any]) -> QuerySet[ProcessedMessage, int]:
    """The primary keys that the options name, the oldest first. Raises CommandError for an unreadable time."""
    if options["state"] == ProcessedMessage.State.PROCESSING:
        rows = rows.unclaimed()
    rows = rows.filter(state=options["state"])
    for option, column in (("queue", "queue"), ("handler", "handler"), ("ids", "message_id")):
        if options[option]:
            rows = rows.filter(**{f"{column}__in": options[option]})
    if options["alias"]:
        rows = rows.filter(alias=options["alias"])
    if options["exception"]:
        rows = rows.filter(_exceptions(options["exception"]))
    if options["after"]:
        rows = rows.filter(received_at__gte=moment(options["after"], "--after"))
    if options["before"]:
        rows = rows.filter(received_at__lt=moment(options["before"], "--before"))
    found: QuerySet[Any] = rows
    if options["not_back_since"]:
        found = not_back(rows, moment(options["not_back_since"], "--not-back-since"))
    return found.order_by("pk").values_list("pk", flat=True)


def _exceptions(names: list[str]) -> Q:
    condition = Q(exception_type__in=names)
    for name in names:
        if "." not in name:
            condition |= Q(exception_type__endswith=f".{name}")
    return condition
