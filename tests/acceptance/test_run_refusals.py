"""What keeps `make run` from starting is said in one sentence, with the exit status 1 and without a traceback."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.terminal import environment_of, made_by_make
from tests.site import ROOT
from tools import environment
from tools.services import free_ports


def refusal(folder: Path, env: Mapping[str, str], *command: str) -> str:
    """Run the runner and return the one line that says why it did not start."""
    done = subprocess.run(
        command or [sys.executable, "-m", "tools.run"],
        cwd=ROOT,
        env=environment_of(folder, **({"PORT": str(free_ports(1)[0])} | dict(env))),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    (sentence,) = done.stderr.splitlines()
    return sentence


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """Somebody else's server; gives its port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@made_by_make
def test_a_port_in_use_is_named_with_another_one(tmp_path: Path) -> None:
    with listener() as port:
        said = refusal(tmp_path, {"PORT": str(port)})
    assert said.startswith(f"Port {port} is in use: choose another one, such as `make run PORT=")


@made_by_make
@pytest.mark.parametrize("port", ["abc", "0", "70000", "8000.5", "-1"])
def test_what_is_no_port_is_named(tmp_path: Path, port: str) -> None:
    assert f"PORT={port} is no port" in refusal(tmp_path, {"PORT": port})


@made_by_make
@pytest.mark.parametrize("url", ["shop", "postgres://user:secret@host:port/shop", "oracles://shop"])
def test_a_database_url_that_cannot_be_read_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    said = refusal(tmp_path, {"DATABASE_URL": url})
    assert said.startswith("DATABASE_URL cannot be read; it should look like postgres://")
    assert "secret" not in said


@made_by_make
def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    said = refusal(tmp_path, {"DATABASE_URL": f"postgres://user:secret@127.0.0.1:{port}/shop"})
    assert said.startswith(f"The database “shop” at 127.0.0.1:{port} (DATABASE_URL) cannot be used: ")
    assert "refused" in said
    assert "secret" not in said


@made_by_make
def test_a_locked_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        said = refusal(tmp_path, {"DATABASE_URL": f"sqlite:///{path}?timeout=1"})
    assert said.startswith(f"The database {path} is locked: another program is writing to it")


@made_by_make
def test_a_database_that_is_newer_than_the_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app, name, applied)")
        connection.execute("INSERT INTO django_migrations (app, name) VALUES ('messaging', '9999_far_ahead')")
    said = refusal(tmp_path, {"DATABASE_URL": f"sqlite:///{path}"})
    assert said.startswith(f"The database {path} is newer than this code")
    assert "messaging.9999_far_ahead" in said


@made_by_make
def test_an_env_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"PORT=\xff\xfe")
    assert refusal(tmp_path, {"ENV_FILE": str(path)}).startswith(f"{path} cannot be read: ")


@made_by_make
def test_a_folder_that_cannot_hold_the_data_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    assert refusal(tmp_path, {"DATA_DIR": str(taken)}) == f"{taken} cannot be used: File exists."


@made_by_make
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        said = refusal(tmp_path, {})
    finally:
        tmp_path.chmod(0o700)
    assert said == f"{tmp_path / 'var'} cannot be used: Permission denied."


def test_an_unreachable_package_index_is_told_from_other_troubles(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_RETRIES": "0"}
    said = refusal(tmp_path, nowhere | {"VENV": str(tmp_path / "environment"), "PIP_NO_INDEX": ""})
    assert said.startswith("pip could not reach the package index to install requirements.txt")


def test_a_python_that_is_too_old_is_turned_away_before_it_reads_anything_else(tmp_path: Path) -> None:
    old = "import sys; sys.version_info = (3, 8, 18); import tools"
    said = refusal(tmp_path, {}, sys.executable, "-c", old)
    assert said.startswith("Python 3.8 is too old: 3.11 or newer is needed.")


def test_a_python_without_venv_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "VENV", tmp_path / "environment")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="apt-get install python3-venv"):
        environment.ensure_environment()
