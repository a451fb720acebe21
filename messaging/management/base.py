"""What our commands share: they run whatever became of their standard streams, and explain their exit status."""

from __future__ import annotations

import io
import os
import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, DjangoHelpFormatter

from messaging.supervising import process_setup


class _Formatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Django's order of the options, and line breaks as they are written."""


class MessagingCommand(BaseCommand):
    """A command that may be started with closed streams, or with an encoding that lacks the characters of a name.

    Where it has an `epilog`, which explains its exit status, its help ends with that.
    """

    epilog = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # as the interpreter says of one that was closed
                process_setup.open_streams()
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for as long as the process lives
        super().__init__(*args, **kwargs)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """The parser, with the epilog below the options."""
        if self.epilog:
            kwargs = {"epilog": self.epilog, "formatter_class": _Formatter, **kwargs}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def run_from_argv(self, argv: list[str]) -> None:
        """As Django does; what the output's encoding lacks is written as an escape, and arguments are UTF-8."""
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:  # which the interpreter does not know under a locale without letters
            argv = [os.fsencode(argument).decode() for argument in argv]
        except UnicodeDecodeError:
            sys.exit(f"{' '.join(argv[1:2])}: an argument is not UTF-8, as all names here are.")
        super().run_from_argv(argv)
