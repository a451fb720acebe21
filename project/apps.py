"""The demo site is an app of its own, so that its `handlers.py` is found."""

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    """The demo site."""

    name = "project"
    verbose_name = "Demo shop"
    default_auto_field = "django.db.models.BigAutoField"
