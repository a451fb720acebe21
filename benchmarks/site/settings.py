"""The demo site's settings without its shop, ruled by the environment that `benchmarks.stage` makes."""

from benchmarks.load import BATCH
from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS, MESSAGING

ROOT_URLCONF = "benchmarks.site.urls"
INSTALLED_APPS = [*(name for name in INSTALLED_APPS if not name.startswith("project")), "benchmarks.site"]
MESSAGING["default"]["QUEUES"] = {BATCH: {"prefetch": 2000}}
