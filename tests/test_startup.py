"""What the app does to the start of a site: it connects to nothing, and loads only what a web process uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.site import ROOT

SITE = """
import json, sys

connected = []
sys.addaudithook(lambda event, args: connected.append(event) if event.endswith(".connect") else None)

import django
from django.conf import settings

CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
settings.configure(
    INSTALLED_APPS=[*(f"django.contrib.{name}" for name in CONTRIB), "messaging", "tests.app"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    MESSAGING={"default": {"URL": "amqp://127.0.0.1:1/"}},
    USE_TZ=True,
)
django.setup()
"""
TELL = "\nprint(json.dumps({'connected': connected, 'modules': sorted(sys.modules)}))"

# What talks to brokers, consumes, or says what is wrong with settings; and Django's modules with a name of ours.
UNUSED = {
    *("pika", "urllib.request", "django.contrib.staticfiles.handlers"),
    *("messaging.backends", "messaging.topology", "messaging.monitoring.readings", "messaging.admin.panels"),
    *(
        "messaging.relaying.relay",
        "messaging.consuming.consumer",
        "messaging.processing.processor",
        "messaging.processing.inbox",
        "messaging.retention",
    ),
    *("messaging.checks", "messaging.checks.databases", "messaging.conf.problems", "messaging.conf.urls"),
    *("messaging.metrics", "messaging.monitoring.metrics", "prometheus_client"),
    *("messaging.testing", "messaging.testing.draining", "messaging.supervising.__main__", "messaging.reports"),
}


def run(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    return json.loads(done.stdout)


def test_a_site_starts_without_connecting_and_without_what_a_web_process_never_uses() -> None:
    found = run(SITE + TELL)
    assert found["connected"] == []
    assert {"messaging.models", "messaging.admin.queues", "tests.app.handlers"} <= set(found["modules"])
    assert UNUSED & set(found["modules"]) == set()


def test_what_is_left_out_at_the_start_is_there_when_it_is_used() -> None:
    use = """
from django.core.checks import run_checks
settings.MESSAGING["default"]["QUEUE"] = {}
found = [message.id for message in run_checks(tags=["messaging"])]
print(json.dumps(found))
"""
    assert "messaging.E003" in run(SITE + use)


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import json, sys, messaging; print(json.dumps([name for name in sys.modules if 'messaging' in name]))"
    assert run(code) == ["messaging"]


def test_the_demo_keeps_its_data_where_its_own_user_alone_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    environment = {**os.environ, "DATA_DIR": str(folder), "ENV_FILE": "", "DATABASE_URL": ""}
    environment |= {"DJANGO_SETTINGS_MODULE": "project.settings", "MESSAGING_URL": "database://"}
    subprocess.run(
        [sys.executable, "-c", "import project.settings"], cwd=ROOT, env=environment, check=True, umask=0o022
    )
    assert folder.stat().st_mode & 0o077 == 0
