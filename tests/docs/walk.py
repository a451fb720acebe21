"""Walking through a page as a reader does: files are written, commands are typed, what is said is compared.

| Block | What happens |
|---|---|
| `title="file"` | the file is written; with ", at the end" after its name, the block is added to it |
| `sh`, or `<!-- install -->` and `sh` | typed into a shell that keeps folder and environment from block to block |
| `<!-- terminal: name -->` and `sh` | typed into a terminal of its own, which goes on running |
| `<!-- shell -->` and `python` | typed into `manage.py shell` |
| `<!-- script -->` and `python` | run as a script |
| `text` | its lines are said by the last command, in this order; `…` stands for anything |
| `<!-- output: name -->` and `text` | the same for a terminal, from where the last comparison ended |
| `<!-- does: deed -->` | one of `deeds` does by hand what the prose says |
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.docs.blocks import Block, blocks_of
from tests.waiting import wait_until
from tools.janitor import Janitor
from tools.services import free_ports

Deed = Callable[["Walk"], None]


class Walk:
    """One reader with one folder.

    Args:
        folder: the reader's, empty or with a site in it.
        broker: the address that takes the place of every `amqp://` address of the page.
        deeds: what is done by hand, by name.
        runners: how blocks of further kinds are run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: str = "",
        deeds: Mapping[str, Deed] | None = None,
        runners: Mapping[str, Callable[[Block], None]] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._broker = broker
        self._deeds = deeds or {}
        self._runners = runners or {}
        self._state = folder.parent / f"{folder.name}.state"
        self._cwd, self._env = folder, _environment()
        self._said = ""
        self._terminals: dict[str, Terminal] = {}
        self._janitor = Janitor()

    def follow(self, page: Path) -> None:
        """Do all that the page says, then press Ctrl-C in every terminal. Raises AssertionError with the place."""
        try:
            for block in blocks_of(page):
                self.do(block)
            for name in self._terminals:
                self.interrupt(name)
        finally:
            self.close()

    def do(self, block: Block) -> None:
        """Do what one block says. Raises AssertionError with its place, and all that was said."""
        try:
            self._do(block)
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}{self._all_said()}") from error

    def close(self) -> None:
        """End what still runs."""
        self._janitor.close()
        for terminal in self._terminals.values():
            terminal.wait()

    def type(self, commands: str) -> str:
        """Type commands into the shell and return what they said. Fails with the first that fails."""
        keep = f"\npwd > '{self._state}.cwd'; env -0 > '{self._state}.env'"
        done = subprocess.run(
            ["bash", "-e", "-c", self._adapted(commands) + keep],
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{commands}ended with {done.returncode}:\n{said}"
        self._cwd = Path(Path(f"{self._state}.cwd").read_text().strip())
        pairs = Path(f"{self._state}.env").read_text().split("\0")
        self._env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return said

    def python(self, code: str, *command: str) -> str:
        """Run Python code by a command that takes it as its last argument, and return what it said."""
        done = subprocess.run(
            ["python", *command, self._adapted(code)],
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{code}ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def interrupt(self, terminal: str) -> None:
        """Press Ctrl-C in a terminal and wait for the end of what runs in it."""
        assert self._terminals[terminal].interrupt() == 0, self.output_of(terminal)

    def kill(self, terminal: str) -> None:
        """Kill all that runs in a terminal."""
        self._terminals[terminal].kill()

    def wait(self, terminal: str) -> int:
        """Wait for the end of what runs in a terminal; returns its exit status."""
        return self._terminals[terminal].wait()

    def output_of(self, terminal: str) -> str:
        """All that a terminal has said so far."""
        return self._terminals[terminal].output

    def _do(self, block: Block) -> None:
        match block:
            case Block(kind="does"):
                self._deeds[block.argument](self)
            case Block(kind=kind) if kind in self._runners:
                self._runners[kind](block)
            case Block(kind="", title=title) if title:
                self._write(block)
            case Block(kind="terminal", language="sh"):
                log = self.folder.parent / f"{block.argument}.log"
                command = self._adapted(block.text)
                self._terminals[block.argument] = Terminal(command, self._cwd, self._env, log, self._janitor)
            case Block(kind="output", language="text"):
                self._terminals[block.argument].wait_for(block.text)
            case Block(kind="" | "install", language="sh"):
                self._said = self.type(block.text)
            case Block(kind="shell", language="python"):
                self._said = self.python(block.text, "manage.py", "shell", "-c")
            case Block(kind="script", language="python"):
                self._said = self.python(block.text, "-c")
            case Block(kind="", language="text"):
                assert re.search(pattern_of(block.text), self._said, re.MULTILINE), f"not said:\n{block.text}"
            case _:
                raise AssertionError("nobody knows how to do this")

    def _write(self, block: Block) -> None:
        name, _, where = block.title.partition(", ")
        path = self.folder / name
        assert where in ("", "at the end"), block.title
        whole = path.with_name(f".{path.name}.new")  # whoever watches the file never sees half of it
        whole.write_text((path.read_text() + "\n" if where else "") + self._adapted(block.text))
        whole.replace(path)

    def _adapted(self, text: str) -> str:
        """What a test has to change: addresses that are taken or not there, and questions at a terminal."""
        if self._broker:
            text = re.sub(r"amqps?://[^\s\"']+", lambda _: self._broker, text)
        text = re.sub(r"\brunserver$", f"runserver {self.port}", text, flags=re.MULTILINE)
        return re.sub(r"(\bcreatesuperuser\b.*)$", r"\1 --noinput", text, flags=re.MULTILINE)

    def _all_said(self) -> str:
        outputs = {"The last command": self._said} | {name: one.output for name, one in self._terminals.items()}
        return "".join(f"\n--- {name} said:\n{said}" for name, said in outputs.items())


class Terminal:
    """Commands in a session of their own, their output in a file."""

    def __init__(self, commands: str, cwd: Path, env: Mapping[str, str], log: Path, janitor: Janitor) -> None:
        self._log, self._position = log, 0
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["bash", "-e", "-c", commands],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        janitor.watch(self._process.pid)

    @property
    def output(self) -> str:
        """All it has said so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has said these lines since the last time."""

        def look() -> re.Match[str] | None:
            has_ended = self._process.poll() is not None
            found = re.compile(pattern_of(text), re.MULTILINE).search(self.output, self._position)
            assert found or not has_ended, f"it ended without:\n{text}"
            return found

        found = wait_until(look, deadline=300, what=text)
        assert found is not None
        self._position = found.end()

    def interrupt(self) -> int:
        """Press Ctrl-C, which reaches all that still runs in it; returns the exit status."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """Kill all that runs in it, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        return self._process.wait(180)


def pattern_of(text: str) -> str:
    """A regular expression for output that has these lines in this order, perhaps with others between them."""
    lines = (".*?".join(map(re.escape, line.split("…"))) for line in text.splitlines() if line.strip())
    return r"[\s\S]*?".join(f"^{line}$" for line in lines)


def _environment() -> dict[str, str]:
    """Of a reader who has this Python and nothing set up."""
    ours = ("DJANGO_", "MESSAGING_", "PYTEST_", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONUNBUFFERED")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).with_name("terminal")),  # a terminal shows lines at once and whole, a file not
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "DJANGO_SUPERUSER_PASSWORD": "secret",
    }
