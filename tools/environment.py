"""The virtual environment in `.venv`: created when missing, filled when a list of requirements has changed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv"))
SITE = "requirements.txt"  # enough for `make run`
DEVELOPMENT = "requirements-dev.txt"  # includes that
MARIADB = "requirements-mariadb.txt"  # includes both
LISTS = (SITE, DEVELOPMENT, MARIADB)
# What runs this also has to be what the environment was made of, or newer than the oldest supported one.
USABLE = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
UNREACHABLE = re.compile(r"from versions: none|Connection|Max retries|Name or service|timed out", re.IGNORECASE)


def ensure_environment(requirements: str = SITE) -> Path:
    """Create and fill the virtual environment as needed and return its Python.

    Args:
        requirements: the file that lists what is wanted, one of `LISTS`.

    Raises:
        SystemExit: with one sentence that says why not.
    """
    python = VENV / "bin" / "python"
    if not _works(python):
        _create()
    try:
        _fill(python, requirements)
    except PermissionError as error:
        raise SystemExit(f"There is no permission to write {error.filename}, a part of {VENV}.") from None
    return python


def read_env_file() -> dict[str, str]:
    """The values of `.env`, which the environment overrides: KEY=VALUE lines, `#` comments, optional quotes."""
    path = Path(os.environ.get("ENV_FILE", ROOT / ".env"))
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} cannot be read: {error}.") from None
    values = {}
    for line in lines:
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("\"'")
    return values


def port_of(environment: Mapping[str, str], name: str, default: int) -> int:
    """The port that a variable names. Raises SystemExit where that is none."""
    value = environment.get(name) or str(default)
    if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
        raise SystemExit(f"{name}={value} is no port: it has to be a number between 1 and 65535, such as {default}.")
    return int(value)


def _works(python: Path) -> bool:
    """Whether it starts; it does not after its base Python was removed or the folder was moved."""
    try:
        return subprocess.run([python, "-c", USABLE], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _create() -> None:
    missing = "Python's venv module is missing: `apt-get install python3-venv` (Debian, Ubuntu), then try again."
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SystemExit(missing)
    folder = VENV if VENV.exists() else VENV.parent
    if folder.exists() and not os.access(folder, os.W_OK):
        raise SystemExit(f"There is no permission to write to {folder.resolve()}: work in a copy that is yours.")
    print(f"Creating the virtual environment {VENV} ...", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The virtual environment could not be created: {done.stdout}{done.stderr}".rstrip())


def _fill(python: Path, requirements: str) -> None:
    if _stamp(requirements).exists() and _stamp(requirements).read_text() == _wanted(requirements):
        return
    print(f"Installing what {requirements} lists into {VENV} ...", flush=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(_why(requirements, done.stderr))
    for satisfied in _included(requirements):
        _stamp(satisfied).write_text(_wanted(satisfied))


def _stamp(requirements: str) -> Path:
    """Where it is written down what was installed last."""
    return VENV / f"{requirements}.sha256"


def _included(requirements: str) -> tuple[str, ...]:
    """A list of requirements and those that it includes."""
    return LISTS[: LISTS.index(requirements) + 1]


def _wanted(requirements: str) -> str:
    files = [ROOT / name for name in _included(requirements)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()


def _why(requirements: str, said: str) -> str:
    if UNREACHABLE.search(said):
        return (
            f"pip could not reach the package index to install {requirements}: "
            "check the network and pip's proxy settings, then try again."
        )
    errors = [line.partition("ERROR: ")[2] for line in said.splitlines() if line.startswith("ERROR: ")]
    return f"pip could not install {requirements}: {errors[-1] if errors else said.strip() or 'it did not say why'}"


if __name__ == "__main__":
    ensure_environment(DEVELOPMENT)
