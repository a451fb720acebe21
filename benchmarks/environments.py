"""The peers' virtual environments, one each, in var/bench: made when missing, made anew when their lists change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measuring import Broken
from tools.environment import ROOT

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
    requirements = Path(__file__).with_name(f"requirements-{peer}.txt")
    venv = FOLDER / f"venv-{peer}"
    same = "".join(f"{name}=={version(name)}\n" for name in SHARED)
    wanted = hashlib.sha256(requirements.read_bytes() + f"{same}{sys.version}{venv}".encode()).hexdigest()
    stamp = venv / "made-of.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing what {requirements.name} lists into {venv} ...", flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        constraints = FOLDER / f"constraints-{peer}.txt"
        constraints.write_text(same)
        _run([sys.executable, "-m", "venv", "--clear", str(venv)])
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "-c", str(constraints), "-r", str(requirements)])
        stamp.write_text(wanted)
    return venv / "bin" / "python"


def pinned() -> list[str]:
    """The peers' packages and versions, such as "celery 5.7.0"."""
    lists = sorted(Path(__file__).parent.glob("requirements-*.txt"))
    lines = [line for path in lists for line in path.read_text().splitlines()]
    return [line.replace("==", " ") for line in lines if "==" in line]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Broken(f"{' '.join(command)} failed: {said[-1] if said else 'it did not say why'}")
