"""`make run`: database, admin user, broker, web server and consumer in one terminal; one Ctrl-C ends them all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tools import broker
from tools.environment import ROOT, ensure_environment, port_of, read_env_file
from tools.janitor import Janitor
from tools.rabbitmq import RabbitMQ
from tools.services import ServiceFailed, ServiceMissing, is_listening, stopping_on_signals

STOP_TIMEOUT = 40.0  # seconds; the consumer gives its handlers 30


class Site:
    """The demo site's processes.

    Args:
        python: the virtual environment's Python.
        on_rabbitmq: whether the site uses RabbitMQ, started where none is reachable, or the embedded broker.
    """

    def __init__(self, python: Path, *, on_rabbitmq: bool) -> None:
        self.python = python
        self.on_rabbitmq = on_rabbitmq
        self.environment = read_env_file() | dict(os.environ)
        self.environment |= {
            "DJANGO_SETTINGS_MODULE": "project.settings",  # the shell may name another project's
            "DJANGO_RUNSERVER_HIDE_WARNING": "true",
            "PYTHONUNBUFFERED": "1",
        }
        self.port = port_of(self.environment, "PORT", 8000)
        self.folder = Path(self.environment.get("DATA_DIR") or ROOT / "var").resolve()
        self.environment["DATA_DIR"] = str(self.folder)
        self.terminal = ControllingTerminal()
        self.janitor = Janitor()
        self.node: RabbitMQ | None = None
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def run(self) -> int:
        """Start everything, wait for the end of any, and return the exit status."""
        check_port(self.port)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # messages and accounts: for this user alone
        if self.folder == ROOT / "var":  # which an earlier release made for all to read
            self.folder.chmod(0o700)
        if not self.environment.get("SECRET_KEY"):
            self.environment["SECRET_KEY"] = self._kept("secret-key", 40)
        self._choose_broker()
        password = self._prepare()
        self._start("web", "runserver", "--noreload", f"127.0.0.1:{self.port}")
        self._start("consume", "consume")
        while self._all_run() and not is_listening(self.port):
            time.sleep(0.05)
        if self._all_run():
            self._introduce(password)
        while self._all_run():
            if self.terminal.is_gone:
                return 128 + signal.SIGHUP
            time.sleep(0.2)
        ended = next(name for name, process in self.processes.items() if process.poll() is not None)
        print(f"The process “{ended}” has ended; its last lines above say why. Stopping the others.", flush=True)
        return 1

    def close(self) -> None:
        """Stop everything in order: the web server and the consumer first, then the broker."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.janitor.forget(process.pid)
        if self.node is not None:
            self.node.close(orderly=True)

    def _choose_broker(self) -> None:
        if not self.on_rabbitmq:
            broker.use_embedded(self.environment)
            return
        self.node = broker.use_rabbitmq(self.environment, self.folder / "rabbitmq", self.janitor)
        if self.node is not None:
            print("Starting a private RabbitMQ node ...", flush=True)
            self.node.start()

    def _prepare(self) -> str:
        """Migrate and create the user `admin` at the first start; its password, or "" where someone changed it."""
        password = self.environment.get("ADMIN_PASSWORD") or self._kept("admin-password", 9)
        print("Preparing the database ...", flush=True)
        done = subprocess.run(
            [str(self.python), "manage.py", "prepare"],
            cwd=ROOT,
            env=self.environment | {"ADMIN_PASSWORD": password},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(last_sentence(done.stderr))
        return "" if "unchanged" in done.stdout else password

    def _kept(self, name: str, size: int) -> str:
        """A secret that was made up at the first start, and is the same at every further one."""
        path = self.folder / name
        if not path.exists() or not path.read_text().strip():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(size))
        return path.read_text().strip()

    def _start(self, name: str, *arguments: str) -> None:
        process = subprocess.Popen(
            [str(self.python), "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process alone, which stops the others in order
        )
        self.janitor.watch(process.pid)
        self.processes[name] = process
        threading.Thread(target=_copy_output, args=(name, process), daemon=True).start()

    def _all_run(self) -> bool:
        return all(process.poll() is None for process in self.processes.values())

    def _introduce(self, password: str) -> None:
        base = f"http://127.0.0.1:{self.port}"
        reset = f"a password that was changed; `{self.python} manage.py changepassword admin` sets another"
        secret = f"password {password}" if password else reset
        lines = [f"Site      {base}/", f"Admin     {base}/admin/   (user admin, {secret})"]
        if self.node is not None:
            lines.append(f"RabbitMQ  http://127.0.0.1:{self.node.management_port}/   (guest, guest; a private node)")
        elif not self.on_rabbitmq:
            lines.append("Broker    embedded: a table in the site's own database")
        lines.append("Ctrl-C stops everything.")
        print("\n" + "\n".join(lines) + "\n", flush=True)


class ControllingTerminal:
    """The terminal that the standard input was when we started, if it was one.

    Its end is not always told: started as `ssh -t host make run`, make gets the SIGHUP, and waits for us.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        if sys.stdin is not None and sys.stdin.isatty():
            self._poll.register(sys.stdin, 0)  # hanging up is reported unasked

    @property
    def is_gone(self) -> bool:
        """Whether it was closed."""
        return any(event & select.POLLHUP for _, event in self._poll.poll(0))


def main(arguments: list[str]) -> int:
    """Run the site until Ctrl-C; returns the exit status."""
    python = ensure_environment()
    site = Site(python, on_rabbitmq="--rabbitmq" in arguments)
    try:
        with stopping_on_signals():
            return _run(site)
    finally:
        site.janitor.close()


def check_port(port: int) -> None:
    """Raise SystemExit where nobody may listen at `port`, or somebody does."""
    other = f"choose another one, such as `make run PORT={port + 1 if 1023 < port < 65535 else 8001}`"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise SystemExit(f"Port {port} is reserved for root: {other}.") from None
        except OSError:
            raise SystemExit(f"Port {port} is in use: {other}.") from None


def last_sentence(said: str) -> str:
    """What went wrong, from what a command wrote to its standard error."""
    traceback = said.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    first = next((number for number, line in enumerate(traceback) if line.strip() and line[0] != " "), 0)
    text = " ".join(line.strip() for line in traceback[first:] if line.strip())
    return re.sub(r"^([A-Za-z_]+\.)*\w*(Error|ImproperlyConfigured): ", "", text) or "The database cannot be prepared."


def _run(site: Site) -> int:
    try:
        return site.run()
    except KeyboardInterrupt:
        print("\nStopping ... (once more to stop at once)", flush=True)
        return 0
    except (ServiceFailed, ServiceMissing) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        raise SystemExit(f"{error.filename or 'Something'} cannot be used: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            site.close()


def _copy_output(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        with contextlib.suppress(OSError):  # the terminal was closed; the process must not wait for a reader
            sys.stdout.write(f"{name:>7} | {line}")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
