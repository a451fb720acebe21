"""Wiring."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _


class MessagingConfig(AppConfig):
    """The app: label `messaging`."""

    name = "messaging"
    verbose_name = _("Messaging")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Find the handlers of every installed app, register the system checks, and log what fails."""
        from messaging import failure_log
        from messaging.handlers import registry

        registry.discover()
        register(_later("check_messaging"), "messaging")
        register(_later("check_servers"), Tags.database)
        register(_later("check_deployment"), "messaging", deploy=True)
        failure_log.connect()


@cache
def _later(name: str) -> Callable[..., Any]:
    """A function of `checks`, which is imported when it runs: a web server's process runs none."""

    def check(**options: Any) -> Any:
        return getattr(import_module("messaging.checks"), name)(**options)

    return check
