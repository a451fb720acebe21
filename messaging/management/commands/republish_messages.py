"""`manage.py republish_messages`: what the admin's *Publish* and *Replay* do, for scripts."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.db.models import QuerySet

from messaging.management.base import MessagingCommand
from messaging.management.options import add_common, database_of, in_batches, moment, operator, report
from messaging.models import PublishedMessage
from messaging.models.outbox import PublishedMessageQuerySet
from messaging.operations import release, replay

NAME = "manage.py republish_messages"
WAITING = "waiting"
STATES = ("failed", WAITING, "published")


class Command(MessagingCommand):
    """Send outgoing messages once more."""

    help = "Send failed outgoing messages once more, with fresh tries. Without filters: all of them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The filters narrow each other down; repeated options widen."""
        add = parser.add_argument
        add("--exchange", action="append", help="only to this exchange; may be repeated")
        add("--queue", action="append", help="only straight to this queue; may be repeated")
        add("--routing-key", action="append", help="only with exactly this routing key; may be repeated")
        add(
            "--state",
            choices=STATES,
            default="failed",
            help="default: failed; waiting: what no queue took yet, now; published: once more, to repair a loss at the "
            "broker (consumers do not run an id twice)",
        )
        times = "(ISO 8601; the site's time zone); of published ones: when the broker confirmed them"
        add("--after", metavar="TIME", help=f"only written at or after this time {times}")
        add("--before", metavar="TIME", help="only written before this time")
        add_common(parser, NAME, database="whose outbox; default: the one that publish() uses")

    def handle(self, *args: Any, **options: Any) -> None:
        """Send them in batches, each in its own transaction, and print what was done."""
        rows = PublishedMessage.objects.using(database_of(PublishedMessage, options))
        ids = select(rows.all(), options)[: options["limit"]]
        if options["dry_run"]:
            count = ids.count()
            self.stdout.write(f"{count} {options['state']} message{'' if count == 1 else 's'} would be sent.")
            return
        by, act = operator(options, NAME), replay if options["state"] == "published" else release
        report(self, "To be sent:", in_batches(rows.all(), list(ids), lambda batch: act(batch, by)))


def select(rows: PublishedMessageQuerySet, options: dict[str, Any]) -> QuerySet[PublishedMessage, int]:
    """The primary keys that the options name, the oldest first. Raises CommandError for an unreadable time."""
    state = options["state"]
    rows = rows.waiting_for_queue() if state == WAITING else rows.filter(state=state)
    columns = {"exchange": "exchange", "queue": "queue", "routing_key": "routing_key", "ids": "message_id"}
    for option, column in columns.items():
        if options[option]:
            rows = rows.filter(**{f"{column}__in": options[option]})
    if options["alias"]:
        rows = rows.filter(alias=options["alias"])
    time = "published_at" if state == "published" else "created_at"
    if options["after"]:
        rows = rows.filter(**{f"{time}__gte": moment(options["after"], "--after")})
    if options["before"]:
        rows = rows.filter(**{f"{time}__lt": moment(options["before"], "--before")})
    return rows.order_by("pk").values_list("pk", flat=True)
