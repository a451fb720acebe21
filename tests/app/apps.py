"""The app that stands for a user's app in the tests."""

from django.apps import AppConfig


class TestsAppConfig(AppConfig):
    """Label `app`."""

    name = "tests.app"
    default_auto_field = "django.db.models.BigAutoField"
