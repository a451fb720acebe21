"""The demo site's settings without its shop, ruled by the environment that `benchmarks.stage` makes."""

import os

from benchmarks.load import BATCH
from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS, MESSAGING

ROOT_URLCONF = "benchmarks.site.urls"
INSTALLED_APPS = [*(name for name in INSTALLED_APPS if not name.startswith("project")), "benchmarks.site"]
MESSAGING["default"]["QUEUES"] = {BATCH: {"prefetch": 2000}}
if "BENCH_TASKS" in os.environ:  # only where tasks are measured: all else is to have no cost by them
    _BACKEND = "messaging.django_tasks.MessagingBackend"
    MESSAGING["default"]["QUEUES"]["tasks.many.default"] = {"prefetch": 2000}
    TASKS = {"default": {"BACKEND": _BACKEND}, "many": {"BACKEND": _BACKEND, "OPTIONS": {"batch": 500}}}
if "BENCH_TRACES" in os.environ:  # a provider of the site's own, as its documentation shows
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
