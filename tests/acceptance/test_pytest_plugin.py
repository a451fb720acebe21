"""The pytest plugin, found by its entry point, and docs/how-to/test.md, in projects that know nothing of this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.site import ROOT

PAGE = ROOT / "docs" / "how-to" / "test.md"
FILE = re.compile(r'^<!-- testing -->\n```python title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)

SETTINGS = """
SECRET_KEY = "small"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "messaging", "orders"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MAILERS = {"default": {}}  # which Django 6.1 wants; tests keep what is mailed in memory
DATABASES = {
    name: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"} for name in ("default", "archive")
}
MESSAGING = {"default": {"URL": "amqp://nobody@nowhere.invalid", "DATABASES": ["default", "archive"]}}
"""

HANDLERS = """
from messaging import handler, publish

@handler("billing", "orders.placed")
def bill(message):
    publish("bills.sent", {"order": message.payload["order"]})

@handler("archive", "bills.*", database="archive")
def keep(message):
    pass
"""

TESTS = """
import pytest
from django.test import SimpleTestCase, TestCase
from messaging import publish
from messaging.models import ProcessedMessage
from messaging.testing import assert_not_published, drain, published

def test_inside_a_transaction(published_messages, assert_published, assert_not_published, drain_messages):
    publish("stock.taken", 1)
    drain_messages()
    assert [row.routing_key for row in published_messages()] == ["stock.taken"]
    assert_published("stock.taken", 1)
    assert_not_published("orders.placed")

@pytest.mark.django_db(databases=["default", "archive"])
def test_two_databases(assert_published, drain_messages):
    publish("orders.placed", {"order": 17})
    assert [row.queue for row in drain_messages().processed] == ["billing", "archive"]
    assert ProcessedMessage.objects.using("archive").count() == 1
    publish("orders.placed", 1, database="archive")
    assert len(assert_published("orders.placed", count=2)) == 2

def test_a_database_that_the_test_may_not_use_is_named(drain_messages):
    publish("orders.placed", {"order": 17})
    with pytest.raises(AssertionError, match="'archive'"):
        drain_messages()

def test_without_a_transaction(transactional_db, published_messages, drain_messages):
    publish("stock.taken", 1)
    assert drain_messages().sent_elsewhere == published_messages()

class InTestCase(TestCase):
    def test_functions_need_no_fixture(self):
        publish("stock.taken", 1)
        drain()
        self.assertEqual(len(published()), 1)

class WithoutDatabase(SimpleTestCase):
    def test_it_is_told_so_rather_than_that_nothing_was_published(self):
        with self.assertRaisesRegex(AssertionError, "are not allowed in SimpleTestCase"):
            assert_not_published()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder, beside one where the package's entry points are installed."""
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    installed = tmp_path / "installed" / "django_durable_messaging-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: django-durable-messaging\nVersion: 0\n")
    lines = [f"{name} = {module}\n" for name, module in entry_points.items()]
    (installed / "entry_points.txt").write_text("[pytest11]\n" + "".join(lines))
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def django_project(project: Path) -> Path:
    """A project with an empty app, `orders`."""
    (project / "orders").mkdir()
    (project / "orders" / "__init__.py").touch()
    (project / "small_settings.py").write_text(SETTINGS)
    (project / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = small_settings\n")
    return project


def run(project: Path, *arguments: str) -> str:
    """What a Python module says there, with every warning an error; fails if it does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", *arguments],
        cwd=project,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(project), str(project.parent / "installed"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_pytest(project: Path, *arguments: str) -> str:
    return run(project, "pytest", "-W", "error", "-p", "no:cacheprovider", *arguments)


def test_its_fixtures_work_with_plain_pytest_django(django_project: Path) -> None:
    (django_project / "orders" / "handlers.py").write_text(HANDLERS)
    (django_project / "test_orders.py").write_text(TESTS)
    assert "6 passed" in run_pytest(django_project)


def test_the_examples_of_the_page_pass_in_both_runners(django_project: Path) -> None:
    files = {match["name"]: match["text"] for match in FILE.finditer(PAGE.read_text())}
    assert len(files) == PAGE.read_text().count("```") / 2
    for name, text in files.items():
        (django_project / name).write_text(text)
    names = [name for name in files if "test" in name]
    assert len(names) == 3
    assert "6 passed" in run_pytest(django_project, *names)
    assert "Ran 3 tests" in run(django_project, "django", "test", "orders.tests", "--settings=small_settings")


def test_a_project_without_django_settings_does_not_notice_it(project: Path) -> None:
    (project / "test_plain.py").write_text(
        "import sys\n\ndef test_nothing_was_imported():\n    assert 'messaging.pytest_plugin' in sys.modules\n"
        "    assert not {name for name in sys.modules if name.startswith(('django.db', 'messaging.')) } "
        "- {'messaging.pytest_plugin'}\n"
    )
    assert "1 passed" in run_pytest(project, "-p", "no:django")


def test_pytest_lists_its_fixtures_with_what_they_do(project: Path) -> None:
    said = run_pytest(project, "--fixtures", "-p", "no:django")
    for name in ("published_messages", "assert_published", "assert_not_published", "drain_messages"):
        assert re.search(rf"^{name} -- .*\n    `{name}\(", said, re.MULTILINE), name
