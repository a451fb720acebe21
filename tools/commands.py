"""Commands of a site, as a terminal would run them: `python manage.py ...`, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.environment import ROOT


class Commands:
    """Runs the commands of one site.

    Args:
        env: environment of every process; change it before starting one.
        root: where `manage.py` and the package are.
        python: the Python that they are run by.
    """

    def __init__(self, env: dict[str, str], root: Path = ROOT, python: str = sys.executable) -> None:
        self.env = env
        self.root = root
        self.python = python

    def manage(
        self,
        *arguments: str,
        check: bool = True,
        timeout: float = 240.0,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Args:
            arguments: the command, and what it is given.
            check: raise AssertionError with its output when its exit status is not 0.
            timeout: seconds until it is killed and TimeoutExpired is raised.
            env: more environment for this command.
            stdin: text for its standard input.
        """
        done = subprocess.run(
            command(arguments, self.root, self.python),
            env=self.env | dict(env or {}),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout}\n{done.stderr}"
            raise AssertionError(f"manage.py {' '.join(arguments)} ended with {done.returncode}:\n{said}")
        return done


def command(arguments: tuple[str, ...], root: Path = ROOT, python: str = sys.executable) -> list[str]:
    """The program and its arguments that run a command of the site in `root`."""
    return [python, str(root / "manage.py"), *arguments]
