"""docs/how-to/django-tasks.md: what it shows works in a site of its own, and its table of options is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import django
import pytest

from messaging.conf import rules
from tests.docs.blocks import DOCS, Block, blocks_of
from tests.site import ROOT

PAGE = DOCS / "how-to" / "django-tasks.md"
BLOCKS = [block for block in blocks_of(PAGE) if block.kind == "tasks"]
SITE = """
SECRET_KEY = "small"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "messaging", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
MESSAGING = {"default": {"URL": "amqp://nobody@nowhere.invalid"}}
"""


@pytest.mark.parametrize("settings", [one for one in BLOCKS if one.title == "settings.py"], ids=str)
def test_what_the_page_shows_works(settings: Block, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(SITE + settings.text)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    for block in BLOCKS:
        if block.title != "settings.py":
            text = block.text if django.VERSION >= (6, 0) else block.text.replace("django.tasks", "django_tasks")
            (tmp_path / block.title).write_text(text)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "DJANGO_SETTINGS_MODULE": "settings"}
    for command in (["check"], ["test", "shop"]):
        done = subprocess.run(
            [sys.executable, "-m", "django", *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 1 test" in done.stderr


def test_the_table_of_options_is_complete() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.read_text(), re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(rules.TASKS) <= told
