"""The wheel alone, in a virtual environment that knows nothing of this checkout, puts messaging into a new site.

`MESSAGING_TEST_PYTHON` names another Python to make that environment of, such as one that a newer Django needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import environ
import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from tests.services import Database, missing
from tests.site import ROOT
from tools.environment import UNREACHABLE
from tools.services import ServiceMissing

PYTHON = os.environ.get("MESSAGING_TEST_PYTHON", sys.executable)
SOURCE = ROOT / "messaging"
GUIDE = SOURCE / "README.md"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "var", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
SNIPPET = re.compile(r"<!-- (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a test needs and a reader does not write: a place for static files, and no second attempt to wait for.
ARRANGED = 'STATIC_ROOT = BASE_DIR / "static"\nMESSAGING["default"]["RETRY"] = {"max_attempts": 1}\n'
REPAIRED = ('message.payload["order"]', 'message.payload.get("order", "unknown")')

STATES = """
from messaging.models import ProcessedMessage, PublishedMessage
for kind in (ProcessedMessage, PublishedMessage):
    print("state", *kind.objects.order_by("state").values_list("state", flat=True))
"""

VISIT = """
import django, os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()

import messaging
from django.contrib.auth import get_user_model
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from django.utils import translation
from messaging.models import ProcessedMessage, PublishedMessage

assert messaging.__file__.startswith(sys.prefix), messaging.__file__
assert finders.find("messaging/admin.css").startswith(sys.prefix)
client = Client(SERVER_NAME="localhost")
client.force_login(get_user_model().objects.create_superuser("operator", "", "secret"))

def page(name, *arguments):
    answer = client.get(reverse(f"admin:{name}", args=arguments))
    assert answer.status_code == 200, (name, answer.status_code)
    return answer.content.decode()

failed = ProcessedMessage.objects.get(state="failed")
pages = [
    page("index"),
    page("app_list", "messaging"),
    page("messaging_processedmessage_changelist"),
    page("messaging_processedmessage_change", failed.pk),
    page("messaging_publishedmessage_changelist"),
    page("messaging_publishedmessage_add"),
    page("messaging_queuecontrol_changelist"),
]
assert "KeyError" in pages[3]
assert "Queues" in pages[6]
assert all("messaging/admin.css" in text for text in pages[2:]), "our own templates"
with translation.override("zh-hans"):
    assert "队列" in page("messaging_queuecontrol_changelist")
