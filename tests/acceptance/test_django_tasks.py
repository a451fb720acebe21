"""Django's tasks between real processes that are killed: each has its effect once, and its result."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import django
import pytest

from tests.site import Site, SiteFactory
from tests.waiting import wait_until

if django.VERSION < (6, 0) and find_spec("django_tasks") is None:
    pytest.skip("django-tasks is not installed", allow_module_level=True)

BACKEND = "messaging.django_tasks.MessagingBackend"
OPTIONS = {"max_attempts": 5, "backoff": 0.1}
TASKS = {
    "default": {"BACKEND": BACKEND, "OPTIONS": OPTIONS},
    "long": {"BACKEND": BACKEND, "OPTIONS": {**OPTIONS, "atomic": False}},
}

MODULE = """
import os, pathlib, signal
import django
from tests.app.models import Effect

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task

FOLDER = pathlib.Path(os.environ["DATA_DIR"])


@task(takes_context=True)
def once(context, key):
    Effect.objects.create(key=key, value=str(context.attempt))
    die(key)
    return {"key": key, "attempt": context.attempt}


@task(backend="long", takes_context=True)
def repeatable(context, key):
    Effect.objects.get_or_create(key=key)
    die(key)
    return {"key": key, "attempt": context.attempt}


@task()
async def asynchronous(key):
    await Effect.objects.acreate(key=key)
    return key


def die(key):
    if key.startswith("deadly") and not (FOLDER / key).exists():
        (FOLDER / key).touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(
    params=[
        ("sqlite", "database://"),
        pytest.param(("postgres", None), marks=[pytest.mark.slow, pytest.mark.broker]),
        pytest.param(("mariadb", None), marks=[pytest.mark.slow, pytest.mark.broker]),
    ],
    ids=["embedded", "rabbitmq with postgres", "rabbitmq with mariadb"],
)
def made(request: pytest.FixtureRequest, site: SiteFactory) -> Site:
    database, broker = request.param
    made = site(database, handlers="", broker=broker, options={"LEASE": 2}, env={"TASKS": json.dumps(TASKS)})
    (made.folder / "extra" / "tasks.py").write_text(MODULE)
    return made


def enqueue(made: Site, *names: str) -> dict[str, str]:
    """Enqueue tasks, given as "task key", in one transaction; their ids by that."""
    calls = [f'    print("{name}", {name.split()[0]}.enqueue("{name.split()[1]}").id, sep="=")' for name in names]
    code = ["from django.db import transaction", "from extra.tasks import *", "with transaction.atomic():", *calls]
    return dict(line.split("=") for line in made.shell("\n".join(code)).splitlines() if "=" in line)


def results(made: Site, ids: dict[str, str]) -> dict[str, list[Any]]:
    """Status, attempts, return value and errors of each, as another process sees them."""
    code = [
        "import json, extra.tasks",
        f"ids = {ids!r}",
        "found = {name: getattr(extra.tasks, name.split()[0]).get_result(id) for name, id in ids.items()}",
        "def tell(one):",
        "    errors = [error.exception_class_path for error in one.errors]",
        "    return [str(one.status), one.attempts, one.return_value if one.is_finished else None, errors]",
        "told = {name: tell(one) for name, one in found.items()}",
        "print('told', json.dumps(told))",
    ]
    [line] = [line for line in made.shell("\n".join(code)).splitlines() if line.startswith("told")]
    told: dict[str, list[Any]] = json.loads(line.partition(" ")[2])
    return told


def effects(made: Site) -> dict[str, int]:
    # With the table's name, since KEY alone is a word of MariaDB's own.
    counted = made.sql("SELECT app_effect.key, COUNT(*) FROM app_effect GROUP BY app_effect.key")
    return {str(key): int(count) for key, count in counted}


def test_a_task_whose_process_is_killed_runs_again_and_has_one_effect(made: Site) -> None:
    died = ["messaging.exceptions.ProcessDied"]
    ids = enqueue(made, "once deadly-one", "repeatable deadly-two", "once calm", "asynchronous fine")
    assert set(results(made, ids)["once calm"][:1]) == {"READY"}
    consumer = made.start("consume", "--concurrency=1")
    wait_until(lambda: made.states().get("processed") == 4, what="all tasks to be processed")
    assert consumer.stop() == 0
    found = results(made, ids)
    assert found.pop("once calm")[0] == "SUCCESSFUL"  # it may have run beside one that killed its process
    assert found == {
        "once deadly-one": ["SUCCESSFUL", 2, {"key": "deadly-one", "attempt": 2}, died],
        "repeatable deadly-two": ["SUCCESSFUL", 2, {"key": "deadly-two", "attempt": 2}, died],
        "asynchronous fine": ["SUCCESSFUL", 1, "fine", []],
    }
    assert effects(made) == {"deadly-one": 1, "deadly-two": 1, "calm": 1, "fine": 1}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["processor.handled", "processor.committed", "consumer.acked"])
@pytest.mark.parametrize("name", ["once calm", "repeatable calm"])
def test_killed_between_a_tasks_end_and_its_acknowledgement_it_has_one_effect_and_its_value(
    made: Site, point: str, name: str
) -> None:
    marker = made.folder / "kill"
    marker.touch()
    ids = enqueue(made, name)
    armed = {"MESSAGING_KILL_AT": point, "MESSAGING_KILL_FILE": str(marker)}
    consumer = made.start("consume", "--concurrency=1", env=armed)
    wait_until(lambda: not marker.exists() and made.states() == {"processed": 1})
    assert consumer.stop() == 0
    [status, _, value, _] = results(made, ids)[name]
    assert (status, value["key"]) == ("SUCCESSFUL", "calm")
    assert effects(made) == {"calm": 1}
