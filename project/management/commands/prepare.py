"""`manage.py prepare`: what `make run` calls before it starts anything."""

import os
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connection
from django.db.migrations.loader import MigrationLoader


class Command(BaseCommand):
    """Bring the database up to date, and create the user `admin` unless there is one."""

    help = "Migrate the database, and create the superuser “admin” with the password in ADMIN_PASSWORD if it is new."
    requires_system_checks = ()  # the web server and the consumer run them in a moment

    def handle(self, *args: Any, **options: Any) -> None:
        """Say "created", "known", or "unchanged" where the user exists and has another password."""
        password = os.environ.get("ADMIN_PASSWORD")
        if not password:
            raise CommandError("ADMIN_PASSWORD is not set.")
        try:
            _refuse_newer_database()
            call_command("migrate", verbosity=0, interactive=False)
            self.stdout.write(_ensure_admin(password))
        except Error as error:
            raise CommandError(_sentence(error)) from error


def _refuse_newer_database() -> None:
    loader = MigrationLoader(connection)
    known = set(loader.disk_migrations or ())
    newer = [
        f"{app}.{name}"
        for app, name in sorted(loader.applied_migrations or ())
        if app in loader.migrated_apps and (app, name) not in known
    ]
    if newer:
        raise CommandError(
            f"{_name()} is newer than this code, which does not know its migration {newer[0]}: "
            "update the code, or use another database (DATABASE_URL)."
        )


def _ensure_admin(password: str) -> str:
    users = get_user_model()._default_manager
    existing = users.filter(**{users.model.USERNAME_FIELD: "admin"}).first()
    if existing is None:
        users.create_superuser("admin", "", password)  # type: ignore[attr-defined]
        return "created"
    return "known" if existing.check_password(password) else "unchanged"


def _name() -> str:
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"The database {Path(settings['NAME'])}"
    place = ":".join(str(part) for part in (settings["HOST"] or "localhost", settings["PORT"]) if part)
    return f"The database “{settings['NAME']}” at {place} (DATABASE_URL)"


def _sentence(error: Error) -> str:
    text = " ".join(str(error).split())
    if connection.vendor == "sqlite" and "locked" in text:
        return f"{_name()} is locked: another program is writing to it and does not end. Stop that one first."
    return f"{_name()} cannot be used: {text}"
