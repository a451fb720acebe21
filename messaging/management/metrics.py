"""The options of commands that serve metrics on a port of their own."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

LAST_PORT = 65535


def add_metrics(parser: ArgumentParser) -> None:
    """Where metrics are served, if anywhere."""
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve metrics there, for Prometheus")
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="at this address of the host; 0.0.0.0 or :: for all of them (default: %(default)s)",
    )


def check_metrics(options: dict[str, Any]) -> bool:
    """Whether metrics are asked for. Raises CommandError where they cannot be served."""
    port = options["metrics_port"]
    if port is None:
        return False
    if not 0 <= port <= LAST_PORT:
        raise CommandError(f"--metrics-port must be 0 to {LAST_PORT}; 0 takes any that is free.")
    from messaging.metrics import exposition  # where metrics are asked for

    try:
        exposition.require()
    except ImportError as error:
        raise CommandError(str(error)) from error
    return True
