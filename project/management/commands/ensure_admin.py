"""`manage.py ensure_admin`: what `make run` calls to have an admin user."""

import os
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Create the user `admin` unless there is one."""

    help = "Create the superuser “admin” with the password in ADMIN_PASSWORD, unless that user exists."

    def handle(self, *args: Any, **options: Any) -> None:
        """Say "unchanged" where the user exists and has another password."""
        password = os.environ.get("ADMIN_PASSWORD")
        if not password:
            raise CommandError("ADMIN_PASSWORD is not set.")
        users = get_user_model()._default_manager
        existing = users.filter(**{users.model.USERNAME_FIELD: "admin"}).first()
        if existing is None:
            users.create_superuser("admin", "", password)  # type: ignore[attr-defined]
            self.stdout.write("created")
        else:
            self.stdout.write("known" if existing.check_password(password) else "unchanged")
