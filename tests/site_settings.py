"""Settings of the sites that tests start: those of `tools.site_settings`, with the tests' own app and pages."""

import os

from tools.site_settings import *  # noqa: F403
from tools.site_settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.app"]
ROOT_URLCONF = "tests.urls"
if "METRICS_TOKEN" in os.environ:
    MESSAGING_METRICS = {"TOKEN": {"env": "METRICS_TOKEN"}}
