"""django-tasks-db: the tasks are rows of Django's own database."""

from benchmarks.peer_sites.settings import *  # noqa: F403
from benchmarks.peer_sites.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db", "benchmarks.peer_sites.with_django_tasks"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
