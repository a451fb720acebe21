"""What the peers' settings share. `BENCH_DATABASE` holds Django's settings of the database as JSON."""

import json
import os
from typing import Any

SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["benchmarks.site"]
# Connections stay open: by default each task would open one of its own.
DATABASES: dict[str, dict[str, Any]] = {"default": {**json.loads(os.environ["BENCH_DATABASE"]), "CONN_MAX_AGE": None}}
BROKER_URL = os.environ.get("BENCH_BROKER", "")
