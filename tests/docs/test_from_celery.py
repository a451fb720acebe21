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
        with mock.patch("shop.receipts.send", side_effect=Retry(after=60)):
            self.assertEqual(len(drain(raise_errors=False).retrying), 1)
        self.assertEqual(drain(within=50).processed, [])
        self.assertEqual(len(drain(within=20).processed), 1)

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


def test_what_the_page_shows_works(tmp_path: Path) -> None:
    for block in blocks_of(PAGE):
        if block.kind == "migrated":
            path = tmp_path / block.title
            for folder in (path.parent, *path.parent.parents):
                if tmp_path in folder.parents:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / "__init__.py").touch()
            path.write_text((SITE if block.title == "settings.py" else "") + present(block))
    (tmp_path / "shop" / "tests.py").write_text(TESTS)
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
    assert f"Ran {TESTS.count('def test_')} tests" in done.stderr


def present(block: Block) -> str:
    """With the backport's name where Django has no tasks of its own."""
    return block.text if django.VERSION >= (6, 0) else block.text.replace("django.tasks", "django_tasks")


@pytest.mark.parametrize("block", find("celery"), ids=str)
def test_celery_takes_its_own(block: Block) -> None:
    compile(block.text, str(block), "exec")
    python = next(
        filter(has_celery, (Path(sys.executable), ROOT / "var" / "bench" / "venv-celery" / "bin" / "python")), ""
    )
    if not python:
        pytest.skip("needs Celery, which `make bench` installs into an environment of its own")
    code = CELERY.format(block=block.text)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


def has_celery(python: Path) -> bool:
    """Whether an environment has it."""
    return (
        python.exists()
        and not subprocess.run([python, "-c", "import celery"], capture_output=True, check=False).returncode
    )
