"""What is said of health: from the files of processes, within a time of our own, and to whom."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.test import Client
from pytest_django import DjangoDbBlocker

from messaging.monitoring import health
from messaging.supervising import state
from messaging.supervising.state import StateFile, states
from tests.waiting import wait_until

WELL = {"status": "running 0, waiting 0"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(state.VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


def consumer(**told: Any) -> StateFile:
    file = StateFile.create("consumer", "default", health.site(), 1)
    assert file is not None
    now = time.monotonic()
    child = {"pid": 7, "runs": True, "started": now, "heard": now, "next": 0.0, "told": {**WELL, "stepped": now}}
    child |= {name: told.pop(name) for name in list(told) if name in child}
    child["told"] |= told
    file.write({"children": [child], "stopping": False})
    return file


def levels(kind: health.Kind = "consumer") -> list[tuple[str, str]]:
    return [(check.name, check.level) for check in health.of_processes(kind)]


@pytest.mark.parametrize(
    ("told", "level", "words"),
    [
        ({}, "ok", "running 0"),
        ({"status": "waiting for the broker"}, "warning", "waiting for the broker"),
        ({"status": "waiting for the database"}, "warning", "waiting for the database"),
        ({"heard": -100}, "critical", "no sign of life for 100 s"),
        ({"heard": None, "started": -5}, "warning", "It starts"),
        ({"heard": None, "started": -1000}, "critical", "It starts"),
        ({"runs": False, "next": 5}, "warning", "another one starts in 5 s"),
        ({"stepped": -100}, "warning", "waited for 100 s"),
        ({"stepped": -1000}, "critical", "waited for 1000 s"),
        ({"stepped": None}, "warning", "nothing has been consumed yet"),
    ],
)
def test_a_process_lives_and_is_ready_or_not(
    told: dict[str, Any], level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now))  # ages are told in words
    values = {name: now + value if type(value) is int else value for name, value in told.items()}
    file = consumer(**values)
    found = health.of_processes("consumer")
    assert [(check.name, check.level) for check in found] == [("consumer", "ok"), ("process", level)]
    assert words in found[1].words
    file.close()
    assert levels() == [("consumer", "critical")], "none is there"


def test_a_relay_says_what_it_waits_for() -> None:
    file = StateFile.create("relay", "default", health.site())
    assert file is not None
    for status, level in (("", "ok"), ("broker: Connection refused", "warning"), ("database: gone", "warning")):
        file.write({"relay": status, "looped": time.monotonic()})
        assert levels("relay") == [("relay", level)]
    assert levels("consumer") == [("consumer", "critical")]
    file.close()
    inside = consumer(relay="broker: Connection refused", looped=time.monotonic())
    assert levels("relay") == [("relay", "warning")], "one inside of a consumer counts"
    inside.close()


def test_one_that_was_killed_is_told_from_one_that_ended(folder: Path) -> None:
    code = (
        "import os, signal; from messaging.supervising.state import StateFile; "
        f"file = StateFile.create('relay', 'default', {health.site()!r}); file.write({{'relay': '', 'looped': 0}}); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    [check] = health.of_processes("relay")
    assert (check.level, check.words) == ("critical", "It ended without signing off.")
    successor = StateFile.create("relay", "default", health.site())
    assert successor is not None
    successor.write({"relay": "", "looped": time.monotonic()})
    assert levels("relay") == [("relay", "ok")], "who follows it clears up"
    successor.close()
    assert list(folder.iterdir()) == []


def test_an_old_file_of_a_process_that_lives_says_that_it_hangs() -> None:
    file = consumer()
    assert health.worst(health.of_processes("consumer", hung=1e-9)) == "critical"
    file.close()


def test_sites_do_not_see_each_other() -> None:
    file = StateFile.create("consumer", "default", "another")
    assert file is not None
    file.write({})
    assert levels() == [("consumer", "critical")]
    assert len(states("another")) == 1
    file.close()


def test_a_folder_of_somebody_elses_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(state.VARIABLE)
    monkeypatch.setattr(state, "_parents", lambda: [str(tmp_path)])
    own = tmp_path / f"messaging-{os.getuid()}"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    assert StateFile.create("relay", "default", "site") is None
    own.rmdir()
    own.symlink_to(tmp_path)
    assert StateFile.create("relay", "default", "site") is None


def test_nowhere_to_write_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, "/proc/nowhere")
    assert StateFile.create("relay", "default", "site") is None
    assert states("site") == []
    [check] = health.of_processes("relay")
    assert "MESSAGING_STATE_DIR" in check.fix


def run(*arguments: str) -> tuple[int, str]:
    from io import StringIO

    output = StringIO()
    try:
        call_command("messaging_health", *arguments, stdout=output)
    except SystemExit as end:
        return int(str(end.code)), output.getvalue()
    return 0, output.getvalue()


def test_the_command_says_it_with_its_exit_status() -> None:
    file = consumer(status="waiting for the broker")
    assert run("--only", "consumer")[0] == 1
    assert run("--only", "consumer", "--live")[0] == 0
    status, text = run("--only", "consumer", "--json")
    assert (status, json.loads(text)["status"]) == (1, "warning")
    file.close()
    status, text = run("--only", "consumer", "--live")
    assert status == 2
    assert text.startswith("critical consumer: No consumer of this site")


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """A site whose only database is a server that takes connections and says nothing."""
    with django_db_blocker.unblock(), socket.create_server(("127.0.0.1", 0)) as listener:
        own = {**connections.settings["default"], "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1"}
        own |= {"PORT": listener.getsockname()[1], "NAME": "mute", "OPTIONS": {"connect_timeout": 120}}
        monkeypatch.setitem(connections.settings, "mute", own)
        monkeypatch.setattr(health, "known", lambda: ["mute"])
        yield


@pytest.mark.usefixtures("mute")
def test_a_database_that_says_nothing_is_not_waited_for(client: Client) -> None:
    began = time.monotonic()
    [found] = health.of_web(0.5)
    assert time.monotonic() - began < 60, "half a second, on a machine that has little else to do"
    assert (found.level, found.words) == ("warning", "It does not answer within 0.5 s.")
    threads = list(health._Asking._under_way.values())
    health.of_web(0.1)
    assert list(health._Asking._under_way.values()) == threads, "who asks again waits for the same answer"
    response = client.get("/messaging/health/ready/")
    assert (response.status_code, response.json()) == (503, {"status": "warning"}), "no details for strangers"
    assert client.get("/messaging/health/live/").json() == {"status": "ok"}


def test_a_probe_neither_logs_in_nor_opens_a_transaction(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert client.get("/messaging/health/live/").json() == {"status": "ok"}, "no database may be asked"


@pytest.mark.django_db(transaction=True)
def test_details_take_the_sites_token(client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SECONDS", 30.0)
    monkeypatch.setattr(health.of_web, "__defaults__", (30.0,))
    monkeypatch.setattr(health.of_site, "__defaults__", (30.0, health.HUNG))
    url = "/messaging/health/ready/"
    assert client.get(url).json() == {"status": "ok"}
    assert client.get(url, headers={"Authorization": "Bearer "}).json() == {"status": "ok"}, "no token, no details"
    settings.MESSAGING_CONSOLE = {"HEALTH_TOKEN": "a secret"}
    assert client.get(url, headers={"Authorization": "Bearer another"}).json() == {"status": "ok"}
    told = client.get(url, headers={"Authorization": "Bearer a secret"}).json()
    assert told["checks"][0]["name"] == "database"
    assert client.post(url).status_code == 405


@pytest.mark.django_db(transaction=True)
def test_the_whole_site_is_told_with_its_conditions(settings: Any) -> None:
    from messaging.models import QueueControl

    settings.MESSAGING = {"default": {"URL": "database://"}}
    found = health.of_site(30.0)
    assert [(check.name, check.level) for check in found] == [("database", "ok")]
    settings.MESSAGING_CONSOLE = {"ALERTS": {"long_pause": 0.001}}
    QueueControl.objects.create(queue="work", paused=True)
    wait_until(lambda: health.worst(health.of_site(30.0)) == "warning", what="the pause")
