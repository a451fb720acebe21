"""docs/how-to/from-celery.md: what it shows works in a site of its own, and Celery takes its tasks where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest

from tests.docs.blocks import DOCS, Block, blocks_of, find
from tests.site import ROOT
from tests.waiting import wait_until
from tools.janitor import Janitor

PAGE = DOCS / "how-to" / "from-celery.md"
SITE = """
SECRET_KEY = "small"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "messaging", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
MAILERS = {"default": {}}  # which Django 6.1 wants
MESSAGING = {"default": {"URL": "amqp://nobody@nowhere.invalid"}}
"""
TESTS = """
from unittest import mock

from django.core import mail
from django.core.management import call_command
from django.db import transaction
from django.test import TestCase
from messaging import Retry
from messaging.testing import assert_published, drain
from shop import imports, jobs, orders
from shop.models import Import


class PageTest(TestCase):
    def test_a_receipt_is_sent_with_the_commit(self):
        orders.place(17)
        drain()
        self.assertEqual([one.subject for one in mail.outbox], ["Your order 17"])

    def test_a_receipt_is_not_sent_after_a_rollback(self):
        with self.assertRaises(KeyError), transaction.atomic():
            orders.place(17)
            raise KeyError
        drain()
        self.assertEqual(mail.outbox, [])

    def test_reject_fails_a_task_for_good(self):
        result = jobs.send_receipt.enqueue(None)
        [row] = drain(raise_errors=False).failed
        self.assertEqual((row.attempts, row.error), (1, "There is no such order."))
        result.refresh()
        self.assertEqual(result.status, "FAILED")

    def test_retry_in_a_task_says_when(self):
        jobs.send_receipt.enqueue(17)
        with mock.patch("shop.receipts.send", side_effect=Retry(after=6000)):
            self.assertEqual(len(drain(raise_errors=False).retrying), 1)
        self.assertEqual(drain(within=5000).processed, [])
        self.assertEqual(len(drain(within=2000).processed), 1)

    def test_a_timer_on_two_hosts_has_one_effect(self):
        call_command("nightly")
        call_command("nightly")
        with mock.patch("builtins.print") as said:
            drain()
        self.assertEqual(said.call_count, 1)

    def test_the_last_part_says_that_all_is_done(self):
        imports.start(["a", "b", "c"])
        with mock.patch("builtins.print") as said:
            drain()
        [row] = assert_published("imports.done", count=1)
        said.assert_called_once_with("Import", row.payload["import"], "is done.")
        self.assertEqual(Import.objects.get().left, 0)
"""
CELERY = """
import sys, types
from celery import Celery
app = Celery("shop", broker="memory://")
app.set_default()
sys.modules["shop"] = types.SimpleNamespace(receipts=types.SimpleNamespace(send=print))
{block}
from celery.app.task import Task
from celery.contrib.django.task import DjangoTask
assert callable(send_receipt.delay) and callable(DjangoTask.delay_on_commit)
assert (Task.max_retries, app.conf.task_acks_late, app.conf.result_expires.days) == (3, False, 1)
assert (app.conf.task_default_queue, app.conf.event_exchange, app.conf.control_exchange) == (
    "celery", "celeryev", "celery"
)
send_receipt.apply(args=[17], throw=True)
"""


CELERY_SITE = """
from celery import Celery

app = Celery("shop", broker="{broker}")
app.set_default()
app.conf.broker_connection_retry_on_startup = True
app.autodiscover_tasks(["shop"], force=True)
"""
WHO_SENDS = """
import os
import sys


def send(order):
    with open("sent", "a") as file:
        file.write(f"{order} by {'worker' if 'worker' in sys.argv else 'consume'}" + os.linesep)
