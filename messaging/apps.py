"""Wiring."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class MessagingConfig(AppConfig):
    """The app: label `messaging`."""

    name = "messaging"
    verbose_name = _("Messaging")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Find the handlers of every installed app, register the system checks, and log what fails."""
        from messaging import checks, failure_log  # noqa: F401  (checks registers itself)
        from messaging.handlers import registry

        registry.discover()
        failure_log.connect()
