"""A virtual environment with the wheel in it, and what is asked inside of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.services import missing
from tests.site import ROOT
from tools.environment import UNREACHABLE
from tools.services import ServiceMissing

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "var", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)

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

    @property
    def first_packages(self) -> Path:
        """What `pip list` said when the wheel alone was installed."""
        return self.folder / "packages.txt"

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """Run one of its programs, outside of the checkout, and return what it said."""
        done = self._run([self.folder / "bin" / program, *arguments], cwd or self.folder)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{program} {' '.join(arguments)}:\n{said}"
        return said

    def install(self, extra: str = "") -> None:
        """Install the wheel and what it needs, as `pip install` does; only what is imported gets compiled."""
        self.pip("install", "--no-compile", f"{self.wheel}{extra}")

    def pip(self, command: str, *arguments: str) -> str:
        """Run our own pip on it: a second one would take longer to make than all that it installs."""
        options = ["--quiet", "--disable-pip-version-check"] if command == "install" else []
        pip = [sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python"]
        done = self._run([*pip, command, *options, *arguments], self.folder)
        if done.returncode:
            no_network(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _run(self, command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
        hidden = ("DJANGO_", "MESSAGING_", "PYTHON", "DATABASE_URL", "VIRTUAL_ENV")
        return subprocess.run(
            command,
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )


def no_network(said: str) -> None:
    if UNREACHABLE.search(said):
        missing(ServiceMissing("the package index, from which this test installs Django, cannot be reached."))


@contextlib.contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Whether `path` has yet to be made; the other test processes wait meanwhile."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = path.with_suffix(".done")
        yield not done.exists()
        done.touch()


def build(shared: Path) -> Path:
    """A folder with this checkout's wheel and source distribution, made once in what the test processes share."""
    folder = shared / "built"
    with made_once(folder) as is_wanted:
        if is_wanted:
            copy = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
            command = [sys.executable, "-m", "build", "--outdir", str(folder), str(copy)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
            if done.returncode:
                no_network(done.stdout + done.stderr)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder
