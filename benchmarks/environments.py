"""The peers' virtual environments, one each, in var/bench: made when missing, made anew when their lists change."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from benchmarks.measuring import Broken
from tools.environment import ROOT
from tools.venvs import NotInstalled, made

FOLDER = ROOT / "var" / "bench"
SHARED = ("Django", "psycopg", "psycopg-binary")  # in the versions that ours has
_failures: dict[str, str] = {}  # by peer: what cannot be installed is not tried again


def python_of(peer: str) -> Path:
    """The Python of a peer's environment, which has what `requirements-<peer>.txt` lists. Raises Broken."""
    if peer in _failures:
        raise Broken(_failures[peer])
    try:
        return _made(peer)
    except Broken as error:
        _failures[peer] = str(error)
        raise


def _made(peer: str) -> Path:
    same = "".join(f"{name}=={version(name)}\n" for name in SHARED)
    try:
        return made(FOLDER / f"venv-{peer}", Path(__file__).with_name(f"requirements-{peer}.txt"), same)
    except NotInstalled as error:
        raise Broken(str(error)) from error


def pinned() -> list[str]:
    """The peers' packages and versions, such as "celery 5.7.0"."""
    lists = sorted(Path(__file__).parent.glob("requirements-*.txt"))
    lines = [line for path in lists for line in path.read_text().splitlines()]
    return [line.replace("==", " ") for line in lines if "==" in line]
