"""`MESSAGING_CONSOLE`: what the site says once for the pages of the admin; read on each access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from messaging.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """`MESSAGING_CONSOLE`.

    Attributes:
        edit: whether failed messages may be edited and requeued, by those with the permission.
    """

    edit: bool = False


def read() -> Any:
    """The setting as it stands; empty where it is missing."""
    configured = getattr(settings, "MESSAGING_CONSOLE", None)
    return {} if configured is None else configured


def get() -> ConsoleSettings:
    """The settings of the console. Raises ConfigurationError for whatever the system checks call an error."""
    from messaging.conf import problems  # where settings are used, which is after a site's start

    configured: Mapping[str, Any] = read()
    for problem in problems.of_console(configured):
        raise ConfigurationError(str(problem))
    return ConsoleSettings(edit=configured.get("EDIT", False))
