"""The virtual environment in `.venv`: created when missing, filled when `requirements.txt` has changed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv"))


def ensure_environment() -> Path:
    """Create and fill the virtual environment as needed and return its Python. Raises SystemExit with one sentence."""
    python = VENV / "bin" / "python"
    if not _works(python):
        _create()
    wanted = hashlib.sha256((ROOT / "requirements.txt").read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing what requirements.txt lists into {VENV} ...", flush=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]
        if subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode:
            raise SystemExit("pip could not install requirements.txt; its message above says why.")
        stamp.write_text(wanted)
    return python


def read_env_file() -> dict[str, str]:
    """The values of `.env`, which the environment overrides: KEY=VALUE lines, `#` comments, optional quotes."""
    path = Path(os.environ.get("ENV_FILE", ROOT / ".env"))
    values = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("\"'")
    return values


def _works(python: Path) -> bool:
    """Whether it starts; it does not after its base Python was removed or the folder was moved."""
    try:
        return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _create() -> None:
    missing = "Python's venv module is missing: `apt-get install python3-venv` (Debian, Ubuntu), then try again."
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SystemExit(missing)
    print(f"Creating the virtual environment {VENV} ...", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The virtual environment could not be created: {done.stdout}{done.stderr}".rstrip())


if __name__ == "__main__":
    ensure_environment()
