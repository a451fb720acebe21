"""Commands in odd surroundings: each works, or says in one sentence what is in the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from tests.site import ROOT, Site, SiteFactory
from tests.waiting import wait_until

HANDLERS = """
from messaging import handler

@handler("work")
def work(message):
    print("printed", flush=True)
"""
EMBEDDED: dict[str, Any] = {"broker": "database://", "handlers": HANDLERS}


def in_shell(site: Site, command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], env=site.env | env, cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.mode(58)
def test_with_closed_streams(site: SiteFactory) -> None:
    made = site(**EMBEDDED)
    made.manage("topology")
    for command in ("consume --burst >&-", "relay --burst <&- >&- 2>&-", "topology --check >&-"):
        done = in_shell(made, f"exec {sys.executable} manage.py {command}")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.mode(58)
def test_where_the_output_has_no_letters_for_a_name(site: SiteFactory) -> None:
    made = site(**EMBEDDED, queues={"bücher": {}}, env={"PYTHONIOENCODING": "ascii"})
    assert "b\\xfccher" in made.manage("topology").stdout
    assert made.manage("consume", "--burst").returncode == 0


@pytest.mark.mode(58)
def test_where_the_locale_has_no_letters_for_a_name(site: SiteFactory) -> None:
    made = site(**EMBEDDED, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert "Requeued 0 messages" in made.manage("requeue_messages", "--queue", "bücher").stdout
    done = in_shell(made, rf"exec {sys.executable} manage.py requeue_messages --queue $(printf '\377')")
    assert done.returncode == 1
    assert done.stderr == "requeue_messages: an argument is not UTF-8, as all names here are.\n"


@pytest.mark.mode(58)
def test_from_a_working_directory_with_files_that_are_named_like_modules(site: SiteFactory, tmp_path: Path) -> None:
    made = site(**EMBEDDED)
    for name in ("select", "queue", "secrets", "logging"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    done = in_shell(made, f"exec {sys.executable} {ROOT / 'manage.py'} consume --burst", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.mode(58)
def test_with_a_manage_py_that_changes_its_directory(site: SiteFactory, tmp_path: Path) -> None:
    made = site(**EMBEDDED)
    (tmp_path / "site").mkdir()
    manage = (ROOT / "manage.py").read_text()
    moved = f"import os; os.chdir({str(made.folder)!r}); sys.path.insert(0, {str(ROOT)!r})"
    (tmp_path / "site" / "manage.py").write_text(manage.replace("import sys\n", f"import sys\n{moved}\n", 1))
    done = in_shell(made, f"exec {sys.executable} site/manage.py consume --burst", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_supervisors_lines_go_where_the_site_logs(site: SiteFactory, tmp_path: Path) -> None:
    log = tmp_path / "site.log"
    made = site(**EMBEDDED, env={"LOG_FILE": str(log)})
    running = made.start("consume", "--no-reload")
    running.wait_for_output("Consuming effects, work")
    wait_until(lambda: log.exists() and "consuming effects, work" in log.read_text())
    assert running.stop() == 0
    assert "Stopping: what runs may finish" in log.read_text()
    assert "Stopping" not in running.output


@pytest.mark.django_db
def test_where_nothing_is_handled_it_names_the_relay(settings: Settings) -> None:
    settings.MESSAGING = {"quiet": {"URL": "database://"}}
    with pytest.raises(CommandError, match=r"run `manage\.py relay`"):
        call_command("consume", using="quiet")


def test_on_windows_it_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from messaging.management.commands import consume

    monkeypatch.setattr(consume, "is_posix", lambda: False)
    with pytest.raises(CommandError, match=r"consume needs Linux, macOS or another POSIX system"):
        call_command("consume")
