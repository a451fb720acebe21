"""`manage.py run_operations`: stored operations, where no consumer or relay carries them out."""

from __future__ import annotations

import os
import socket
from typing import Any

from django.core.management.base import CommandParser
from django.db import router

from messaging.management.base import MessagingCommand
from messaging.management.options import known_database
from messaging.models import Operation
from messaging.operations import rehearsals
from messaging.operations.stored import run_waiting


class Command(MessagingCommand):
    """Carries out the operations and rehearsals that wait, then ends."""

    help = "Carry out the operations and rehearsals that operators have stored and nobody carries out, then end."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--database", help="whose operations (default: where the database router has them)")

    def handle(self, *args: Any, database: str | None, **options: Any) -> None:
        """Run them one after the other. Whoever is interrupted leaves the rest of one to the next."""
        name = known_database(database or router.db_for_write(Operation))
        worker = f"{socket.gethostname()[:150]}:{os.getpid()}:run_operations"
        count = run_waiting(name, worker)
        self.stdout.write(f"{count} operation{'' if count == 1 else 's'} carried out.")
        count = rehearsals.run_waiting(name, worker)
        if count:
            self.stdout.write(f"{count} rehearsal{'' if count == 1 else 's'} run.")
