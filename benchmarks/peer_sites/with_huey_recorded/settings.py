"""As with Huey alone, and the tables of the records."""

from benchmarks.peer_sites.with_huey.settings import *  # noqa: F403
from benchmarks.peer_sites.with_huey.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS[:-1], "benchmarks.peer_sites.with_huey_recorded"]
