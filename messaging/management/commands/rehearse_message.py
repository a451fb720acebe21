"""`manage.py rehearse_message`: what a failed message's handler would do, without doing it."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.utils import translation

from messaging.handlers import registry
from messaging.management.base import MessagingCommand
from messaging.management.options import known_database
from messaging.models import ProcessedMessage
from messaging.operations.rehearsals import limit_of
from messaging.processing.rehearsing import Report, rehearse


class Command(MessagingCommand):
    """Runs a failed message's handler in a transaction that is rolled back."""

    help = (
        "Run a failed message with today's code in a transaction that is rolled back, with mail going to memory, and "
        "say how that ended. For handlers that are registered with rehearse=True. HTTP calls are not undone."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options; those of workers are hidden."""
        parser.add_argument("row", type=int, help="number of the incoming message, as its page has it in its address")
        parser.add_argument("--database", help="where it is (default: where the database router has it)")
        parser.add_argument("--seconds", type=float, help="after which it is ended (default: 30, on SQLite 5)")
        for name in ("--round", "--lifeline"):
            parser.add_argument(name, type=int, help="for workers, which run rehearsals like this")
        parser.add_argument("--language", default="", help="for workers too")

    def handle(self, *args: Any, row: int, database: str | None, **options: Any) -> None:
        """Rehearse, and print what came of it; for a worker as JSON, and the process ends then."""
        if options["lifeline"] is not None:
            _end_with(options["lifeline"])
        registry.discover()
        name = known_database(database or router.db_for_write(ProcessedMessage))
        message = ProcessedMessage.objects.using(name).filter(pk=row).first()
        if message is None:
            raise CommandError(f'The database "{name}" has no incoming message {row}.')
        seconds = options["seconds"] or limit_of(message)
        report = _Answer(self, is_worker=options["lifeline"] is not None)
        limit = threading.Timer(seconds, report.end, [Report("late")])
        limit.daemon = True
        limit.start()
        with translation.override(options["language"] or None):
            found = rehearse(message, options["round"] or message.round, seconds)
        limit.cancel()
        report.end(found)


class _Answer:
    """Says once how a rehearsal ended, then ends this process: whatever the handler has left running in it."""

    def __init__(self, command: Command, *, is_worker: bool) -> None:
        self._command, self._is_worker = command, is_worker
        self._said = threading.Lock()
        # What the handler prints is none of the answer.
        self._out = os.dup(1)
        if is_worker:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)

    def end(self, report: Report) -> None:
        """Answer."""
        if not self._said.acquire(blocking=False):
            return
        text = json.dumps(asdict(report)) if self._is_worker else _in_words(report)
        left = (text + "\n").encode("utf-8", "backslashreplace")
        while left:
            left = left[os.write(self._out, left) :]
        os._exit(0 if self._is_worker or report.state == "succeeded" else 1)


def _in_words(report: Report) -> str:
    if report.result is not None:
        counts = [f"{report.result[name]} {name}" for name in ("rows", "messages", "mails")]
        return f"It would succeed: {', '.join(counts)}, {report.result['seconds']} s."
    return "\n".join(filter(None, (report.traceback, report.error or f"It is {report.state}.")))


def _end_with(lifeline: int) -> None:
    """End this process when the one that started it is gone: nobody else would."""

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    os.set_inheritable(lifeline, False)
    threading.Thread(target=wait, daemon=True).start()
