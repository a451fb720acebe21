"""Wiring."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.conf import global_settings, settings
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _


class MessagingConfig(AppConfig):
    """The app: label `messaging`."""

    name = "messaging"
    verbose_name = _("Messaging")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Find every app's handlers, register checks, log what fails, mask error reports, count and trace."""
        from messaging.db import django_internals

        django_internals.require()
        from messaging import conf
        from messaging.handlers import registry
        from messaging.monitoring import traces
        from messaging.processing import failure_log

        registry.discover()
        if conf.task_aliases():
            from messaging import django_tasks

            django_tasks.register_handlers()
        register(_later("check_messaging"), "messaging")
        register(_later("check_servers"), Tags.database)
        register(_later("check_deployment"), "messaging", deploy=True)
        failure_log.connect()
        if getattr(settings, "MESSAGING_METRICS", None) is not None:
            from messaging.monitoring import metrics

            metrics.start()
        traces.watch()
        _mask_reports()


def _mask_reports() -> None:
    """Have Django's error reports hide the broker's password, unless the site has a filter of its own."""
    if settings.DEFAULT_EXCEPTION_REPORTER_FILTER == global_settings.DEFAULT_EXCEPTION_REPORTER_FILTER:
        settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "messaging.reports.ReporterFilter"


@cache
def _later(name: str) -> Callable[..., Any]:
    """A function of `checks`, which is imported when it runs: a web server's process runs none."""

    def check(**options: Any) -> Any:
        return getattr(import_module("messaging.checks"), name)(**options)

    return check
