"""Huey on its SQLite storage, in a file of its own, with commits as durable as those of Django's database."""

import os

from benchmarks.peer_sites.settings import *  # noqa: F403
from benchmarks.peer_sites.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "huey.contrib.djhuey", "benchmarks.peer_sites.with_huey"]
HUEY = {
    "name": "bench",
    "huey_class": "huey.SqliteHuey",
    "immediate": False,
    "filename": os.environ["BENCH_HUEY"],
    "fsync": True,
    "timeout": 20,
}
