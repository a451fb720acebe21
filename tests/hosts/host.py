"""A host: a project that a command of others has made, in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import environ

from tests.acceptance.wheel_environment import build, made_once, no_network
from tests.services import Database
from tests.site import ROOT, Site
from tools.janitor import Janitor
from tools.venvs import NotInstalled, made

HERE = Path(__file__).parent
FOLDER = ROOT / "var" / "hosts"
HIDDEN = ("DJANGO_", "MESSAGING_", "PYTHON", "DATABASE_URL", "VIRTUAL_ENV")
SQLITE = """
DATABASES["default"]["OPTIONS"] = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL",
}
"""


class Host(Site):
    """A site that this checkout's wheel is put into.

    Attributes:
        settings: the file whose end is written to.
    """

    def __init__(self, folder: Path, env: dict[str, str], janitor: Janitor, python: Path, settings: Path) -> None:
        super().__init__(folder, env, janitor, folder, str(python))
        self.settings = settings

    def add(self, text: str) -> None:
        """Write to the end of the settings."""
        self.settings.write_text(f"{self.settings.read_text()}\n{text}")

    def install(
        self, broker: str = "database://", database: str = "", options: Mapping[str, Any] | None = None
    ) -> None:
        """Put messaging and the shop into it.

        Args:
            broker: its URL.
            database: a URL of PostgreSQL; "" leaves the SQLite of the host's template.
            options: `OPTIONS` of that database.
        """
        shutil.copytree(HERE / "shop", self.folder / "shop", ignore=shutil.ignore_patterns("__pycache__"))
        self.add(f'INSTALLED_APPS += ["messaging", "shop"]\nMESSAGING = {{"default": {{"URL": {broker!r}}}}}\n')
        self.add('HOST_URLS, ROOT_URLCONF = ROOT_URLCONF, "shop.urls"\n')
        if not database:
            self.env["DATABASE_URL"] = f"sqlite:///{self.folder / 'db.sqlite3'}"
            self.add(SQLITE)
            return
        self.env["DATABASE_URL"] = database
        settings = settings_of(database) | ({"OPTIONS": dict(options)} if options else {})
        self.add(f'DATABASES["default"] = {settings!r}\n')

    def act(self, *calls: str) -> str:
        """Have `shop.acts` do something, such as "place(12)"."""
        return self.shell("; ".join(["from shop import acts", *(f"acts.{call}" for call in calls)]))

    def write(self, name: str, text: str) -> None:
        """Write a file of its folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def program(self, *command: str) -> str:
        """Run a program of its environment in its folder, and return what it said."""
        launcher = [str(Path(self.python).parent / command[0]), *command[1:]]
        done = subprocess.run(
            launcher, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout


class HostFactory:
    """Makes hosts.

    Args:
        folder: where they are.
        shared: a folder that all processes of the test run have in common.
        fixture: returns a fixture by its name.
    """

    def __init__(self, folder: Path, shared: Path, fixture: Callable[[str], Any]) -> None:
        self._folder, self._shared, self._fixture = folder, shared, fixture
        self._janitor = Janitor()
        self._hosts: list[Host] = []
        self._undo: list[Callable[[], None]] = []

    def __call__(self, environment: str = "plain", *start: str, settings: str = "mysite/settings.py") -> Host:
        """A new host, as its template has it.

        Args:
            environment: which `requirements-….txt` is installed.
            start: the command that makes the project; Django's own where there is none.
            settings: the file whose end is written to.
        """
        python = self._python(environment)
        folder = self._folder / uuid4().hex[:8]
        folder.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        env |= {"PYTHONUNBUFFERED": "1", "MESSAGING_TEST_SITE": folder.name, "PYTHONPATH": str(folder)}
        host = Host(folder, env, self._janitor, python, folder / settings)
        host.program(*(start or ("django-admin", "startproject", "mysite", ".")))
        self._hosts.append(host)
        return host

    def database(self) -> str:
        """The URL of an empty database of the run's PostgreSQL, for this test alone."""
        server: Database = self._fixture("postgres")
        name = f"host_{uuid4().hex[:12]}"
        self._undo.append(lambda: server.drop(name))
        return server.create(name)

    def end(self) -> None:
        """End the hosts of one test, and drop their databases."""
        while self._hosts:
            self._hosts.pop().close()
        while self._undo:
            self._undo.pop()()

    def close(self) -> None:
        """End for good."""
        self._janitor.close()

    def _python(self, environment: str) -> Path:
        """The Python of an environment that has the wheel of this checkout."""
        try:
            python = made(FOLDER / f"venv-{environment}", HERE / f"requirements-{environment}.txt")
        except NotInstalled as error:
            no_network(error.said)
            raise
        (wheel,) = build(self._shared).glob("*.whl")
        with made_once(self._shared / f"host-{environment}") as is_wanted:
            if is_wanted:
                pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
                options = ["--disable-pip-version-check", "--no-deps", "--force-reinstall", "--no-compile"]
                subprocess.run([*pip, *options, str(wheel)], check=True, timeout=240)
        return python


def settings_of(url: str) -> dict[str, Any]:
    """What Django's `DATABASES` has of a URL."""
    return dict(environ.Env.db_url_config(url))


def tell_the_story(host: Host, *consume: str) -> None:
    """Two orders are placed, one of which cannot be billed; an operator sends that round again once it can be.

    Args:
        host: with its tables.
        consume: arguments of `manage.py consume --burst`.
    """
    host.act("check()", "place(12, 13)")
    assert host.states("published") == {"pending": 2}
    told(host, *consume)
    assert host.states() == {"processed": 1, "failed": 1}
    assert host.states("published") == {"published": 3}
    host.act("look_and_requeue()")
    assert "Traceback" not in told(host, *consume, REPAIRED="1")
    assert_all_billed(host, [12, 13])


def told(host: Host, *consume: str, **env: str) -> str:
    """What `manage.py consume --burst` says."""
    done = host.manage("consume", "--burst", *consume, env=env)
    return done.stdout + done.stderr


def assert_all_billed(host: Host, orders: list[int]) -> None:
    """Each order has one bill, and nothing waits or has failed."""
    assert set(host.states()) == {"processed"}
    assert set(host.states("published")) == {"published"}
    assert sorted(number for (number,) in host.sql('SELECT "order" FROM shop_bill')) == orders