print("pages", len(pages))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a copy of the package in it."""

    folder: Path
    wheel: Path

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """Run one of its programs, outside of the checkout, and return what it said."""
        hidden = ("DJANGO_", "MESSAGING_", "PYTHON", "DATABASE_URL", "VIRTUAL_ENV")
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd or self.folder,
            env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        said = done.stdout + done.stderr
        if done.returncode and program == "pip":
            no_network(said)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}:\n{said}"
        return said

    def install(self, extra: str = "") -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", f"{self.wheel}{extra}")


def no_network(said: str) -> None:
    if UNREACHABLE.search(said):
        missing(ServiceMissing("the package index, from which this test installs Django, cannot be reached."))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, and the source distribution that it was made of."""
    folder = tmp_path_factory.mktemp("built")
    copy = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        no_network(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([PYTHON, "-m", "venv", str(folder)], check=True, timeout=120)
    made = Environment(folder, wheel)
    made.install()
    return made


@pytest.fixture
def postgres_database(postgres: Database) -> Iterator[str]:
    name = f"wheel_{uuid4().hex[:12]}"
    yield postgres.create(name)
    postgres.drop(name)


def source_files() -> set[str]:
    files = (path.relative_to(ROOT) for path in SOURCE.rglob("*") if path.is_file() and path != GUIDE)
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == source_files()
    assert any(name.endswith("/LICENSE") for name in names)
    kinds = {"messaging/py.typed", "messaging/locale/zh_Hans/LC_MESSAGES/django.mo"}
    assert kinds < names


def test_the_source_distribution_holds_what_the_wheel_is_made_of_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    own = {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    assert own == source_files() | {"messaging/README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"}


def test_the_metadata_is_valid_and_needs_django_and_pika_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Metadata.from_email(archive.read(name), validate=True)
    needed = {requirement.name for requirement in metadata.requires_dist or () if requirement.marker is None}
    assert needed == {"Django", "pika"}
    assert metadata.provides_extra == ["postgres", "mysql"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description is not None
    assert metadata.description.strip() == GUIDE.read_text().strip()


def test_the_description_has_no_link_that_leads_nowhere_on_a_package_index() -> None:
    assert [link for link in re.findall(r"\]\(([^)]+)\)", GUIDE.read_text()) if not link.startswith("https://")] == []


def test_it_installs_with_nothing_but_django_and_pika(environment: Environment) -> None:
    said = environment.run("pip", "list", "--format=freeze", "--disable-pip-version-check")
    names = {Requirement(line).name.lower() for line in said.splitlines() if "==" in line}
    assert names - {"pip", "setuptools"} == {"django-durable-messaging", "django", "asgiref", "sqlparse", "pika"}


def test_on_sqlite_with_the_embedded_broker(environment: Environment, tmp_path: Path) -> None:
    tell_the_story(environment, tmp_path, ARRANGED)


@pytest.mark.broker
@pytest.mark.postgres
def test_on_postgresql_with_rabbitmq(
    environment: Environment, tmp_path: Path, vhost_url: str, postgres_database: str
) -> None:
    environment.install("[postgres]")
    database = environ.Env.db_url_config(postgres_database)
    settings = f'DATABASES = {{"default": {database!r}}}\nMESSAGING["default"]["URL"] = {vhost_url!r}\n'
    tell_the_story(environment, tmp_path, ARRANGED + settings)


def tell_the_story(environment: Environment, folder: Path, arranged: str) -> None:
    """Publish, consume, fail, look at it in the admin, repair the handler, and requeue."""
    written = dict(SNIPPET.findall(GUIDE.read_text()))
    assert set(written) == {"shop/settings.py", "shop/handlers.py", "publish"}
    assert sum(1 for text in written.values() for line in text.splitlines() if line.strip()) <= 10

    def manage(*arguments: str) -> str:
        return environment.run("python", "-W", "error", "manage.py", *arguments, cwd=folder)

    def states() -> list[list[str]]:
        said = manage("shell", "-v", "0", "-c", STATES)
        return [line.split()[1:] for line in said.splitlines() if line.startswith("state ")]

    environment.run("django-admin", "startproject", "shop", ".", cwd=folder)
    settings, handlers = folder / "shop" / "settings.py", folder / "shop" / "handlers.py"
    settings.write_text(settings.read_text() + written["shop/settings.py"] + arranged)
    handlers.write_text(written["shop/handlers.py"])
    manage("migrate", "--verbosity=0")
    manage("makemigrations", "--check", "--dry-run")
    manage("shell", "-c", written["publish"])
    manage("shell", "-c", written["publish"].replace('{"order": 17}', "{}"))
    said = manage("consume", "--burst")
    assert "To be billed: order 17" in said
    assert states() == [["failed", "processed"], ["published"] * 2]

    assert "static files copied" in manage("collectstatic", "--no-input")
    assert (folder / "static" / "messaging" / "admin.css").is_file()
    (folder / "visit.py").write_text(VISIT)
    assert "pages 7" in environment.run("python", "visit.py", cwd=folder)

    handlers.write_text(handlers.read_text().replace(*REPAIRED))
    manage("requeue_messages", "--queue", "billing", "--reason", "the handler is repaired")
    assert "To be billed: order unknown" in manage("consume", "--burst")
    assert states() == [["processed"] * 2, ["published"] * 3]
