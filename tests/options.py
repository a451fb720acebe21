"""The options of the alias that a test's own process has."""

from __future__ import annotations

from typing import Any

from pytest_django import Settings


def set_options(settings: Settings, **options: Any) -> None:
    """Give the alias `default` these options beside its own. What was begun before keeps those that it read."""
    settings.MESSAGING = {"default": {**settings.MESSAGING["default"], **options}}
