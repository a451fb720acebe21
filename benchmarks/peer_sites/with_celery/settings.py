"""Celery: a quorum queue, persistent messages, publisher confirms, late acks, results in Django's database."""

from benchmarks.peer_sites.settings import *  # noqa: F403
from benchmarks.peer_sites.settings import BROKER_URL, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_celery_results", "benchmarks.peer_sites.with_celery"]
CELERY_BROKER_URL = BROKER_URL
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}
CELERY_TASK_DEFAULT_QUEUE = "bench_celery"
CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
CELERY_TASK_ACKS_LATE = True
CELERY_RESULT_BACKEND = "django-db"
CELERY_WORKER_PREFETCH_MULTIPLIER = 50
