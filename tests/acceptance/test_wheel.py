"""The wheel alone, in a virtual environment that knows nothing of this checkout, puts messaging into a new site.

`MESSAGING_TEST_PYTHON` names another Python to make that environment of, such as one that a newer Django needs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import environ
import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from tests.acceptance.wheel_environment import STATES, VISIT, Environment, build, made_once
from tests.services import Database
from tests.site import ROOT

PYTHON = os.environ.get("MESSAGING_TEST_PYTHON", sys.executable)
SOURCE = ROOT / "messaging"
GUIDE = SOURCE / "README.md"
SNIPPET = re.compile(r"<!-- (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a test needs and a reader does not write: a place for static files, and no second attempt to wait for.
ARRANGED = 'STATIC_ROOT = BASE_DIR / "static"\nMESSAGING["default"]["RETRY"] = {"max_attempts": 1}\n'
REPAIRED = ('message.payload["order"]', 'message.payload.get("order", "unknown")')


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that the processes of one test run have in common, so that each thing is made once."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="module")
def built(shared: Path) -> Path:
    """A folder with the wheel, and the source distribution that it was made of."""
    return build(shared)


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, shared: Path) -> Environment:
    made = Environment(shared / "environment", wheel)
    with made_once(made.folder) as is_wanted:
        if is_wanted:
            subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(made.folder)], check=True, timeout=240)
            made.install()
            made.first_packages.write_text(made.pip("list", "--format=freeze"))
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
    assert {"messaging/py.typed", "messaging/locale/zh_Hans/LC_MESSAGES/django.mo"} < names


def test_the_source_distribution_holds_what_the_wheel_is_made_of_and_docs_deploy_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    own = {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/deploy").rglob("*") if path.is_file()}
    assert {"docs/deploy/grafana-dashboard.json", "docs/deploy/prometheus-rules.yaml"} <= shipped
    assert own == source_files() | shipped | {"messaging/README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"}


def test_the_metadata_is_valid_and_needs_django_and_pika_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Metadata.from_email(archive.read(name), validate=True)
    needed = {requirement.name for requirement in metadata.requires_dist or () if requirement.marker is None}
    assert needed == {"Django", "pika"}
    assert metadata.provides_extra == ["postgres", "mysql", "metrics", "opentelemetry", "pydantic", "msgspec"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description is not None
    assert metadata.description.strip() == GUIDE.read_text().strip()


def test_the_description_has_no_link_that_leads_nowhere_on_a_package_index() -> None:
    assert [link for link in re.findall(r"\]\(([^)]+)\)", GUIDE.read_text()) if not link.startswith("https://")] == []


def test_it_installs_with_nothing_but_django_and_pika(environment: Environment) -> None:
    said = environment.first_packages.read_text()
    names = {Requirement(line).name.lower() for line in said.splitlines() if "==" in line}
    assert names == {"django-durable-messaging", "django", "asgiref", "sqlparse", "pika"}


def test_on_sqlite_with_the_embedded_broker(environment: Environment, tmp_path: Path) -> None:
    tell_the_story(environment, tmp_path, ARRANGED)


@pytest.mark.slow
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
    manage("shell", "-c", written["publish"] + 'publish("orders.placed", {})')
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
