"""Virtual environments of programs other than ours: made when missing, made anew when their lists change."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class NotInstalled(Exception):
    """An environment could not be made; the text says why.

    Args:
        text: in a sentence.
        said: all that pip said.
    """

    def __init__(self, text: str, said: str) -> None:
        super().__init__(text)
        self.said = said


def made(venv: Path, requirements: Path, same: str = "") -> Path:
    """The Python of a virtual environment that has what a list names; one process makes it, others wait for it.

    Args:
        venv: its folder.
        requirements: the list.
        same: lines of versions, such as "Django==5.2.1", for what the list and what it needs leave open.

    Raises NotInstalled.
    """
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_name(f"{venv.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = hashlib.sha256(requirements.read_bytes() + f"{same}{sys.version}{venv}".encode()).hexdigest()
        stamp = venv / "made-of.sha256"
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(venv, requirements, same)
            stamp.write_text(wanted)
    return venv / "bin" / "python"


def _make(venv: Path, requirements: Path, same: str) -> None:
    print(f"Installing what {requirements.name} lists into {venv} ...", flush=True)
    constraints = venv.with_name(f"{venv.name}-constraints.txt")
    constraints.write_text(same)
    _run([sys.executable, "-m", "venv", "--clear", str(venv)])
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-c", str(constraints), "-r", str(requirements)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        why = said.splitlines()[-1] if said else "it did not say why"
        raise NotInstalled(f"{' '.join(command)} failed: {why}", said)
