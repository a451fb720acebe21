"""Dramatiq: durable queues as it declares them, persistent messages, confirms, its tasks in Django's database."""

from benchmarks.peer_sites.settings import *  # noqa: F403
from benchmarks.peer_sites.settings import BROKER_URL, INSTALLED_APPS

INSTALLED_APPS = ["django_dramatiq", *INSTALLED_APPS, "benchmarks.peer_sites.with_dramatiq"]
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
    "OPTIONS": {"url": BROKER_URL, "confirm_delivery": True},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.AdminMiddleware",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
