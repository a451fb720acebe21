"""`TASKS` is read without a surprise: what is wrong is told by a check, and a site without it has no cost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pytest_django import Settings

from messaging.exceptions import ConfigurationError
from messaging.handlers import registry
from tests.django_tasks import jobs
from tests.django_tasks.conftest import BACKEND, Use
from tests.site import ROOT


def found(alias: str = "default") -> list[tuple[str, str]]:
    from messaging.django_tasks import task_backends

    return [(str(problem.id), f"{problem.msg} {problem.hint}") for problem in task_backends[alias].check()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefx": "x"}, 'has no key "prefx"'),
        ({"timeout": -1}, '["timeout"] cannot be used'),
        ({"max_priority": 0}, '["max_priority"] cannot be used. It is a whole number from 1 to 255'),
        ({"prefix": "a\nb"}, '["prefix"] cannot be used'),
        ({"atomic": False, "batch": 5}, 'together with "atomic": False'),
    ],
)
def test_wrong_options_are_told_and_nothing_is_enqueued(use: Use, options: dict[str, Any], words: str) -> None:
    assert use(**options) == []
    [(identity, text)] = found()
    assert identity == "messaging.E050"
    assert words in text
    jobs.noop.using()  # a task can be made all the same, or nothing could be imported
    with pytest.raises(ConfigurationError, match="OPTIONS"):
        jobs.noop.enqueue()
    assert registry.all() == []


def test_options_that_are_no_dict_are_told(settings: Settings) -> None:
    settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": ["x"]}}
    assert [identity for identity, _ in found()] == ["messaging.E050"]


def test_two_backends_do_not_share_a_queue(use: Use) -> None:
    use(others={"mails": {"BACKEND": BACKEND}})
    assert registry.queues("default") == ["tasks.default", "tasks.mails.default", "tasks.queue_1"]
    assert found() == found("mails") == []
    use(others={"mails": {"BACKEND": BACKEND, "OPTIONS": {"prefix": "tasks."}}})
    assert found() == []
    [(identity, text)] = found("mails")
    assert identity == "messaging.E051"
    assert '"tasks.default"' in text


def test_queue_names_are_such_as_the_broker_takes(use: Use) -> None:
    use(queues=["x" * 250, "a\nb", "fine"])
    assert [identity for identity, _ in found()] == ["messaging.E051"] * 2
    use(queues=["x"], prefix="amq.")
    assert [identity for identity, _ in found()] == ["messaging.E051"]


def test_priorities_that_the_embedded_broker_ignores_are_told(use: Use) -> None:
    use(max_priority=5)
    assert [identity for identity, _ in found()] == ["messaging.W050"]


SITE = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["messaging"], SECRET_KEY="x", MESSAGING={"default": {}}, TASKS=%r,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
from messaging.handlers import registry
print([name for name in sys.modules if "tasks" in name and name.startswith(("messaging", "django_tasks"))])
print(registry.queues("default"))
"""


def started(tasks: Any) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SITE % (tasks,)], capture_output=True, text=True, cwd=ROOT, check=True, timeout=240
    )
    return done.stdout.splitlines()


def test_a_site_without_tasks_loads_nothing_for_them() -> None:
    assert started({}) == ["[]", "[]"]


def test_a_site_with_tasks_consumes_their_queues_without_a_handler_of_its_own() -> None:
    modules, queues = started({"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mails"]}})
    assert "messaging.django_tasks.running" in modules
    assert queues == "['tasks.default', 'tasks.mails']"


def test_celery_finds_no_module_of_tasks_here() -> None:
    assert not list((ROOT / "messaging").rglob("tasks.py"))
    assert not list((ROOT / "messaging").rglob("tasks/__init__.py"))