"""


@pytest.fixture
def celery() -> str:
    """The Python of an environment with Celery; skips where there is none."""
    python = ROOT / "var" / "bench" / "venv-celery" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs Celery, which `make bench` installs into an environment of its own")
    return str(python)


def write_site(folder: Path, *kinds: str, settings: str = SITE) -> dict[str, str]:
    """Write the files of the page, blocks of one title into one; returns the environment in which they are a site."""
    parts: dict[str, str] = {"settings.py": settings}
    for block in blocks_of(PAGE):
        if block.kind in kinds:
            path = folder / block.title
            for parent in (path.parent, *path.parent.parents):
                if folder in parent.parents:
                    parent.mkdir(parents=True, exist_ok=True)
                    (parent / "__init__.py").touch()
            parts[block.title] = parts.get(block.title, "") + present(block)
            path.write_text(parts[block.title])
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "DJANGO_SETTINGS_MODULE": "settings"}


def present(block: Block) -> str:
    """With the backport's name where Django has no tasks of its own."""
    return block.text if django.VERSION >= (6, 0) else block.text.replace("django.tasks", "django_tasks")


def said(folder: Path, env: dict[str, str], *command: str) -> str:
    """Run a command to its end and return what it says."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_the_page_shows_works(tmp_path: Path) -> None:
    env = write_site(tmp_path, "migrated")
    (tmp_path / "shop" / "tests.py").write_text(TESTS)
    said(tmp_path, env, sys.executable, "-m", "django", "check")
    told = said(tmp_path, env, sys.executable, "-m", "django", "test", "shop")
    assert f"Ran {TESTS.count('def test_')} tests" in told


def test_what_is_celerys_is_python() -> None:
    (block,) = find("celery")
    compile(block.text, str(block), "exec")


def test_celery_has_the_defaults_that_are_told(tmp_path: Path, celery: str) -> None:
    (block,) = find("celery")
    said(tmp_path, dict(os.environ), celery, "-c", CELERY.format(block=block.text))


@pytest.mark.slow
@pytest.mark.broker
def test_both_run_side_by_side_in_one_virtual_host(tmp_path: Path, celery: str, vhost_url: str) -> None:
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL"}
    here = f"""
MESSAGING["default"]["URL"] = "{vhost_url}"
DATABASES["default"] |= {{"NAME": "{tmp_path}/db.sqlite3", "OPTIONS": {options!r}}}
"""
    env = write_site(tmp_path, "migrated", "celery", settings=SITE + here)
    (tmp_path / "celery_site.py").write_text(CELERY_SITE.format(broker=vhost_url))
    (tmp_path / "shop" / "receipts.py").write_text(WHO_SENDS)
    theirs = {name: value for name, value in env.items() if name != "DJANGO_SETTINGS_MODULE"}
    theirs |= {"PYTHONPATH": str(tmp_path)}
    said(tmp_path, env, sys.executable, "-m", "django", "migrate", "--run-syncdb")
    commands = {
        "worker": ([celery, "-m", "celery", "--app=celery_site", "worker", "--pool=solo"], theirs),
        "consume": ([sys.executable, "-m", "django", "consume", "--no-reload"], env),
    }
    janitor = Janitor()
    processes = []
    try:
        for name, (command, environment) in commands.items():
            with (tmp_path / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            processes.append(process)
            janitor.watch(process.pid)
        code = "import celery_site; from shop.tasks import send_receipt; [send_receipt.delay(n) for n in range(3)]"
        said(tmp_path, theirs, celery, "-c", code)
        code = "from shop.orders import place; [place(n) for n in range(3, 6)]"
        said(tmp_path, env, sys.executable, "-m", "django", "shell", "-c", code)
        sent = tmp_path / "sent"
        wait_until(lambda: sent.exists() and len(sent.read_text().splitlines()) >= 6, what="six receipts")
        lines = sorted(sent.read_text().splitlines())
        assert lines == [*(f"{n} by worker" for n in range(3)), *(f"{n} by consume" for n in range(3, 6))]
    except AssertionError as error:
        logs = "".join((tmp_path / f"{name}.log").read_text() for name in commands)
        raise AssertionError(f"{error}\n{logs}") from error
    finally:
        janitor.close()
        for process in processes:
            process.wait()
